"""A checked row: a question about images, and for training the two answers to it."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from .images import ImageSource
from .messages import Message
from .spans import Span


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A checked question about images.

    id: the row's own ``id`` column, else its position. where: file and row, for messages.
    images: resolved paths, stored images or PIL images, in the order of the prompt's image parts.
    prompt: chat messages whose content is a list of ``{"type": "image"}`` and ``{"type": "text", "text": …}`` parts.
    plain: the prompt's text where the row gives it as text, which may be rendered already; see ``Encoder``.
    tools, template_kwargs: for the chat template, from the columns ``tools`` and ``chat_template_kwargs``.
    """

    id: str
    where: str
    images: tuple[ImageSource, ...]
    prompt: list[Message]
    plain: str | None = field(default=None, kw_only=True)
    tools: list[dict[str, Any]] | None = field(default=None, kw_only=True)
    template_kwargs: dict[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class PreferenceRow(PromptRow):
    """A checked preference: the prompt, and the two responses' text.

    rejected_images: the row's own negatives: one per image, or the same number for each, all images' first ones before
        all images' second ones; empty where it brings none.
    contrast: the answer that is right for the first of them.
    chosen_weights, rejected_weights: spans of these answers whose tokens count more, or less, than the others' 1.
    """

    chosen: str
    rejected: str
    rejected_images: tuple[ImageSource, ...] = ()
    contrast: str | None = field(default=None, kw_only=True)
    chosen_weights: tuple[Span, ...] = field(default=(), kw_only=True)
    rejected_weights: tuple[Span, ...] = field(default=(), kw_only=True)


Row = TypeVar("Row", bound=PromptRow)
