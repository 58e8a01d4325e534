"""Branches as rows of a padded batch: how everybody else lays preference pairs out."""

# A PEFT model's attributes are Tensor or Module to a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalSubscript=false

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from mdpo.packing import PreferenceTokens
from mdpo_kernels import linear_token_logps
from mdpo_kernels import sequence_logps as sum_logps


@dataclass(frozen=True, slots=True)
class Padded:
    """input_ids, attention_mask (S, L); labels (S, L), −100 where not scored; pixel_values (S, …)."""

    inputs: dict[str, Tensor]
    labels: Tensor


def pad(examples: Sequence[PreferenceTokens], branches: Sequence[int], device: torch.device) -> Padded:
    """The examples' branches (0 chosen, 1 rejected, 2 image_rejected), one after the other, padded on the right."""
    sequences = [
        (
            example.prompt_ids,
            example.rejected_ids if branch == 1 else example.chosen_ids,
            example.rejected_images if branch == 2 else example.images,
        )
        for branch in branches
        for example in examples
    ]
    width = max(len(prompt) + len(response) for prompt, response, _ in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, (prompt, response, _) in enumerate(sequences):
        length = len(prompt) + len(response)
        ids[index, :length] = torch.tensor([*prompt, *response])
        mask[index, :length] = 1
        labels[index, len(prompt) : length] = torch.tensor(response)
    pixels = torch.cat([images["pixel_values"] for _, _, images in sequences])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    return Padded({name: tensor.to(device) for name, tensor in inputs.items()}, labels.to(device))


def padded_logps(model: PeftModel, batch: Padded, *, full_logits: bool) -> Tensor:
    """(S,) summed log-probs of the responses; full_logits: from fp32 logits of every position, else of those scored."""
    base = model.get_base_model()
    labels = batch.labels[:, 1:]
    if full_logits:
        logits = base(**batch.inputs, use_cache=False).logits[:, :-1].float()
        logps = logits.log_softmax(-1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
        return logps.where(labels >= 0, 0).sum(1)
    hidden = base.model(**batch.inputs, use_cache=False).last_hidden_state[:, :-1]
    scored = labels >= 0
    lengths = torch.cat([labels.new_zeros(1), scored.sum(1)]).cumsum(0).to(torch.int32)
    return sum_logps(linear_token_logps(hidden[scored], base.lm_head.weight, labels[scored]), lengths)
