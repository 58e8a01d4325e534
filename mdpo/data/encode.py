"""Messages → token ids, through the processor's chat template."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import ProcessorMixin

from mdpo.errors import InputError

from .problem import RowError
from .prompts import Asked, Prompts
from .rendered import end_of_turn
from .rows import PreferenceRow, PromptRow
from .template import or_raise
from .text_options import TextOptions

_RESPONSES = ("chosen", "rejected")
_STANDIN = "ANSWER-STANDS-HERE"


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row's ids: prompt_ids with one placeholder per image, not yet expanded; responses with the end of their turn.

    rendered: whether the row's prompt already contained the template's turns and was taken as it is.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    rendered: bool = False


class Encoder:
    """Renders and tokenises rows as the model was tuned to see them: for training, scoring and generation alike.

    The whole conversation is rendered once per response, and the response is what follows the generation prompt. So the
    separator between "ASSISTANT:" and the answer is the template's own, and so is the end of the turn: what the template
    writes behind the answer up to its first special token, or EOS if it writes nothing there. A sequence starts with one
    BOS if the tokenizer or the template gives it one. Special tokens that an answer quotes are tokenised as letters, and
    so are those in a question that mark turns.

    drop_images: take what stands for an image out of rendered prompts. Other prompts have none by then.

    Raises InputError if the processor lacks a chat template or an EOS token, or if a setting does not fit it.
    """

    def __init__(
        self, processor: ProcessorMixin, options: TextOptions | None = None, *, drop_images: bool = False
    ) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
        self.image_token_id: int = self.processor.image_token_id
        self.drop_images = drop_images
        self._prompts = Prompts(processor, options or TextOptions(), drop_images=drop_images)
        self.template = self._prompts.template
        self.tokens = self._prompts.tokens
        self._ends: dict[str, str] = {}  # what ends a turn, by what the template puts after an answer
        self._around: dict[str, tuple[str, str]] = {}  # what the template puts before an answer and after it

    def row(self, row: PreferenceRow) -> EncodedRow:
        """Raises RowError if the template refuses the row, drops a turn, or writes another number of images."""
        (encoded,) = self.rows([row])
        if isinstance(encoded, RowError):
            raise encoded
        return encoded

    def rows(self, rows: Sequence[PreferenceRow]) -> list[EncodedRow | RowError]:
        """Many rows at once, which is several times faster; each is what ``row`` returns or raises."""
        asked = self._prompts.asked(rows)
        sound = [(row, item) for row, item in zip(rows, asked, strict=True) if not isinstance(item, RowError)]
        answers = [self._answers(name, sound) for name in _RESPONSES]
        drafts = [self._draft(row, item, pair) for (row, item), *pair in zip(sound, *answers, strict=True)]
        texts = [text for draft in drafts if isinstance(draft, _Draft) for text in draft.texts()]
        ids = iter(self.tokens.ids(texts))
        found = iter([self._encoded(row, draft, ids) for (row, _), draft in zip(sound, drafts, strict=True)])
        return [item if isinstance(item, RowError) else next(found) for item in asked]

    def prompts(self, rows: Sequence[PromptRow]) -> list[list[int] | RowError]:
        """The prompt_ids of ``rows`` alone: what a model is asked."""
        asked = self._prompts.asked(rows)
        ids = iter(self.tokens.ids([item.prompt for item in asked if isinstance(item, Asked)]))
        result = [item if isinstance(item, RowError) else next(ids) for item in asked]
        return [
            item if isinstance(item, RowError) else self._wrong_images(row, item) or item
            for row, item in zip(rows, result, strict=True)
        ]

    def end_of_turn(self) -> tuple[str, int | None]:
        """What ends an answer: ordinary text (usually none), and the id of the token behind it (None if there is none).

        Raises RowError if the template refuses the simplest question.
        """
        end = end_of_turn(or_raise(self._prompts.turns).after, self.tokens)
        if not end:
            return "", self.tokenizer.eos_token_id
        found = self.tokens.find(end)
        if not found:
            return end.strip(), None
        return end.removesuffix(found[-1]).strip(), self.tokenizer.convert_tokens_to_ids(found[-1])

    def _wrong_images(self, row: PromptRow, prompt_ids: list[int]) -> RowError | None:
        images = prompt_ids.count(self.image_token_id)
        if images == len(row.images):
            return None
        problem = f"the chat template renders {images} image placeholders for {len(row.images)} images"
        remedy = f"the text itself must not hold {self.processor.image_token}"
        if row.plain is not None and self._prompts.recognised(row)[0]:
            problem = f"holds {images} image placeholders for {len(row.images)} images, and already contains its turns"
            remedy = f"give one {self.processor.image_token} per image"
            if self._prompts.options.prompt_is_rendered is None:
                remedy += ", or set prompt_is_rendered: false (a user's words)"
        return RowError.at(row.where, "prompt", problem, remedy)

    def _answers(self, name: str, rows: Sequence[tuple[PreferenceRow, Asked]]) -> list[tuple[str, str | RowError]]:
        """Each row's response as text, and the whole conversation with it, rendered."""
        texts = [self._prompts.answer(getattr(row, name), asked) for row, asked in rows]
        # An empty one is refused below; a template might make something else of it.
        given = [asked.conversation.answered(text or "?", name) for (_, asked), text in zip(rows, texts, strict=True)]
        return list(zip(texts, self.template.render(given, prompt=False), strict=True))

    def _draft(
        self, row: PreferenceRow, asked: Asked, answers: list[tuple[str, str | RowError]]
    ) -> "_Draft | RowError":
        try:
            responses = [
                self._ended(row, name, asked, text, or_raise(whole))
                for name, (text, whole) in zip(_RESPONSES, answers, strict=True)
            ]
        except RowError as error:
            return error
        return _Draft(asked.prompt, responses, asked.rendered is not None)

    def _ended(self, row: PreferenceRow, name: str, asked: Asked, text: str, whole: str) -> "_Response":
        self._prompts.check_answer(getattr(row, name), row.where, name)
        if not text.strip():
            raise RowError.at(row.where, name, "is empty", "a response needs at least one word")
        before, middle, after = self._separated(row, name, asked, text, whole)
        if after not in self._ends:
            self._ends[after] = end_of_turn(after, self.tokens)
        end = self._ends[after]
        return _Response((before if asked.between is None else asked.between), middle + end, not end)

    def _separated(self, row: PreferenceRow, name: str, asked: Asked, text: str, whole: str) -> tuple[str, str, str]:
        """The template's text before the answer, the answer as it writes it, and its text behind the answer."""
        if not whole.startswith(asked.text):
            problem = "the chat template changes the prompt when an answer follows it"
            raise RowError.at(row.where, name, problem, "training needs a template that only adds the answer")
        rest = whole[len(asked.text) :]
        tools, kwargs = asked.conversation.tools, asked.conversation.kwargs
        key = repr((tools, kwargs)) if tools or kwargs else ""
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
    """The answer as the template writes it; None if that is not the answer's text.

    Some templates strip the answer; none may do more.
    """
    if not (rest.startswith(before) and rest.endswith(after)) or len(rest) < len(before) + len(after):
        return None
    middle = rest[len(before) : len(rest) - len(after)]
    return middle if middle in text and middle.strip() == text.strip() else None


class _Response(NamedTuple):
    """A response as text. before: separates it from the prompt. text: includes the end of the turn, unless needs_eos."""

    before: str
    text: str
    needs_eos: bool


class _Draft(NamedTuple):
    """A row as text."""

    prompt: str
    answers: list[_Response]
    rendered: bool

    def texts(self) -> list[str]:
        """The texts to tokenise: the prompt, and the prompt with each answer."""
        return [self.prompt, *(self.prompt + answer.before + answer.text for answer in self.answers)]
