"""Prompts that already contain a template's turns, recognised by the marks around a user's turn."""

import os
import re
from dataclasses import dataclass

from .messages import IMAGE_TAG, Message, joint
from .problem import RowError
from .special_tokens import SpecialTokens
from .template import ChatTemplate, Conversation

_SYSTEM, _QUESTION, _ANSWER, _AGAIN = "stand-in system", "stand-in question 1", "stand-in answer", "stand-in question 2"


@dataclass(frozen=True, slots=True)
class Known:
    """What a tokenizer has, for ``Form``. bos: may precede everything. image: the placeholder. special: its tokens."""

    bos: str
    image: str
    special: frozenset[str]

    @classmethod
    def of(cls, tokens: SpecialTokens) -> "Known":
        return cls(tokens.tokenizer.bos_token or "", tokens.image_token, tokens.special)

    def bare(self, text: str, *others: str) -> str:
        """Without the tokens that may precede everything: the tokenizer's own, and ``others``."""
        text = text.strip()
        for bos in (self.bos, *others):
            text = text.removeprefix(bos).lstrip()
        return text

    def is_word(self, mark: str) -> bool:
        """Whether a mark is made of words and signs that ordinary questions contain too."""
        return not mark.startswith("<") and not any(mark.startswith(token) for token in self.special)

    def has_image(self, text: str) -> bool:
        return IMAGE_TAG in text or self.image in text


@dataclass(frozen=True, slots=True)
class Form:
    """The marks of a template, stripped.

    user: precedes a user's turn. assistant: ends a rendered prompt. heads: what rendered prompts start with, if not
    with ``user``.
    """

    name: str
    user: str
    assistant: str
    heads: tuple[str, ...] = ()

    def fits(self, text: str, known: Known) -> bool | None:
        """Whether a text consists of turns with these marks and ends with the assistant's; None if it may be.

        Special tokens are proof. Words such as "USER:" also occur in ordinary questions: they count only where a turn
        can begin, and are proof only if the text starts as rendered prompts do, or has an image inside such a turn.
        """
        text = known.bare(text)
        body = text.removesuffix(self.assistant)
        if body == text or not (self.user and self.assistant):
            return False
        if self.assistant[:1].isalnum() and not re.search(r"[\s>\]]\Z", body):
            return False
        turn = self._turn(body, known)
        if turn is None or not body[turn:].strip():
            return False
        if known.is_word(self.user) and not self._starts(body):
            return known.has_image(body[turn:]) or None
        return True

    def begins(self, text: str, known: Known, *, own: bool) -> bool:
        """Whether a text has a user's turn with these marks, even if it does not end with the assistant's.

        own: whether it is the model's own template, so that an assistant's turn behind it is enough even for words.
        """
        text = known.bare(text, *_BOS)
        turn = self._turn(text, known) if self.user and self.assistant else None
        if turn is None:
            return False
        if self._starts(text) or known.has_image(text[turn:]):
            return True
        answer = rf"(?:(?<=[\s>\]])|\A){re.escape(self.assistant)}"
        return (own or not known.is_word(self.user)) and re.search(answer, text[turn:]) is not None

    def _turn(self, text: str, known: Known) -> int | None:
        """Where the first user's turn has its text."""
        where = ""
        if known.is_word(self.user):
            where = rf"""(?:\A|[\n>\]]\s*|[.!?:;"')]\s{"+" if self.user[0].isalnum() else "*"})"""
        found = re.search(where + re.escape(self.user), text)
        return found.end() if found else None

    def agrees(self, written: str, known: Known) -> bool:
        """Whether a template that writes this text has these marks."""
        return self.assistant in written and self._turn(written, known) is not None

    def _starts(self, text: str) -> bool:
        return text.startswith((self.user, *filter(None, self.heads)))


_BOS = ("<s>", "<|begin_of_text|>", "<bos>")
# Forms in which preference data is published.
KNOWN = (
    Form("Vicuna", "USER:", "ASSISTANT:", ("A chat between",)),
    Form("ChatML", "<|im_start|>user", "<|im_start|>assistant", ("<|im_start|>system",)),
    Form("Llama 3", "<|start_header_id|>user<|end_header_id|>", "<|start_header_id|>assistant<|end_header_id|>"),
    Form("Llama 2 or Mistral", "[INST]", "[/INST]", ("<<SYS>>",)),
    Form("Phi-3 or Zephyr", "<|user|>", "<|assistant|>", ("<|system|>",)),
    Form("Gemma", "<start_of_turn>user", "<start_of_turn>model"),
    Form("Idefics", "User:", "Assistant:"),
    Form("HH-RLHF", "Human:", "Assistant:"),
    Form("Alpaca", "### Instruction:", "### Response:", ("Below is an instruction",)),
    Form("DeepSeek", "<|User|>", "<|Assistant|>"),
    Form("DeepSeek", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
    Form("LLaVA v0", "###Human:", "###Assistant:", ("A chat between",)),
    Form("Guanaco", "### Human:", "### Assistant:"),
    Form("OpenChat", "GPT4 Correct User:", "GPT4 Correct Assistant:"),
)


@dataclass(frozen=True, slots=True)
class Turns:
    """What a template writes around the turns of the simplest conversation.

    messages: that conversation, up to the question.
    head: text before the question. ask: text after it, in a prompt. between: text after that, before the answer.
    after: text after the answer, at the end. next: text between an answer and the next question, "" if refused.
    """

    messages: list[Message]
    head: str
    ask: str
    between: str
    after: str
    next: str

    @classmethod
    def of(cls, template: ChatTemplate) -> "Turns":
        """Raises RowError if the template refuses even that, both with and without a system turn."""
        try:
            return cls._of(template, [])
        except RowError as error:
            system = {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]}
            try:
                return cls._of(template, [system])
            except RowError:
                raise error from None

    @classmethod
    def _of(cls, template: ChatTemplate, system: list[Message]) -> "Turns":
        first = Conversation([*system, *question().messages])
        prompt = template.text_of(first, prompt=True)
        whole = template.text_of(first.answered(_ANSWER, "prompt"), prompt=False)
        head, _, ask = prompt.partition(_QUESTION)
        between, _, after = whole.removeprefix(prompt).partition(_ANSWER)
        again = Conversation([*first.answered(_ANSWER, "prompt").messages, *question(_AGAIN).messages])
        (text,) = template.render([again], prompt=True)
        following = text.partition(_ANSWER)[2].partition(_AGAIN)[0] if isinstance(text, str) else ""
        return cls(first.messages, head, ask, between, after, following)

    def texts(self) -> tuple[str, ...]:
        return (self.head, self.ask, self.between, self.after, self.next)

    def marks(self, own: Form, tokens: SpecialTokens) -> list[str]:
        """The special tokens that begin or end a turn, or what looks like them. own: the template's form.

        EOS is not among them: questions speak of it.
        """
        eos, found = tokens.tokenizer.eos_token, []
        for mark in (own.user, own.assistant, end_of_turn(self.after, tokens).strip()):
            first = next((token for token in tokens.find(mark) if mark.startswith(token)), mark)
            if first.startswith("<") or first in tokens.special:
                found.append(first)
        return [mark for mark in found if mark not in (tokens.tokenizer.bos_token, eos)]

    def forms(self, tokens: SpecialTokens) -> list[Form]:
        """The template's own marks, and the known forms that agree with it."""
        bos = tokens.tokenizer.bos_token or ""
        user = self.next.removeprefix(end_of_turn(self.after, tokens)).strip()
        user = user.removeprefix(tokens.tokenizer.eos_token).strip().removeprefix(bos).strip()
        if not self.head.rstrip().endswith(user):
            user = ""
        own = Form("the chat template", user, self.ask.strip(), (self.head.strip().removeprefix(bos).strip(),))
        written = self.head + _QUESTION + self.ask
        known = Known.of(tokens)
        return [own, *(form for form in KNOWN if form.agrees(written, known))]


def end_of_turn(after: str, tokens: SpecialTokens) -> str:
    """The part of ``after`` that ends a turn: up to its first special token, or all of its text if it has none.

    after: what a template writes behind an answer. Returns "" for whitespace alone.
    """
    found = tokens.find(after)
    if found:
        return after[: after.index(found[0]) + len(found[0])]
    return after.rstrip()


def question(text: str = _QUESTION) -> Conversation:
    return Conversation([{"role": "user", "content": [{"type": "text", "text": text}]}])


def image_text(template: ChatTemplate) -> str:
    """What the template writes for an image, without whitespace around it. Raises RowError if it refuses images."""
    content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    with_image = template.text_of(Conversation([{"role": "user", "content": content}]), prompt=False)
    without = template.text_of(question(), prompt=False)
    # Of texts, character by character.
    head = os.path.commonprefix(  # noqa: RUF071
        [with_image.partition(_QUESTION)[0], without.partition(_QUESTION)[0]]
    )
    return with_image.partition(_QUESTION)[0].removeprefix(head).strip()


def with_images(text: str, image_token: str, template: ChatTemplate) -> str:
    """The text with ``<image>`` replaced by what the template writes for an image."""
    if image_token in text or IMAGE_TAG not in text:
        return text
    return text.replace(IMAGE_TAG, image_text(template))


def cut_images(text: str, image_token: str, template: ChatTemplate) -> str:
    """The text without what stands for its images, each with the line break behind it."""
    if image_token not in text and IMAGE_TAG not in text:
        return text
    written = sorted({IMAGE_TAG, image_token, image_text(template)}, key=len, reverse=True)
    first, *rest = re.split(f"(?:{'|'.join(map(re.escape, written))})\n?", text)
    for piece in rest:
        first += joint(first, piece) + piece
    return first


def complete(text: str, turns: Turns, form: Form | None) -> tuple[str, str]:
    """A rendered prompt, and what separates it from the answer according to the template.

    Whitespace that the template writes at the end of a prompt (ChatML's line break) is added if it is missing, and the
    blank before an answer is not repeated if the prompt already ends with it.
    """
    mark = turns.ask.rfind(form.assistant) + len(form.assistant) if form is not None else len(turns.ask)
    rest = turns.ask[mark:]
    gap = "" if rest.strip() else rest
    blanks = text[len(text.rstrip()) :]
    if not (gap + turns.between).startswith(blanks):
        return text, ""
    if len(blanks) <= len(gap):
        return text + gap[len(blanks) :], turns.between
    return text, (gap + turns.between)[len(blanks) :]
