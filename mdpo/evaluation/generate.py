"""Answers to questions about images, in batches: greedy by default, by beams where asked, or as a caller chooses
tokens.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, ProcessorMixin

from mdpo.data import PromptRow, TextOptions
from mdpo.data.encode import Encoder
from mdpo.data.image_tokens import ImageTokens, image_settings
from mdpo.data.images import open_image
from mdpo.data.problem import RowError
from mdpo.errors import InputError
from mdpo.models.folder import short

from .endings import Endings, Written

# Ways of generating other than one token after the other, some of which are code on the hub; limits of time and length;
# penalties; and what would make the result anything but ids.
_UNSET = (
    "penalty_alpha", "dola_layers", "constraints", "force_words_ids", "num_beam_groups", "diversity_penalty",
    "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type", "assistant_ensemble_weight",
    "cache_implementation", "cache_config", "compile_config", "guidance_scale", "watermarking_config", "stop_strings",
    "max_time", "max_length", "min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "exponential_decay_length_penalty", "return_dict_in_generate", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "token_healing",
)  # fmt: skip


def generate(
    model: nn.Module,
    processor: ProcessorMixin,
    rows: Sequence[PromptRow],
    *,
    max_new_tokens: int = 1024,
    batch_size: int = 8,
    num_beams: int = 1,
    text: TextOptions | None = None,
) -> Iterator[str]:
    """Yields the model's answer to each row, in order.

    The model reads the very prompt ids that training has, and an answer ends with what ends a turn there, or with what
    the model's generation config stops at. Deterministic: what that config says of sampling, penalties and other ways
    of generating is overruled. Rows of a batch are padded to one length, which changes an answer only where two
    tokens are equal to within rounding.

    Args:
        model: bare or PEFT, on its device.
        processor: the model's.
        rows: the questions.
        max_new_tokens: length at which an answer is cut, in tokens.
        batch_size: answers at a time.
        num_beams: of a beam search; 1 is greedy.
        text: how rows become text, as in training; None: as the processor has it.

    Raises:
        RowError: as ``Encoder``.
        InputError: the model or its processor fails on the rows.
    """
    writer = Writer(model, processor, text)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for batch in tqdm(batches, "generating", leave=False, disable=None):
        yield from (answer.text for answer in writer(batch, max_new_tokens=max_new_tokens, num_beams=num_beams))


class Writer:
    """A model that answers a batch of questions at a time. model, text: as for ``generate``.

    Raises InputError where the processor does not fit the model.
    """

    def __init__(self, model: nn.Module, processor: ProcessorMixin, text: TextOptions | None = None) -> None:
        self._model: Any = model
        self._base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with _named("the processor does not fit the model"):
            self._prompts = _Prompts(self._base, processor, text)
        model.eval()

    @torch.no_grad()
    def __call__(
        self,
        rows: Sequence[PromptRow],
        *,
        max_new_tokens: int,
        num_beams: int = 1,
        choice: LogitsProcessor | None = None,
    ) -> list[Written]:
        """One answer to each row, in order.

        choice: leaves of the (B, V) scores at each step those of the tokens to choose from; the likeliest is taken.

        Raises as ``generate``.
        """
        inputs = self.inputs(rows)
        with _named("the model does not generate", rows), self._own_settings():
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=num_beams,
                repetition_penalty=1.0,
                num_return_sequences=1,
                logits_processor=LogitsProcessorList([] if choice is None else [choice]),
                **self._prompts.endings.arguments(),
            )
        return list(map(self._prompts.endings.written, tokens[:, inputs["input_ids"].shape[1] :].tolist()))

    def inputs(self, rows: Sequence[PromptRow]) -> dict[str, Tensor]:
        """What the model's ``generate`` takes, on its device: input_ids and attention_mask, (B, S) int64, padded on the
        left, and what the image processor makes of the images. Raises as ``generate``."""
        rows = list(rows)  # a row is read anew each time that a file's rows are asked for it
        device = next(self._model.parameters()).device
        return {name: tensor.to(device) for name, tensor in self._prompts(rows).items()}

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        """The model with what its generation config says of other ways to generate, and of what comes back, unset."""
        before = self._base.generation_config
        self._base.generation_config = copy.deepcopy(before)
        for name in _UNSET:
            setattr(self._base.generation_config, name, None)
        try:
            yield
        finally:
            self._base.generation_config = before


@contextmanager
def _named(what: str, rows: Sequence[PromptRow] = ()) -> Iterator[None]:
    """Makes an InputError of whatever a foreign config or processor leads transformers to."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        at = f"{rows[0].where}: " if rows else ""
        raise InputError(
            f"{at}{what}: {short(error)}; its config.json or processor_config.json is not the one that belongs to it"
        ) from error


class _Prompts:
    """Rows → what a model's ``generate`` takes."""

    def __init__(self, base: Any, processor: ProcessorMixin, text: TextOptions | None) -> None:
        self.processor: Any = processor
        self.encoder = Encoder(processor, text)
        self.endings = Endings(self.encoder, base.generation_config)
        self.image_tokens = ImageTokens(processor)
        self.settings = image_settings(processor) | {"return_tensors": "pt"}
        # Newer models tell images from text by a mask of their own; Gemma 3 calls it by another name.
        self.known = inspect.signature(base.forward).parameters
        names = ("mm_token_type_ids", *(["token_type_ids"] if base.config.model_type == "gemma3" else []))
        self.mask = next((name for name in names if name in self.known), None)

    def __call__(self, rows: Sequence[PromptRow]) -> dict[str, Tensor]:
        """As ``Writer.inputs``. A row that comes several times is read once."""
        once = list({id(row): row for row in rows}.values())
        read = {id(row): found for row, found in zip(once, self._read(once), strict=True)}
        prompts, images = zip(*(read[id(row)] for row in rows), strict=True)
        length = max(map(len, prompts))
        ids = torch.full((len(rows), length), self.endings.pad)
        attention = torch.zeros_like(ids)
        for at, prompt in enumerate(prompts):
            ids[at, length - len(prompt) :] = prompt
            attention[at, length - len(prompt) :] = 1
        inputs = {"input_ids": ids, "attention_mask": attention}
        if self.mask is not None:
            inputs[self.mask] = ((ids == self.encoder.image_token_id) & attention.bool()).long()
        given = [own for own in images if own]
        if given:  # a list per row, by which Idefics3 and SmolVLM tell whose they are; others read one after the other
            with _named("the image processor fails", rows):
                made = self.processor.image_processor(images=given, **self.settings)
            inputs |= {name: value for name, value in made.items() if name in self.known}
        return inputs

    def _read(self, rows: Sequence[PromptRow]) -> Iterator[tuple[Tensor, list[Image.Image]]]:
        """Each row's prompt ids, (S,) int64, images expanded, and its images."""
        images = [[open_image(image, row.where) for image in row.images] for row in rows]
        for row, ids, own in zip(rows, self.encoder.prompts(rows), images, strict=True):
            if isinstance(ids, RowError):
                raise ids
            try:
                expanded = self.image_tokens.expand(ids, [(image.height, image.width) for image in own])
            except ValueError as error:
                problem = f"the image processor refuses the size: {error}"
                raise RowError.at(row.where, "images", problem, "crop it") from error
            yield torch.as_tensor(expanded, dtype=torch.int64), own
