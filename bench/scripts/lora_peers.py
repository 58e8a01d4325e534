"""Unsloth's LoRA layers, counted by hand from the operators that its source runs; nothing of it is run.

`unsloth/kernels/fast_lora.py` (LoRA_QKV, LoRA_W, LoRA_MLP) and `unsloth/kernels/utils.py` (matmul_lora) of August 2026
are what its text models run, where no layer has a bias; `lora_forward` of `unsloth_zoo/compiler.py` is what its
vision-language models run.

Numbers per token beside the base's products, n layers of O outputs on one input of I, rank r; a product reads its
operands and writes its result, `addmm_` reads and writes where it adds:

- forward, both: x Aᵀ reads I, writes r; the sum reads O + r, writes O.
- text models, backward, a layer: dy B twice, (x A) once more; dA reads I + r, dB reads O + r; dx's addmm_ reads I + r,
writes I; from
  the second layer on the base's product adds to dx, reading I. Kept: x. The MLP's kernel recomputes the input of
  `down`.
- vision-language models, backward, a layer, PyTorch's own: dy B, scaled; dA, dB; dh A; its sum with dy W (reads 2I,
writes I); between
  layers a sum (the same). Kept: x and x A.
"""

from collections.abc import Sequence

from bench.scripts.lora_layers import RANK, Cost, Readers

_BFLOAT16 = 2  # bytes


def unsloth(layer: Sequence[Readers]) -> dict[str, tuple[Cost, Cost]]:
    """Forward and backward of a decoder layer's linear layers, by the name of the way."""
    found = {"unsloth, vision models": _sum([_vision(readers) for readers in layer])}
    if any(readers.bias for readers in layer):
        return found  # its own kernels know none
    return {"unsloth, text models": _sum([_text(readers) for readers in layer])} | found


def _text(readers: Readers) -> tuple[Cost, Cost]:
    wide, r, total, n = readers.inputs, RANK, sum(readers.outputs.values()), len(readers.outputs)
    kept = 0 if "down" in readers.outputs else wide
    backward = Cost(written=n * (3 * r + wide), moved=3 * total + n * (4 * wide + 6 * r) + (n - 1) * wide)
    return _forward(readers, kept), backward


def _vision(readers: Readers) -> tuple[Cost, Cost]:
    wide, r, total, n = readers.inputs, RANK, sum(readers.outputs.values()), len(readers.outputs)
    written = n * (2 * r + 2 * wide) + (n - 1) * wide
    backward = Cost(written=written, moved=2 * total + n * (5 * wide + 6 * r) + 3 * (n - 1) * wide)
    return _forward(readers, wide + n * r), backward


def _forward(readers: Readers, kept: int) -> Cost:
    total, n = sum(readers.outputs.values()), len(readers.outputs)
    return Cost(written=total + n * RANK, moved=2 * total + n * (readers.inputs + 2 * RANK), kept=kept)


def _sum(costs: Sequence[tuple[Cost, Cost]]) -> tuple[Cost, Cost]:
    forward, backward = Cost(), Cost()
    for one, other in costs:
        forward, backward = forward + one, backward + other
    return forward.times(_BFLOAT16), backward.times(_BFLOAT16)
