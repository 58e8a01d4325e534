"""Messages → token ids, through the processor's chat template."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import ProcessorMixin

from mdpo.errors import InputError

from .messages import without_images
from .problem import RowError
from .prompts import Asked, Prompts
from .rendered import end_of_turn
from .rows import PreferenceRow, PromptRow
from .spans import changed_spans
from .template import or_raise
from .text_options import TextOptions
from .token_weights import Answer, token_weights

_STANDIN = "ANSWER-STANDS-HERE"


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row's ids: prompt_ids with one placeholder per image, not yet expanded; responses with the end of their turn.

    contrast_ids: of the answer to the rejected picture; empty where the row has none, or it is not read.
    imageless_prompt_ids: of the prompt without its images; empty where the row has none, or it is not read.
    chosen_weights, rejected_weights: one per token of these responses; empty where each counts 1.
    rendered: whether the row's prompt already contained the template's turns and was taken as it is.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    contrast_ids: list[int] = field(default_factory=list)
    imageless_prompt_ids: list[int] = field(default_factory=list)
    chosen_weights: list[float] = field(default_factory=list)
    rejected_weights: list[float] = field(default_factory=list)
    rendered: bool = False


class Encoder:
    """Renders and tokenises rows as the model was tuned to see them: for training, scoring and generation alike.

    The whole conversation is rendered once per response, and the response is what follows the generation prompt. So the
    separator between "ASSISTANT:" and the answer is the template's own, and so is the end of the turn: what the
    template writes behind the answer up to its first special token, or EOS if it writes nothing there. A sequence
    starts with one BOS if the tokenizer or the template gives it one. Special tokens that an answer quotes are
    tokenised as letters, and so are those in a question that mark turns.

    drop_images: take what stands for an image out of rendered prompts. Other prompts have none by then.
    contrast: also the answers to the rejected pictures. imageless: also the prompts without their images.
    changed_weight: of the words that differ between the two answers, see ``changed_spans``; a row's own weights win.

    Raises InputError if the processor lacks a chat template or an EOS token, or if a setting does not fit it.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        options: TextOptions | None = None,
        *,
        drop_images: bool = False,
        contrast: bool = False,
        imageless: bool = False,
        changed_weight: float | None = None,
    ) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
        self.image_token_id: int = self.processor.image_token_id
        self.drop_images, self.imageless, self.changed_weight = drop_images, imageless, changed_weight
        self._names = ("chosen", "rejected", "contrast") if contrast else ("chosen", "rejected")
        self._prompts = Prompts(processor, options or TextOptions(), drop_images=drop_images)
        self.template = self._prompts.template
        self.tokens = self._prompts.tokens
        self._ends: dict[str, str] = {}  # what ends a turn, by what the template puts after an answer
        self._around: dict[str, tuple[str, str]] = {}  # what the template puts before an answer and after it

    def key(self) -> tuple[Any, ...]:
        """What the ids and weights depend on beside the row and its text's options."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return (
            self.template.text,
            self.image_token_id,
            self.drop_images,
            self.imageless,
            self._names,
            self.changed_weight,
            type(self.tokenizer).__name__,
            self.tokenizer.special_tokens_map,
            backend and backend.to_str(),
        )

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
        answers = [self._answers(name, sound) for name in self._names]
        drafts = [self._draft(row, item, given) for (row, item), *given in zip(sound, *answers, strict=True)]
        texts = [text for draft in drafts if isinstance(draft, _Draft) for text in draft.texts()]
        ids = iter(self.tokens.ids(texts))
        encoded = [self._encoded(row, draft, ids) for (row, _), draft in zip(sound, drafts, strict=True)]
        if self.imageless:
            encoded = self._with_imageless([row for row, _ in sound], encoded)
        found = iter(encoded)
        return [item if isinstance(item, RowError) else next(found) for item in asked]

    def _with_imageless(
        self, rows: Sequence[PreferenceRow], encoded: list[EncodedRow | RowError]
    ) -> list[EncodedRow | RowError]:
        having = [at for at, row in enumerate(rows) if row.images and not isinstance(encoded[at], RowError)]
        blind = [replace(rows[at], images=(), prompt=without_images(rows[at].prompt)) for at in having]
        for at, ids in zip(having, self.prompts(blind, drop_images=True), strict=True):
            one = encoded[at]
            if isinstance(one, EncodedRow):
                encoded[at] = ids if isinstance(ids, RowError) else replace(one, imageless_prompt_ids=ids)
        return encoded

    def prompts(self, rows: Sequence[PromptRow], *, drop_images: bool = False) -> list[list[int] | RowError]:
        """The prompt_ids of ``rows`` alone: what a model is asked. drop_images: as for the encoder, for these rows."""
        asked = self._prompts.asked(rows, drop_images=drop_images)
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
            problem = (
                f"contains {images} image placeholders for {len(row.images)} images, and already contains its turns"
            )
            remedy = f"give one {self.processor.image_token} per image"
            if self._prompts.options.prompt_is_rendered is None:
                remedy += ", or set prompt_is_rendered: false (a user's words)"
        return RowError.at(row.where, "prompt", problem, remedy)

    def _answers(
        self, name: str, rows: Sequence[tuple[PreferenceRow, Asked]]
    ) -> list[tuple[str, str | RowError] | None]:
        """Each row's response as text, and the whole conversation with it, rendered; None where it has no such
        response.
        """
        texts = [
            self._prompts.answer(getattr(row, name), asked) for row, asked in rows if getattr(row, name) is not None
        ]
        having = [asked for row, asked in rows if getattr(row, name) is not None]
        # An empty one is refused below; a template might make something else of it.
        given = [asked.conversation.answered(text or "?", name) for asked, text in zip(having, texts, strict=True)]
        found = iter(zip(texts, self.template.render(given, prompt=False), strict=True))
        return [None if getattr(row, name) is None else next(found) for row, _ in rows]

    def _draft(
        self, row: PreferenceRow, asked: Asked, answers: list[tuple[str, str | RowError] | None]
    ) -> "_Draft | RowError":
        try:
            responses = {
                name: self._ended(row, name, asked, answer[0], or_raise(answer[1]))
                for name, answer in zip(self._names, answers, strict=True)
                if answer is not None
            }
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
        return _Response((before if asked.between is None else asked.between), middle, end)

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
        responses: dict[str, list[int]] = {}
        for name, answer in draft.answers.items():
            ids = next(tokenized)
            if ids[: len(prompt_ids)] == prompt_ids:
                ids = ids[len(prompt_ids) :]
            else:  # a token spans the seam: both branches share the prompt's ids, so the response keeps its own
                ids = self.tokens.behind(answer.before + answer.text)
            responses[name] = ids if answer.end else [*ids, self.tokenizer.eos_token_id]
        wrong = self._wrong_images(row, prompt_ids)
        if wrong is not None:
            return wrong
        try:
            weights = self._weights(row, draft, responses)
        except RowError as error:
            return error
        return EncodedRow(
            prompt_ids,
            responses["chosen"],
            responses["rejected"],
            contrast_ids=responses.get("contrast", []),
            chosen_weights=weights.get("chosen", []),
            rejected_weights=weights.get("rejected", []),
            rendered=draft.rendered,
        )

    def _weights(self, row: PreferenceRow, draft: "_Draft", responses: dict[str, list[int]]) -> dict[str, list[float]]:
        """The weights of the answers that have any, by name. Raises RowError as ``token_weights``."""
        spans = {"chosen": row.chosen_weights, "rejected": row.rejected_weights}
        changed = None if any(spans.values()) else self.changed_weight
        if changed is not None:
            spans = dict(zip(spans, changed_spans(row.chosen, row.rejected, changed), strict=True))
        weights = {}
        for name in (name for name, found in spans.items() if found):
            field = "changed_weight" if changed is not None else f"{name}_weights"
            response = draft.answers[name]
            answer = Answer(
                getattr(row, name), draft.prompt, response.before, response.middle, response.end, responses[name]
            )
            weights[name] = token_weights(spans[name], answer, self.tokens, row.where, field)
        return weights


def _middle(rest: str, text: str, before: str, after: str) -> str | None:
    """The answer as the template writes it; None if that is not the answer's text.

    Some templates strip the answer; none may do more.
    """
    if not (rest.startswith(before) and rest.endswith(after)) or len(rest) < len(before) + len(after):
        return None
    middle = rest[len(before) : len(rest) - len(after)]
    return middle if middle in text and middle.strip() == text.strip() else None


class _Response(NamedTuple):
    """A response as text. before: separates it from the prompt. end: of its turn; "" where that is EOS."""

    before: str
    middle: str
    end: str

    @property
    def text(self) -> str:
        return self.middle + self.end


class _Draft(NamedTuple):
    """A row as text."""

    prompt: str
    answers: dict[str, _Response]
    rendered: bool

    def texts(self) -> list[str]:
        """The texts to tokenise: the prompt, and the prompt with each answer."""
        return [self.prompt, *(self.prompt + answer.before + answer.text for answer in self.answers.values())]
