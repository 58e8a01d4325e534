"""Messages → token ids, through the processor's chat template."""

from dataclasses import dataclass

from transformers import ProcessorMixin

from mdpo.errors import InputError

from .rows import IMAGE_TAG, Message, PreferenceRow


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """prompt_ids with one placeholder per image, not yet expanded; responses with their EOS, where they keep it."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Encoder:
    """Renders and tokenises rows as the model was tuned to see them.

    The whole conversation is rendered once per response, and the response is what follows the generation prompt: so
    the separator between "ASSISTANT:" and the answer is the template's own. One EOS ends each response.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
        if getattr(processor, "chat_template", None) is None:
            raise InputError("the processor has no chat template; save it with the one that the model was tuned with")
        self.image_token_id = processor.image_token_id

    def row(self, row: PreferenceRow) -> EncodedRow:
        prompt = self.render(row.prompt)
        prompt_ids = self._tokenize(prompt)
        images = prompt_ids.count(self.image_token_id)
        if images != len(row.images):
            raise InputError(
                f"{row.where}: prompt: the chat template renders {images} image placeholders for {len(row.images)} images"
            )
        responses = [self._response(row, name, prompt, prompt_ids) for name in ("chosen", "rejected")]
        return EncodedRow(prompt_ids, *responses)

    def render(self, messages: list[Message]) -> str:
        """The prompt's text, ready for the model to answer."""
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _response(self, row: PreferenceRow, name: str, prompt: str, prompt_ids: list[int]) -> list[int]:
        text = getattr(row, name)
        answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        whole = self.processor.apply_chat_template([*row.prompt, answer], tokenize=False)
        if not whole.startswith(prompt):
            raise InputError(f"{row.where}: {name}: the chat template changes the prompt when an answer follows it")
        start = whole.find(text.strip(), len(prompt))
        if start < 0:
            raise InputError(f"{row.where}: {name}: the chat template changes the answer's text")
        # Up to the end of the answer: templates differ in what they put behind it, and one EOS is added below.
        response = whole[len(prompt) : start + len(text.strip())]
        eos = self.tokenizer.eos_token_id
        if IMAGE_TAG in response or self.processor.image_token in response:
            # An answer that quotes the placeholder means its letters, not an image.
            ids = self.tokenizer(response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return [*ids, eos]
        ids = self._tokenize(prompt + response)
        if ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:  # a token spans the seam: both branches share the prompt's ids, so the response keeps its own
            ids = self.tokenizer(response, add_special_tokens=False)["input_ids"]
        return [*ids, eos]

    def _tokenize(self, text: str) -> list[int]:
        # Some templates write the BOS token themselves.
        has_bos = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        return self.tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
