"""Conversations → text, through the chat template. A turn that the template drops is an error that names it."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import ProcessorMixin

from mdpo.errors import InputError

from .messages import Message
from .problem import RowError
from .template_frames import Frame, Frames, shape_of, texts_of
from .text_options import TextOptions, check_kwargs, resolve_template

# Parts of a message, beside its content, that the model has to read: a template that ignores them is refused.
_READ = ("tool_calls", "reasoning_content", "thinking")
# A template that expects text and gets parts prints them as Python does.
_PRINTED_PARTS = ("'type': 'text'", "'type': 'image'")
_SHAPES = 10_000  # of conversations, whose frames are remembered
Item = TypeVar("Item")
_FAILURES = Exception  # a template is a program, and may divide by zero, call itself for ever, ask for too much memory


@dataclass(frozen=True, slots=True)
class Conversation:
    """The input of a chat template. tools, kwargs: the row's own. where, column: for error messages."""

    messages: list[Message]
    where: str = "the chat template"
    column: str = "prompt"
    tools: list | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def answered(self, text: str, column: str) -> "Conversation":
        answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        return Conversation([*self.messages, answer], self.where, column, self.tools, self.kwargs)


class ChatTemplate:
    """A processor's chat template, or the one from the settings, with its variables.

    Raises InputError if there is none, or if it does not read one of the variables in chat_template_kwargs.
    """

    def __init__(self, processor: ProcessorMixin, options: TextOptions) -> None:
        self.processor: Any = processor
        self.text = resolve_template(processor, options.chat_template)
        self.kwargs = dict(options.chat_template_kwargs or {})
        if problem := check_kwargs(processor, self.text, self.kwargs):
            raise InputError(f"chat_template_kwargs: {problem}; leave it out, or set another chat_template")
        self._forms: dict[bytes, str | RowError] = {}  # by the shape of a conversation: how its content is given
        self._frames: dict[tuple, Frame | None] = {}  # by its shape, and whether a prompt is rendered

    def render(self, conversations: Sequence[Conversation], *, prompt: bool) -> list[str | RowError]:
        """Renders conversations. prompt: add the generation prompt, which asks the model for an answer.

        A conversation becomes a RowError if the template refuses it, or drops a turn, the tools or the tool calls.
        """
        result: dict[int, str | RowError] = {}
        shaped: dict[int, Conversation] = {}
        for at, conversation in enumerate(conversations):
            known = self._framed(conversation, prompt) if len(conversations) > 1 else None
            if known is not None:
                result[at] = known
                continue
            form = self._shaped(conversation)
            if isinstance(form, RowError):
                result[at] = form
            else:
                shaped[at] = form
        together = {at: c.messages for at, c in shaped.items() if not (c.tools or c.kwargs or _extras(c.messages))}
        if len(together) > 1:  # several times faster than one by one
            try:
                texts = self._apply(list(together.values()), prompt, None, {})
            except _FAILURES:  # one of them, which is found below
                texts = []
            result |= dict(zip(together, texts, strict=False))
        result |= {at: self._single(c, prompt) for at, c in shaped.items() if at not in result}
        return [result[at] for at in range(len(conversations))]

    def _framed(self, conversation: Conversation, prompt: bool) -> str | None:
        """What the template writes, where that is known without asking it."""
        shape = None if conversation.tools or conversation.kwargs else shape_of(conversation.messages)
        if shape is None:
            return None
        key = (prompt, shape)
        if key not in self._frames:
            if len(self._frames) >= _SHAPES:
                return None
            self._frames[key] = self._find_frame(conversation, prompt)
        frame = self._frames[key]
        return None if frame is None else frame.fill(texts_of(conversation.messages))

    def _find_frame(self, conversation: Conversation, prompt: bool) -> Frame | None:
        """Only for contents that the template reads as parts; what it drops or refuses is told by the longer way."""
        if self._shaped(conversation) is not conversation:
            return None
        return self._finder.find(conversation.messages, prompt)

    @functools.cached_property
    def _finder(self) -> Frames:
        variables = {**self.processor.tokenizer.special_tokens_map, **self.kwargs}
        return Frames(
            self.text, variables, lambda messages, prompt: self._apply([messages], prompt, None, {})[0], (_FAILURES,)
        )

    def text_of(self, conversation: Conversation, *, prompt: bool) -> str:
        """``render`` for one conversation; raises its RowError."""
        (text,) = self.render([conversation], prompt=prompt)
        return or_raise(text)

    def _single(self, conversation: Conversation, prompt: bool) -> str | RowError:
        try:
            text = self._try(conversation, prompt)
            return self._without_extras(conversation, prompt, text) or text
        except _FAILURES as error:
            return _refused(conversation.where, conversation.column, error)

    def _try(self, conversation: Conversation, prompt: bool) -> str:
        return self._apply([conversation.messages], prompt, conversation.tools, conversation.kwargs)[0]

    def _apply(self, messages: list, prompt: bool, tools: list | None, kwargs: Mapping[str, Any]) -> list[str]:
        return self.processor.apply_chat_template(
            messages,
            chat_template=self.text,
            tools=tools,
            add_generation_prompt=prompt,
            tokenize=False,
            **{**self.kwargs, **kwargs},
        )

    def _without_extras(self, conversation: Conversation, prompt: bool, text: str) -> RowError | None:
        """Checks that tools, tool calls and reasoning change what the template writes."""
        where = conversation.where
        remedy = "set a chat_template that writes them, or leave them out"
        if conversation.tools:
            without = Conversation(conversation.messages, kwargs=conversation.kwargs)
            if self._try(without, prompt) == text:
                return RowError.at(where, "tools", "the chat template ignores the tools", remedy)
        for name in _extras(conversation.messages):
            bare = [{k: v for k, v in message.items() if k != name} for message in conversation.messages]
            if self._try(Conversation(bare, tools=conversation.tools, kwargs=conversation.kwargs), prompt) == text:
                return RowError.at(where, conversation.column, f"the chat template ignores {name}", remedy)
        return None

    def _shaped(self, conversation: Conversation) -> Conversation | RowError:
        """The conversation with its contents as the template reads them: as parts, or as plain text."""
        shape = [
            (message["role"], [part["type"] for part in message["content"]], sorted(message.keys()))
            for message in conversation.messages
        ]
        key = _digest([shape, conversation.tools, dict(conversation.kwargs)])
        if key not in self._forms:
            self._forms[key] = self._form(conversation)
        form = self._forms[key]
        if isinstance(form, RowError):
            field = form.field if form.field == "chat_template_kwargs" else conversation.column
            return RowError.at(conversation.where, field, form.problem, form.remedy)
        if form == "parts":
            return conversation
        messages = [_as_text(message) for message in conversation.messages]
        return Conversation(messages, conversation.where, conversation.column, conversation.tools, conversation.kwargs)

    def _form(self, conversation: Conversation) -> str | RowError:
        """Finds the form in which the template writes every turn, with stand-ins for the texts, and no Python list."""
        if problem := check_kwargs(self.processor, self.text, conversation.kwargs):
            remedy = "leave it out, or set another chat_template"
            return RowError.at(conversation.where, "chat_template_kwargs", problem, remedy)
        counter = iter(range(10**9))
        messages, turns = [], []
        for message in conversation.messages:
            parts = []
            for part in message["content"]:
                if part["type"] == "text":
                    turns.append((f"7{next(counter):08d}7", message["role"]))
                    part = {"type": "text", "text": turns[-1][0]}
                parts.append(part)
            messages.append({**message, "content": parts})
        found: list[RowError] = []
        for form in ("parts", "text"):
            given = messages if form == "parts" else [_as_text(message) for message in messages]
            try:
                text = self._apply([given], False, conversation.tools, conversation.kwargs)[0]
            except _FAILURES as error:
                found.append(_refused(conversation.where, conversation.column, error))
                continue
            lost = [role for standin, role in turns if standin not in text]
            if not lost and not any(printed in text for printed in _PRINTED_PARTS):
                return form
            problem = f"the chat template drops the {lost[0]} turn" if lost else "the chat template writes no images"
            remedy = "set a chat_template that writes it" + (
                ", or put its text into the question" if lost and lost[0] != "assistant" else ""
            )
            found.append(RowError.at(conversation.where, conversation.column, problem, remedy))
        return found[0]


def _digest(value: Any) -> bytes:
    text = json.dumps(value, default=str)  # ASCII: half a surrogate pair, too, is spelled out
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _extras(messages: list[Message]) -> list[str]:
    return [name for name in _READ if any(name in message for message in messages)]


def _as_text(message: Message) -> Message:
    """The message with its parts joined to a text, unless it contains an image."""
    if any(part["type"] != "text" for part in message["content"]):
        return message
    return {**message, "content": "".join(part["text"] for part in message["content"])}


def _refused(where: str, field: str, error: Exception) -> RowError:
    return RowError.at(where, field, f"the chat template refuses it: {error}", "give the roles and turns it expects")


def or_raise(item: Item | RowError) -> Item:
    if isinstance(item, RowError):
        raise item
    return item
