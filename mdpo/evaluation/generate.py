"""Answers to questions about images, in batches: greedy by default, by beams where asked, never sampled."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from mdpo.data import PromptRow
from mdpo.data.encode import Encoder
from mdpo.data.images import open_image


@torch.no_grad()
def generate(
    model: nn.Module,
    processor: ProcessorMixin,
    rows: Sequence[PromptRow],
    *,
    max_new_tokens: int = 1024,
    batch_size: int = 8,
    num_beams: int = 1,
) -> Iterator[str]:
    """Yields the model's answer to each row, in order. model: bare or PEFT, on its device.

    Deterministic: what the model's generation config says of sampling and penalties is overruled. Rows of a batch are
    padded to one length, which changes an answer only where two tokens are equal to within rounding.
    """
    encoder = Encoder(processor)
    call: Any = processor  # processors declare their options as TypedDicts that differ from family to family
    writer: Any = model
    device = next(model.parameters()).device
    model.eval()
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for batch in tqdm(batches, "generating", leave=False, disable=None):
        images = [open_image(image, row.where) for row in batch for image in row.images]
        inputs = call(
            text=[encoder.render(row.prompt) for row in batch],
            images=images or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(device)
        tokens = writer.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=num_beams,
            repetition_penalty=1.0,
        )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        yield from (text.strip() for text in call.batch_decode(answers, skip_special_tokens=True))
