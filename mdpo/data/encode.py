"""Messages → token ids, through the processor's chat template."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import ProcessorMixin

from mdpo.errors import InputError

from .messages import Message
from .problem import RowError
from .rendered import KNOWN, Form, Turns, complete, end_of_turn, question, with_images
from .rows import PreferenceRow, PromptRow
from .special_tokens import SpecialTokens
from .template import ChatTemplate, Conversation, or_raise
from .text_options import TextOptions

logger = logging.getLogger(__name__)

_RESPONSES = ("chosen", "rejected")
_STANDIN = "ANSWER-STANDS-HERE"


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """prompt_ids with one placeholder per image, not yet expanded; responses with the token that ends their turn.

    rendered: whether the row's prompt already contained the template's turns, and was taken as it is.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    rendered: bool = False


class Encoder:
    """Renders and tokenises rows as the model was tuned to see them: for training, scoring and generation alike.

    The whole conversation is rendered once per response, and the response is what follows the generation prompt: so
    the separator between "ASSISTANT:" and the answer is the template's own, and so is what ends the turn, up to the
    first special token that the template writes behind the answer; EOS where it writes nothing there. A sequence starts
    with one BOS where the tokenizer or the template gives it one. Special tokens that an answer quotes are tokenised as
    the letters they are, and so are those in a question that mark turns.

    Raises InputError where the processor lacks a chat template or an EOS token, or a setting does not fit it.
    """

    def __init__(self, processor: ProcessorMixin, options: TextOptions | None = None) -> None:
        self.options = options or TextOptions()
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
        self.image_token_id: int = self.processor.image_token_id
        self.template = ChatTemplate(processor, self.options)
        self.tokens = SpecialTokens(processor)
        self._around: dict[str, tuple[str, str]] = {}  # what the template puts before an answer and after it
        self._forms: list[Form] = []
        self._turns: Turns | RowError
        try:
            self._turns = Turns.of(self.template)
        except RowError as error:  # it may still render the rows, such as those that begin with a system turn
            self._turns = error
        else:
            self.tokens.add_control(self._turns.texts())
            self._forms = self._turns.forms(self.tokens)
        self._said_rendered = False

    def row(self, row: PreferenceRow) -> EncodedRow:
        """Raises RowError where the template refuses the row, leaves a turn out, or gives it another number of images."""
        (encoded,) = self.rows([row])
        if isinstance(encoded, RowError):
            raise encoded
        return encoded

    def rows(self, rows: Sequence[PreferenceRow]) -> list[EncodedRow | RowError]:
        """Many rows at once, which is several times faster; each is what ``row`` returns or raises."""
        asked = self._asked(rows)
        sound = [(row, item) for row, item in zip(rows, asked, strict=True) if not isinstance(item, RowError)]
        answers = [self._answers(name, sound) for name in _RESPONSES]
        drafts = [self._draft(row, item, pair) for (row, item), *pair in zip(sound, *answers, strict=True)]
        texts = [text for draft in drafts if isinstance(draft, _Draft) for text in draft.texts()]
        ids = iter(self.tokens.ids(texts))
        found = iter([self._encoded(row, draft, ids) for (row, _), draft in zip(sound, drafts, strict=True)])
        return [item if isinstance(item, RowError) else next(found) for item in asked]

    def prompts(self, rows: Sequence[PromptRow]) -> list[list[int] | RowError]:
        """The prompts' ids alone, as ``rows`` has them: what a model is to answer."""
        asked = self._asked(rows)
        ids = iter(self.tokens.ids([item.prompt for item in asked if isinstance(item, _Asked)]))
        result = [item if isinstance(item, RowError) else next(ids) for item in asked]
        return [
            item if isinstance(item, RowError) else self._wrong_images(row, item) or item
            for row, item in zip(rows, result, strict=True)
        ]

    def end_of_turn(self) -> tuple[str, int | None]:
        """What ends an answer: ordinary text, mostly none, and the token behind it, if any.

        Raises RowError where the template refuses the simplest question.
        """
        end = end_of_turn(or_raise(self._turns).after, self.tokens)
        if not end:
            return "", self.tokenizer.eos_token_id
        found = self.tokens.find(end)
        if not found:
            return end.strip(), None
        return end.removesuffix(found[-1]).strip(), self.tokenizer.convert_tokens_to_ids(found[-1])

    # Prompts

    def _asked(self, rows: Sequence[PromptRow]) -> "list[_Asked | RowError]":
        planned = [self._planned(row) for row in rows]
        sound = [item.conversation for item in planned if isinstance(item, _Asked)]
        texts = iter(self.template.render(sound, prompt=True))
        result: list[_Asked | RowError] = []
        for item in planned:
            if isinstance(item, _Asked):
                text = next(texts)
                item = text if isinstance(text, RowError) else item.with_text(text)
            result.append(item)
        return result

    def _planned(self, row: PromptRow) -> "_Asked | RowError":
        """The conversation that the template gets, and of a rendered prompt its text."""
        try:
            rendered, form = self._recognised(row)
            if not rendered:
                messages = [self._quoted(message) for message in self._with_system(row.prompt)]
                kwargs = row.template_kwargs or {}
                return _Asked(Conversation(messages, row.where, "prompt", row.tools, kwargs))
            return self._rendered(row, form)
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

    def _recognised(self, row: PromptRow) -> tuple[bool, Form | None]:
        """Whether the row's prompt is rendered already, and in which form; None: in none that is known."""
        setting = self.options.prompt_is_rendered
        if row.plain is None and setting:
            problem = "prompt_is_rendered is set, but the prompt is a list of messages"
            raise RowError.at(row.where, "prompt", problem, "give it as text, or leave the setting out")
        if row.plain is None or setting is False:
            return False, None
        for form in self._forms:
            if form.fits(row.plain, own=True):
                return True, form
        for form in KNOWN if setting is None else ():
            if form.fits(row.plain, own=False):
                problem = f"already contains turns as {form.name} writes them, which the chat template does not"
                remedy = "set the chat_template that fits, or prompt_is_rendered (true: taken as it is; false: a user's words)"
                raise RowError.at(row.where, "prompt", problem, remedy)
        return bool(setting), None

    def _rendered(self, row: PromptRow, form: Form | None) -> "_Asked":
        turns = or_raise(self._turns)
        for name, given in (
            ("tools", row.tools),
            ("system", row.prompt[0]["role"] == "system"),
            ("system_prompt", self.options.system_prompt),
            ("chat_template_kwargs", row.template_kwargs),
        ):
            if given:
                problem = f"the prompt already contains the template's turns, so {name} has no place in it"
                remedy = "leave it out, or set prompt_is_rendered: false"
                raise RowError.at(row.where, "prompt" if name == "system_prompt" else name, problem, remedy)
        assert row.plain is not None
        text = with_images(row.plain, self.processor.image_token, self.template)
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
        return _Asked(Conversation(question().messages, row.where, "prompt"), rendered=prompt, between=between)

    def _wrong_images(self, row: PromptRow, prompt_ids: list[int]) -> RowError | None:
        images = prompt_ids.count(self.image_token_id)
        if images == len(row.images):
            return None
        problem = f"the chat template renders {images} image placeholders for {len(row.images)} images"
        remedy = f"the text itself must not hold {self.processor.image_token}"
        if row.plain is not None and self._recognised(row)[0]:
            problem = f"holds {images} image placeholders for {len(row.images)} images, and already contains its turns"
            remedy = f"give one {self.processor.image_token} per image"
        return RowError.at(row.where, "prompt", problem, remedy)

    # Answers

    def _answers(self, name: str, rows: "Sequence[tuple[PreferenceRow, _Asked]]") -> "list[tuple[str, str | RowError]]":
        """Of each row the response's text, and what the template makes of the conversation with it."""
        texts = [self._answer(row, name, asked) for row, asked in rows]
        # An empty one is refused below; a template might make something else of it.
        given = [asked.conversation.answered(text or "?", name) for (_, asked), text in zip(rows, texts, strict=True)]
        return list(zip(texts, self.template.render(given, prompt=False), strict=True))

    def _answer(self, row: PreferenceRow, name: str, asked: "_Asked") -> str:
        """The answer's text with what it quotes marked; beside a rendered prompt without what the template adds, which
        such data mostly holds too."""
        text: str = getattr(row, name)
        if asked.between is not None and not isinstance(self._turns, RowError):
            text = self._without_end(text, self._turns.after).removeprefix(asked.between)
        return self.tokens.quote(text, answer=True)

    def _without_end(self, text: str, after: str) -> str:
        end = end_of_turn(after, self.tokens)
        for ending in (after, after.rstrip(), end, end.strip(), self.tokenizer.eos_token):
            for kept in (text, text.rstrip()):
                if ending and kept.endswith(ending):
                    return kept.removesuffix(ending)
        return text

    def _draft(
        self, row: PreferenceRow, asked: "_Asked", answers: list[tuple[str, str | RowError]]
    ) -> "_Draft | RowError":
        try:
            responses = [
                self._ended(row, name, asked, text, or_raise(whole))
                for name, (text, whole) in zip(_RESPONSES, answers, strict=True)
            ]
        except RowError as error:
            return error
        return _Draft(asked.prompt, responses, asked.rendered is not None)

    def _ended(self, row: PreferenceRow, name: str, asked: "_Asked", text: str, whole: str) -> "_Response":
        if not text.strip():
            raise RowError.at(row.where, name, "is empty", "a response needs at least one word")
        before, middle, after = self._separated(row, name, asked, text, whole)
        end = end_of_turn(after, self.tokens)
        return _Response((before if asked.between is None else asked.between), middle + end, not end)

    def _separated(self, row: PreferenceRow, name: str, asked: "_Asked", text: str, whole: str) -> tuple[str, str, str]:
        """What the template writes in front of the answer, the answer as it writes it, and what it puts behind."""
        if not whole.startswith(asked.text):
            problem = "the chat template changes the prompt when an answer follows it"
            raise RowError.at(row.where, name, problem, "training needs a template that only adds the answer")
        rest = whole[len(asked.text) :]
        key = repr((asked.conversation.tools, asked.conversation.kwargs))
        if key not in self._around or _middle(rest, text, *self._around[key]) is None:
            standin = self.template.text_of(asked.conversation.answered(_STANDIN, name), prompt=False)
            before, _, after = standin[len(asked.text) :].partition(_STANDIN)
            self._around[key] = (before, after)
        before, after = self._around[key]
        middle = _middle(rest, text, before, after)
        if middle is None:
            problem = "the chat template changes the answer's text"
            raise RowError.at(row.where, name, problem, "training needs a template that keeps it")
        return before, middle, after

    def _encoded(
        self, row: PreferenceRow, draft: "_Draft | RowError", tokenized: Iterator[list[int]]
    ) -> EncodedRow | RowError:
        """tokenized: the ids of every draft's texts, in order."""
        if isinstance(draft, RowError):
            return draft
        prompt_ids = next(tokenized)
        responses = []
        for answer in draft.answers:
            ids = next(tokenized)
            if ids[: len(prompt_ids)] == prompt_ids:
                ids = ids[len(prompt_ids) :]
            else:  # a token spans the seam: both branches share the prompt's ids, so the response keeps its own
                ids = self.tokens.behind(answer.before + answer.text)
            responses.append([*ids, self.tokenizer.eos_token_id] if answer.needs_eos else ids)
        chosen, rejected = responses
        return self._wrong_images(row, prompt_ids) or EncodedRow(prompt_ids, chosen, rejected, draft.rendered)


def _middle(rest: str, text: str, before: str, after: str) -> str | None:
    """The answer as the template writes it between what it puts around it; None where it is not the answer's text.

    Some templates strip the answer; none may do more.
    """
    if not (rest.startswith(before) and rest.endswith(after)) or len(rest) < len(before) + len(after):
        return None
    middle = rest[len(before) : len(rest) - len(after)]
    return middle if middle in text and middle.strip() == text.strip() else None


class _Asked(NamedTuple):
    """A prompt on its way. text: what the template makes of the conversation.

    rendered, between: of a prompt that was rendered already, its own text, and what stands between it and the answer;
    the conversation is then a stand-in, from which the template's way with answers is taken.
    """

    conversation: Conversation
    text: str = ""
    rendered: str | None = None
    between: str | None = None

    def with_text(self, text: str) -> "_Asked":
        return self._replace(text=text)

    @property
    def prompt(self) -> str:
        return self.text if self.rendered is None else self.rendered


class _Response(NamedTuple):
    """A response as text: what separates it from the prompt; it, with what ends the turn; whether EOS is to end it."""

    before: str
    text: str
    needs_eos: bool


class _Draft(NamedTuple):
    """A row as text."""

    prompt: str
    answers: list[_Response]
    rendered: bool

    def texts(self) -> list[str]:
        """What is to be tokenised: the prompt, and the prompt with each answer."""
        return [self.prompt, *(self.prompt + answer.before + answer.text for answer in self.answers)]
