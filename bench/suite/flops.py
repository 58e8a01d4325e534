"""Model flops of a step, in one place: what the rows need, however they are padded or recomputed.

A matrix product with a weight of W entries takes 2·W flops a row forward, 2·W for its input's gradient and 2·W for its
own; attention takes 4·width a pair of query and key forward and twice that backward (Chowdhery et al. 2022, PaLM,
appendix B). A frozen weight has no gradient of its own, so that a LoRA step is 4·W a row for the base and 6·W for the
adapter, not 6·W for both. The vision tower is frozen and runs forward alone; a reference runs forward alone, without
the adapter. Norms, activations and the loss are left out, padding and recomputed layers do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.suite.cards import peak_of
from mdpo.models import language_layers
from mdpo.models.logps import unwrap
from mdpo.packing import PreferenceTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a layout sends through the model: rows of the language model, pairs of query and key, rows of the head, and
    images through the tower."""

    tokens: int
    pairs: int
    scored: int
    images: int


def packed_rows(examples: Sequence[PreferenceTokens]) -> Rows:
    """Three branches, the prefix shared by chosen and rejected; each image once."""
    return _sum(examples, lambda p, w, r: (2 * p + 2 * w + r, 2 * _causal(p + w) + r * p + _causal(r), 2 * w + r, 2))


def three_branch_rows(examples: Sequence[PreferenceTokens]) -> Rows:
    """Three branches apart."""
    return _sum(examples, lambda p, w, r: (3 * p + 2 * w + r, 2 * _causal(p + w) + _causal(p + r), 2 * w + r, 3))


def two_branch_rows(examples: Sequence[PreferenceTokens]) -> Rows:
    """Chosen and rejected apart, as plain DPO."""
    return _sum(examples, lambda p, w, r: (2 * p + w + r, _causal(p + w) + _causal(p + r), w + r, 2))


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def _sum(examples: Sequence[PreferenceTokens], of_lengths: Any) -> Rows:
    lengths = [(len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)) for e in examples]
    tokens, pairs, scored, images = map(sum, zip(*(of_lengths(*each) for each in lengths), strict=True))
    return Rows(tokens=tokens, pairs=pairs, scored=scored, images=images)


def policy_flops(model: nn.Module, rows: Rows) -> float:
    """Forward and backward into the adapter. model: a PEFT model whose base is frozen."""
    base, lora, head, attention = _language(model)
    return (4 * base + 6 * lora) * rows.tokens + 3 * attention * rows.pairs + 4 * head * rows.scored


def reference_flops(model: nn.Module, rows: Rows) -> float:
    """Forward alone, the adapter off."""
    base, _, head, attention = _language(model)
    return 2 * base * rows.tokens + attention * rows.pairs + 2 * head * rows.scored


def image_flops(model: nn.Module, images: int) -> float:
    """Tower and projector, forward; a class token is one more row of the tower."""
    base: Any = unwrap(model)
    vision = base.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    # SigLIP's pooling head reads one row, and LLaVA does not use it.
    tower = _linear_weights((n, p) for n, p in base.model.vision_tower.named_parameters() if not n.startswith("head."))
    attention = 4 * vision.hidden_size * vision.num_hidden_layers * patches**2
    projector = _linear_weights(base.model.multi_modal_projector.named_parameters())
    return images * (2 * (tower + projector) * patches + attention)


def _language(model: nn.Module) -> tuple[int, int, int, int]:
    """Weights of the base's layers, of the adapter and of the head; attention's flops a pair."""
    parameters = list(language_layers(model).named_parameters())
    base: Any = unwrap(model)
    text = base.config.text_config
    lora = _linear_weights((name, p) for name, p in parameters if "lora_" in name)
    frozen = _linear_weights((name, p) for name, p in parameters if "lora_" not in name)
    return frozen, lora, base.get_output_embeddings().weight.numel(), 4 * text.hidden_size * text.num_hidden_layers


def _linear_weights(parameters: Any) -> int:
    return sum(p.numel() for name, p in parameters if p.ndim >= 2 and "position_embedding" not in name)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bfloat16 peak, or None where it is not known: then there is no utilisation to state."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
