"""Messages → token ids, through the processor's chat template."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import ProcessorMixin

from mdpo.errors import InputError

from .messages import Message
from .problem import RowError
from .rows import PreferenceRow

_RESPONSES = ("chosen", "rejected")
_STANDIN = "ANSWER-STANDS-HERE"


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """prompt_ids with one placeholder per image, not yet expanded; responses with their EOS."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Encoder:
    """Renders and tokenises rows as the model was tuned to see them.

    The whole conversation is rendered once per response, and the response is what follows the generation prompt: so
    the separator between "ASSISTANT:" and the answer is the template's own. One EOS ends each response. Special tokens
    that an answer quotes are tokenised as the letters they are.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
        if getattr(processor, "chat_template", None) is None:
            raise InputError("the processor has no chat template; save it with the one that the model was tuned with")
        self.image_token_id: int = self.processor.image_token_id
        self._special = {self.processor.image_token, *self.tokenizer.all_special_tokens} - {""}
        self._around = ("", "")  # what the template puts before an answer and after it, as last seen

    def row(self, row: PreferenceRow) -> EncodedRow:
        """Raises RowError where the template refuses the row, or gives it another number of images."""
        (encoded,) = self.rows([row])
        if isinstance(encoded, RowError):
            raise encoded
        return encoded

    def rows(self, rows: Sequence[PreferenceRow]) -> list[EncodedRow | RowError]:
        """Many rows at once, which is several times faster; each is what ``row`` returns or raises."""
        if not rows:
            return []
        prompts = self._render([(row.prompt, row.where, "prompt") for row in rows], add_generation_prompt=True)
        answers = [self._render([self._conversation(row, name) for row in rows]) for name in _RESPONSES]
        drafts = [self._draft(row, *texts) for row, *texts in zip(rows, prompts, *answers, strict=True)]
        texts = [text for draft in drafts if isinstance(draft, _Draft) for text in draft.texts()]
        ids = iter(self._tokenize(texts))
        return [self._encoded(row, draft, ids) for row, draft in zip(rows, drafts, strict=True)]

    def render(self, messages: list[Message], where: str = "prompt") -> str:
        """The prompt's text, ready for the model to answer."""
        (text,) = self._render([(messages, where, "prompt")], add_generation_prompt=True)
        if isinstance(text, RowError):
            raise text
        return text

    def _render(
        self, items: Sequence[tuple[list[Message], str, str]], *, add_generation_prompt: bool = False
    ) -> list[str | RowError]:
        """items: (messages, where, field)."""
        apply = functools.partial(
            self.processor.apply_chat_template, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        try:
            return apply([messages for messages, _, _ in items])
        except (TemplateError, TypeError, KeyError) as error:  # a template's raise_exception, or what it did not expect
            if len(items) > 1:  # which one it is
                return [self._render([item], add_generation_prompt=add_generation_prompt)[0] for item in items]
            _, where, field = items[0]
            problem = f"the chat template refuses it: {error}"
            return [RowError.at(where, field, problem, "give the roles and turns it expects")]

    def _conversation(self, row: PreferenceRow, name: str, text: str | None = None) -> tuple[list[Message], str, str]:
        answer = [{"type": "text", "text": getattr(row, name) if text is None else text}]
        return [*row.prompt, {"role": "assistant", "content": answer}], row.where, name

    def _draft(self, row: PreferenceRow, prompt: str | RowError, *wholes: str | RowError) -> "_Draft | RowError":
        try:
            prompt = _or_raise(prompt)
            answers = [
                self._separated(row, name, prompt, _or_raise(whole))
                for name, whole in zip(_RESPONSES, wholes, strict=True)
            ]
        except RowError as error:
            return error
        return _Draft(prompt, answers, [any(token in text for token in self._special) for _, text in answers])

    def _encoded(
        self, row: PreferenceRow, draft: "_Draft | RowError", tokenized: Iterator[list[int]]
    ) -> EncodedRow | RowError:
        """tokenized: the ids of every draft's texts, in order."""
        if isinstance(draft, RowError):
            return draft
        prompt_ids = next(tokenized)
        responses = []
        for (separator, text), literal in zip(draft.answers, draft.literal, strict=True):
            if literal:
                ids = self._literal(draft.prompt, separator, text)
            else:
                ids = next(tokenized)
                if ids[: len(prompt_ids)] == prompt_ids:
                    ids = ids[len(prompt_ids) :]
                else:  # a token spans the seam: both branches share the prompt's ids, so the response keeps its own
                    ids = self._plain(separator + text)
            responses.append([*ids, self.tokenizer.eos_token_id])
        images = prompt_ids.count(self.image_token_id)
        if images != len(row.images):
            problem = f"the chat template renders {images} image placeholders for {len(row.images)} images"
            remedy = f"the text itself must not hold {self.processor.image_token}"
            return RowError.at(row.where, "prompt", problem, remedy)
        return EncodedRow(prompt_ids, *responses)

    def _separated(self, row: PreferenceRow, name: str, prompt: str, whole: str) -> tuple[str, str]:
        """The template's text between prompt and answer, and the answer as the template writes it.

        Without what the template puts behind the answer: templates differ there, and one EOS is added.
        """
        if not whole.startswith(prompt):
            problem = "the chat template changes the prompt when an answer follows it"
            raise RowError.at(row.where, name, problem, "training needs a template that only adds the answer")
        text, answer = getattr(row, name), whole[len(prompt) :]
        if self._middle(answer, text) is None:
            (standin,) = self._render([self._conversation(row, name, _STANDIN)])
            before, _, after = _or_raise(standin)[len(prompt) :].partition(_STANDIN)
            self._around = (before, after)
        middle = self._middle(answer, text)
        if middle is None:
            problem = "the chat template changes the answer's text"
            raise RowError.at(row.where, name, problem, "training needs a template that keeps it")
        return self._around[0], middle

    def _middle(self, answer: str, text: str) -> str | None:
        before, after = self._around
        if not (answer.startswith(before) and answer.endswith(after)):
            return None
        middle = answer[len(before) : len(answer) - len(after)]
        # Some templates strip the answer; none may do more.
        return middle.rstrip() if middle.strip() == text.strip() else None

    def _literal(self, prompt: str, separator: str, text: str) -> list[int]:
        """The answer's ids with every special token in it spelled out.

        What stands in front of it stays in place, because a tokenizer may treat the start of a text in its own way.
        """
        context = prompt + separator
        start = max((context.rfind(token) + len(token) for token in self._special if token in context), default=0)
        before = self._plain(context[start:], literal=True)
        both = self._plain(context[start:] + text, literal=True)
        if start > len(prompt):  # the separator itself holds special tokens
            head = self._plain(context[len(prompt) :])
        else:
            before = self._plain(prompt[start:], literal=True)
            head = []
        if both[: len(before)] == before:
            return [*head, *both[len(before) :]]
        return [*head, *self._plain(text if head else separator + text, literal=True)]

    def _plain(self, text: str, *, literal: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"]

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        bos = self.tokenizer.bos_token
        result: list[list[int]] = [[] for _ in texts]
        for has_bos in (False, True):  # some templates write the BOS token themselves
            chosen = [at for at, text in enumerate(texts) if (bos is not None and text.startswith(bos)) == has_bos]
            if chosen:
                batch = self.tokenizer(
                    [texts[at] for at in chosen],
                    add_special_tokens=not has_bos,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                )
                for at, ids in zip(chosen, batch["input_ids"], strict=True):
                    result[at] = ids
        return result


class _Draft(NamedTuple):
    """A row as text. answers: (separator, text) of each response. literal: those that quote a special token."""

    prompt: str
    answers: list[tuple[str, str]]
    literal: list[bool]

    def texts(self) -> list[str]:
        """What is to be tokenised: the prompt, and the prompt with each answer that is not literal."""
        answers = zip(self.answers, self.literal, strict=True)
        return [self.prompt, *(self.prompt + separator + text for (separator, text), literal in answers if not literal)]


def _or_raise(text: str | RowError) -> str:
    if isinstance(text, RowError):
        raise text
    return text
