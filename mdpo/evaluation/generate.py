"""Greedy answers to questions about images, in batches."""

from collections.abc import Iterator, Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from mdpo.data import PromptRow
from mdpo.data.encode import Encoder
from mdpo.data.images import open_image


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[PromptRow],
    *,
    max_new_tokens: int = 1024,
    batch_size: int = 8,
) -> Iterator[str]:
    """Yields the model's greedy answer to each row, in order. model: bare or PEFT, on its device."""
    encoder = Encoder(processor)
    model.eval()
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for batch in tqdm(batches, "generating", leave=False, disable=None):
        images = [open_image(image, row.where) for row in batch for image in row.images]
        inputs = processor(
            text=[encoder.render(row.prompt) for row in batch],
            images=images or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        yield from (text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True))
