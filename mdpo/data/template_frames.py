"""What a chat template writes around the texts of a conversation, for templates that only copy the texts.

Rendering a million conversations through Jinja takes minutes, and most templates copy what was said without looking at
it. Whether one does is found out by giving it texts that notice when they are looked at, and that no change leaves as
they
are: then what it writes for any other texts in the same turns is known.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .messages import Message
from .text_options import EXTENSIONS

# What a template may change or escape: case, quotes, markup, line breaks, letters beyond ASCII, digits.
_CORE = "Aa'\"<b>&{{\\{%%Ä\u4e2d\n\n x7%06d7x  y'\"<Z"


class _Looked(Exception):
    """The template does more with a text than write it."""


class _Text(str):
    """A text that says when it is looked at. written: how often it was copied."""

    written: list[int]
    bare: bool

    def __new__(cls, text: str, written: list[int], *, bare: bool) -> "_Text":
        made = super().__new__(cls, text)
        made.written, made.bare = written, bare
        return made

    def __str__(self) -> str:
        self.written[0] += 1
        return str.__str__(self)

    def __getattribute__(self, name: str) -> Any:
        if name in ("written", "bare", "__class__"):
            return super().__getattribute__(name)
        if name in ("strip", "lstrip", "rstrip") and super().__getattribute__("bare"):
            return self._stripped
        if name == "_stripped":
            return super().__getattribute__(name)
        raise _Looked

    def _stripped(self, *characters: str) -> "_Text":
        if any(given is not None for given in characters):
            raise _Looked
        return self

    def __bool__(self) -> bool:
        return True  # texts are never empty where a frame is used

    def _looked(self, *arguments: Any) -> Any:
        raise _Looked

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __len__ = __iter__ = __getitem__ = _looked  # type: ignore[assignment]
    __add__ = __radd__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __format__ = __hash__ = _looked  # type: ignore[assignment]


class Frame(NamedTuple):
    """pieces: what stands before, between and behind the texts. bare: whether it holds for texts without blanks around
    them alone, which some templates take off."""

    pieces: tuple[str, ...]
    bare: bool

    def fill(self, texts: Sequence[str]) -> str | None:
        """The conversation as the template writes it; None where that is not known."""
        for text in texts:
            if not text or self.bare and text != text.strip():
                return None
        pieces = self.pieces
        if len(texts) == 1:
            return pieces[0] + texts[0] + pieces[1]
        return "".join([part for pair in zip(pieces, texts, strict=False) for part in pair]) + pieces[-1]


def shape_of(messages: Sequence[Message]) -> tuple | None:
    """The same for conversations of the same turns with other texts; None where a message has more than its content."""
    shape = []
    for message in messages:
        if len(message) != 2:
            return None
        shape.append(message["role"])
        shape += [part["type"] for part in message["content"]]
        shape.append(None)
    return tuple(shape)


def texts_of(messages: Sequence[Message]) -> list[str]:
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]


class Frames:
    """Finds the frames of a template.

    template: Jinja. variables: what it may read beside the conversation. render: (messages, prompt) → what the
    processor makes of them, which a frame agrees with. failures: what either may raise.
    """

    def __init__(
        self,
        template: str,
        variables: Mapping[str, Any],
        render: Callable[[list[Message], bool], str],
        failures: tuple[type[Exception], ...],
    ) -> None:
        self._render, self._failures, self._variables = render, failures, variables
        # The processor hands its template plain copies of the texts, so it is asked here with texts that notice.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=EXTENSIONS)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        self._template = environment.from_string(template)

    def find(self, messages: Sequence[Message], prompt: bool) -> Frame | None:
        """The frame of conversations of the shape of ``messages``; None where the template does more than copy.

        prompt: with the generation prompt.
        """
        return self._find(messages, prompt, bare=False) or self._find(messages, prompt, bare=True)

    def _find(self, messages: Sequence[Message], prompt: bool, bare: bool) -> Frame | None:
        texts = [
            _Text(core if bare else f" \n{core}\n ", [0], bare=bare)
            for core in (_CORE % number for number in range(len(texts_of(messages))))
        ]
        plain = [str.__str__(text) for text in texts]
        noticing, copied = _with_texts(messages, texts), _with_texts(messages, plain)
        try:
            rest = self._template.render(
                messages=noticing, tools=None, documents=None, add_generation_prompt=prompt, **self._variables
            )
            if rest != self._render(copied, prompt):
                return None
        except (_Looked, *self._failures):
            return None
        pieces = []
        for text, letters in zip(texts, plain, strict=True):
            if text.written != [1] or rest.count(letters) != 1:
                return None
            piece, _, rest = rest.partition(letters)
            pieces.append(piece)
        return Frame((*pieces, rest), bare)


def _with_texts(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    left = iter(texts)
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] != "text" else {"type": "text", "text": next(left)} for part in message["content"]
            ],
        }
        for message in messages
    ]


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
