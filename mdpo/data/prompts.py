"""Prompts as text: rendered by the chat template, or taken as they are if they already contain its turns."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import ProcessorMixin

from .messages import Message
from .problem import RowError
from .rendered import KNOWN, Form, Known, Turns, complete, cut_images, end_of_turn, with_images
from .rows import PromptRow
from .special_tokens import SpecialTokens
from .template import ChatTemplate, Conversation, or_raise
from .text_options import TextOptions

logger = logging.getLogger(__name__)

_SETTING = "prompt_is_rendered (true: taken as it is; false: a user's words)"


class Asked(NamedTuple):
    """A prompt before tokenisation. text: the conversation as the template renders it.

    rendered: the prompt's own text if the row brings it rendered. The conversation is then a stand-in, which shows what
    the template writes around an answer. between: what separates such a prompt from the answer.
    """

    conversation: Conversation
    text: str = ""
    rendered: str | None = None
    between: str | None = None

    def with_text(self, text: str) -> "Asked":
        return self._replace(text=text)

    @property
    def prompt(self) -> str:
        return self.text if self.rendered is None else self.rendered


class Prompts:
    """Turns rows into prompts, for one processor and one set of options.

    turns: what the template writes around the simplest turns. A RowError if it refuses even those, because it may still
    render the rows. drop_images: as for ``Encoder``.

    Raises InputError as ``ChatTemplate`` does.
    """

    def __init__(self, processor: ProcessorMixin, options: TextOptions, *, drop_images: bool) -> None:
        self.processor: Any = processor
        self.options = options
        self.drop_images = drop_images
        self.template = ChatTemplate(processor, options)
        self.tokens = SpecialTokens(processor)
        self.tokenizer: Any = self.tokens.tokenizer
        self._forms: list[Form] = []
        self._marks: list[str] = []
        self._said_rendered = False
        self.turns: Turns | RowError
        try:
            self.turns = Turns.of(self.template)
        except RowError as error:
            self.turns = error
        else:
            self.tokens.add_control(self.turns.texts())
            self._forms = self.turns.forms(self.tokens)
            self._marks = self.turns.marks(self._forms[0], self.tokens)
        forms = [mark for form in (*self._forms, *KNOWN) for mark in (form.user, form.assistant)]
        self._signs = sorted({mark for mark in (*forms, *self._marks) if mark})

    def asked(self, rows: Sequence[PromptRow], *, drop_images: bool = False) -> list[Asked | RowError]:
        """Every row's prompt, or a RowError if the template refuses it or drops a turn.

        drop_images: as for ``Encoder``, for these rows.
        """
        planned = [self._planned(row, drop_images or self.drop_images) for row in rows]
        sound = [item.conversation for item in planned if isinstance(item, Asked)]
        texts = iter(self.template.render(sound, prompt=True))
        result: list[Asked | RowError] = []
        for item in planned:
            if isinstance(item, Asked):
                text = next(texts)
                item = text if isinstance(text, RowError) else item.with_text(text)
            result.append(item)
        return result

    def answer(self, text: str, asked: Asked) -> str:
        """An answer's text with its quoted tokens marked. Data with rendered prompts often has rendered answers: what
        the template writes around them is removed here, and written once later."""
        if asked.between is not None and not isinstance(self.turns, RowError):
            text = self._without_end(text, self.turns.after).removeprefix(asked.between)
        return self.tokens.quote(text, answer=True)

    def _planned(self, row: PromptRow, drop_images: bool) -> Asked | RowError:
        """The conversation to render, or the rendered prompt with its stand-in."""
        try:
            rendered, form = self.recognised(row)
            if not rendered:
                messages = [self._quoted(message) for message in self._with_system(row.prompt)]
                kwargs = row.template_kwargs or {}
                return Asked(Conversation(messages, row.where, "prompt", row.tools, kwargs))
            return self._rendered(row, form, drop_images)
        except RowError as error:
            return error

    def _with_system(self, messages: list[Message]) -> list[Message]:
        system = self.options.system_prompt
        if not system or any(message["role"] == "system" for message in messages):
            return messages
        return [{"role": "system", "content": [{"type": "text", "text": system}]}, *messages]

    def _quoted(self, message: Message) -> Message:
        answer = message["role"] == "assistant"
        parts = [
            {**part, "text": self.tokens.quote(part["text"], answer=answer)} if part["type"] == "text" else part
            for part in message["content"]
        ]
        return {**message, "content": parts}

    def recognised(self, row: PromptRow) -> tuple[bool, Form | None]:
        """Whether the row's prompt is already rendered, and in which form (None: not a known one).

        Raises RowError if it is rendered for another template, or may or may not be rendered, or lacks the end of a
        rendered one.
        """
        setting = self.options.prompt_is_rendered
        if row.plain is None and setting:
            problem = "prompt_is_rendered is set, but the prompt is a list of messages"
            raise RowError.at(row.where, "prompt", problem, "give it as text, or leave the setting out")
        if row.plain is None or setting is False:
            return False, None
        if not setting and not any(map(row.plain.__contains__, self._signs)):  # in which every form has one
            return False, None
        known = Known.of(self.tokens)
        fits = {form: form.fits(row.plain, known) for form in self._forms}
        certain = next((form for form, found in fits.items() if found), None)
        if certain is not None or setting:
            return True, certain or next((form for form, found in fits.items() if found is None), None)
        foreign = next((form for form in KNOWN if form not in fits and form.fits(row.plain, known)), None)
        doubtful = next((form for form, found in fits.items() if found is None), None)
        if foreign is not None:
            problem = f"already contains turns as {foreign.name} writes them, which the chat template does not"
            remedy = f"set the chat_template that fits, or {_SETTING}"
        elif doubtful is not None:
            problem = (
                f"looks as if it already contained the template's turns ({doubtful.user} ... {doubtful.assistant})"
            )
            remedy = f"set {_SETTING}"
        elif unfinished := self._unfinished(row.plain, known):
            problem, remedy = unfinished
        else:
            return False, None
        raise RowError.at(row.where, "prompt", problem, remedy)

    def _unfinished(self, text: str, known: Known) -> tuple[str, str] | None:
        """What is wrong, and what to do, with a text that has turns but does not end with the assistant's mark."""
        ends = [form.assistant for form in self._forms if form.assistant]
        mark = next((mark for mark in self._marks if mark in text), None)
        if mark is not None and ends:
            problem = f"contains {mark}, which marks the chat template's turns, but does not end as a rendered prompt"
            return problem, f"end it with {min(ends, key=len)}, or set {_SETTING}"
        for form in dict.fromkeys([*self._forms, *KNOWN]):
            if form.begins(text, known, own=form in self._forms):
                problem = f"looks as if it contained turns ({form.user} ...), but does not end as a rendered prompt"
                return problem, f"end it with {form.assistant}, or set {_SETTING}"
        return None

    def check_answer(self, text: str, where: str, name: str) -> None:
        """Raises RowError if an answer begins with the assistant's mark, which would be scored as its letters."""
        if self.options.prompt_is_rendered is False:
            return
        mark = next((f.assistant for f in self._forms if f.assistant and text.lstrip().startswith(f.assistant)), None)
        if mark is not None:
            problem = f"begins with {mark}, which the chat template writes in front of every answer"
            remedy = "move it to the end of the prompt, or set prompt_is_rendered: false (its letters)"
            raise RowError.at(where, name, problem, remedy)

    def _rendered(self, row: PromptRow, form: Form | None, drop_images: bool) -> Asked:
        turns = or_raise(self.turns)
        for name, given in (
            ("tools", row.tools),
            ("system", row.prompt[0]["role"] == "system"),
            ("system_prompt", self.options.system_prompt),
            ("chat_template_kwargs", row.template_kwargs or self.options.chat_template_kwargs),
        ):
            if given:
                problem = f"the prompt already contains the template's turns, so {name} has no place in it"
                remedy = "leave it out, or set prompt_is_rendered: false"
                raise RowError.at(row.where, "prompt" if name == "system_prompt" else name, problem, remedy)
        assert row.plain is not None
        placed = cut_images if drop_images else with_images
        text = placed(row.plain, self.processor.image_token, self.template)
        bos = self.tokenizer.bos_token
        if bos and turns.head.startswith(bos) and not text.lstrip().startswith(bos):
            text = bos + text
        if not self._said_rendered:
            self._said_rendered = True
            logger.warning(
                "prompts that already contain the chat template's turns are taken as they are (the first: %s); "
                "prompt_is_rendered: false takes them as a user's own words",
                row.where,
            )
        prompt, between = complete(text, turns, form)
        return Asked(Conversation(turns.messages, row.where, "prompt"), rendered=prompt, between=between)

    def _without_end(self, text: str, after: str) -> str:
        end = end_of_turn(after, self.tokens)
        for ending in (after, after.rstrip(), end, end.strip(), self.tokenizer.eos_token):
            for kept in (text, text.rstrip()):
                if ending and kept.endswith(ending):
                    return kept.removesuffix(ending)
        return text
