"""What is asked of a judge and what comes back: requests, replies, and what a run of them would cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CHARACTERS_PER_TOKEN = 4  # of English, roughly


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a message, made when it is sent and not kept.

    name: the same for the same picture as it is sent; in a request's key it stands for the picture.
    tokens: how many it is thought to cost. uri: returns the data URI.
    """

    name: str
    tokens: int
    uri: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the judge.

    messages: chat messages, whose content is a text, or a list of texts and pictures.
    temperature, max_tokens: None is the endpoint's default. attempt: 0, or more where the same question is asked anew
    on purpose.
    """

    messages: Sequence[Mapping[str, str | Sequence[str | Picture]]]
    temperature: float | None = 0.0
    max_tokens: int | None = None
    attempt: int = 0

    def pieces(self) -> list[str | Picture]:
        """The texts and pictures of all messages."""
        contents = [message["content"] for message in self.messages]
        return [piece for content in contents for piece in ([content] if isinstance(content, str) else content)]


@dataclass(frozen=True, slots=True)
class Reply:
    """text: the reply, "" where the judge gave none. model: the name that the endpoint returned. raw: all it sent."""

    text: str
    model: str
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would send: requests that the cache lacks.

    prompt_tokens: theirs, estimated at 4 characters each, and the pictures'. picture_tokens: the pictures' alone.
    reply_tokens: how long all replies together can get; None where nothing limits them.
    """

    cached: int
    requests: int
    prompt_tokens: int
    picture_tokens: int = 0
    reply_tokens: int | None = None

    @classmethod
    def of(cls, missing: Sequence[Request], *, cached: int) -> "Estimate":
        """missing: the requests to send."""
        pieces = [piece for request in missing for piece in request.pieces()]
        pictures = sum(piece.tokens for piece in pieces if isinstance(piece, Picture))
        texts = math.ceil(sum(len(piece) for piece in pieces if isinstance(piece, str)) / _CHARACTERS_PER_TOKEN)
        limits = [request.max_tokens for request in missing]
        replies = None if None in limits else sum(limit or 0 for limit in limits)
        return cls(cached, len(missing), texts + pictures, pictures, replies)

    def __str__(self) -> str:
        pictures = f", {self.picture_tokens} of them for images" if self.picture_tokens else ""
        return (
            f"{self.requests} requests to send, about {self.prompt_tokens} prompt tokens{pictures}; "
            f"{self.cached} are in the cache"
        )


def content_parts(content: str | Sequence[str | Picture], url: Callable[[Picture], str]) -> str | list[dict[str, Any]]:
    """A message's content as endpoints take it."""
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": piece}
        if isinstance(piece, str)
        else {"type": "image_url", "image_url": {"url": url(piece)}}
        for piece in content
    ]
