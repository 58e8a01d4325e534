"""Prompts that are rendered already: recognised by the marks that a template puts around a user's turn."""

import re
from dataclasses import dataclass

from .messages import IMAGE_TAG, Message
from .problem import RowError
from .special_tokens import SpecialTokens
from .template import ChatTemplate, Conversation

_SYSTEM, _QUESTION, _ANSWER, _AGAIN = "stand-in system", "stand-in question 1", "stand-in answer", "stand-in question 2"


@dataclass(frozen=True, slots=True)
class Form:
    """A template's marks, without the blanks around them.

    user: what stands in front of a user's turn. assistant: what a rendered prompt ends with. heads: what such prompts
    begin with, other than ``user``.
    """

    name: str
    user: str
    assistant: str
    heads: tuple[str, ...] = ()

    def fits(self, text: str, *, bos: str = "", image: str = IMAGE_TAG) -> bool | None:
        """Whether a text consists of turns with these marks, the last of them the assistant's, still to be written.

        Marks made of letters, such as "USER:", occur in what people ask, too. They count only where a turn can begin,
        and None, which is "it looks so", is returned unless a text begins as rendered ones do, or has its image inside
        such a turn. bos: what may stand in front. image: the model's own placeholder.
        """
        text = text.strip().removeprefix(bos).lstrip()
        body = text.removesuffix(self.assistant)
        if body == text or not (self.user and self.assistant):
            return False
        if _is_word(self.assistant) and not re.search(r"[\s>\]]\Z", body):
            return False
        if _is_word(self.user):
            turn = re.search(rf"""(?:\A|[\n>\]]\s*|[.!?:;"')]\s+){re.escape(self.user)}""", body)
        else:
            turn = re.search(re.escape(self.user), body)
        if turn is None or not body[turn.end() :].strip():
            return False
        if _is_word(self.user) and not body.startswith((self.user, *filter(None, self.heads))):
            return any(body.find(tag) >= turn.end() for tag in (IMAGE_TAG, image)) or None
        return True


# Those that data files are found in.
KNOWN = (
    Form("Vicuna", "USER:", "ASSISTANT:", ("A chat between",)),
    Form("ChatML", "<|im_start|>user", "<|im_start|>assistant"),
    Form("Llama 3", "<|start_header_id|>user<|end_header_id|>", "<|start_header_id|>assistant<|end_header_id|>"),
    Form("Llama 2 or Mistral", "[INST]", "[/INST]"),
    Form("Phi-3 or Zephyr", "<|user|>", "<|assistant|>"),
    Form("Gemma", "<start_of_turn>user", "<start_of_turn>model"),
    Form("Idefics", "User:", "Assistant:"),
    Form("LLaVA v0", "###Human:", "###Assistant:"),
)


def _is_word(mark: str) -> bool:
    return mark[:1].isalnum()


@dataclass(frozen=True, slots=True)
class Turns:
    """What a template writes around the turns of the simplest conversation.

    messages: that conversation up to the question. head: in front of the user's words. ask: behind them, where an answer is to follow. between: after that and in front
    of the answer. after: behind the answer, at the end. next: from there to the user's next words, "" if unknown.
    """

    messages: list[Message]
    head: str
    ask: str
    between: str
    after: str
    next: str

    @classmethod
    def of(cls, template: ChatTemplate) -> "Turns":
        """Raises RowError where the template refuses even that, with a system turn in front and without one."""
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
        next = text.partition(_ANSWER)[2].partition(_AGAIN)[0] if isinstance(text, str) else ""
        return cls(first.messages, head, ask, between, after, next)

    def texts(self) -> tuple[str, ...]:
        return (self.head, self.ask, self.between, self.after, self.next)

    def forms(self, tokens: SpecialTokens) -> list[Form]:
        """The marks of this template, most exact first."""
        bos = tokens.tokenizer.bos_token or ""
        user = self.next.removeprefix(end_of_turn(self.after, tokens)).strip()
        user = user.removeprefix(tokens.tokenizer.eos_token).strip().removeprefix(bos).strip()
        if not self.head.rstrip().endswith(user):
            user = ""
        own = Form("the chat template", user, self.ask.strip(), (self.head.strip().removeprefix(bos).strip(),))
        written = self.head + _QUESTION + self.ask
        return [own, *(form for form in KNOWN if form.user in written and form.assistant in written)]


def end_of_turn(after: str, tokens: SpecialTokens) -> str:
    """Of what a template writes behind an answer that which ends the turn: up to its first special token, or its text
    where it holds none; "" where there are blanks alone."""
    found = tokens.find(after)
    if found:
        return after[: after.index(found[0]) + len(found[0])]
    return after.rstrip()


def question(text: str = _QUESTION) -> Conversation:
    return Conversation([{"role": "user", "content": [{"type": "text", "text": text}]}])


def image_text(template: ChatTemplate) -> str:
    """What the template writes for an image, without the line breaks around it. Raises RowError where it refuses one."""
    content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    with_image = template.text_of(Conversation([{"role": "user", "content": content}]), prompt=False)
    without = template.text_of(question(), prompt=False)
    head = without.partition(_QUESTION)[0]
    return with_image.partition(_QUESTION)[0].removeprefix(head).strip("\n")


def with_images(text: str, image_token: str, template: ChatTemplate) -> str:
    """The text with the model's own placeholder where it has the tag that stands for one in data files."""
    if image_token in text or IMAGE_TAG not in text:
        return text
    return text.replace(IMAGE_TAG, image_text(template))


def complete(text: str, turns: Turns, form: Form | None) -> tuple[str, str]:
    """A rendered prompt, and what stands between it and the answer, as the template has it.

    What the text leaves out at its end (the line break behind ChatML's "assistant") is put there, and what it holds of
    the blank in front of the answer is not written twice.
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
