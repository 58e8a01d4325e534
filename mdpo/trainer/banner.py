"""What a run is, in one block before its first step."""

import textwrap
from collections.abc import Mapping
from typing import Any

import torch

from mdpo.models.attention import attention_backend
from mdpo.packing import Separate, cost_of
from mdpo_kernels.backend import use_triton

from .start import describe_trained

_WIDTH, _KEYS = 76, 12  # the log indents a record's further lines by two


def banner(trainer: Any, steps: int) -> str:
    """The block, each line at most 80 columns but for a path. trainer: an ``MDPOTrainer``. steps: of the whole run."""
    facts = {
        "rows": _rows(trainer),
        "trained": describe_trained(trainer.model),
        "device": _device(trainer),
        "branches": _way(trainer),
        "reference": _reference(trainer),
        "steps": f"{steps:,}, each of {trainer.args.examples_per_step} examples",
        "output_dir": str(trainer.args.output_dir),
    }
    return "\n".join(["training", *_lines(facts)])


def _lines(facts: Mapping[str, str]) -> list[str]:
    lines = []
    for name, text in facts.items():
        first, *further = textwrap.wrap(text, _WIDTH - _KEYS, break_long_words=False, break_on_hyphens=False)
        lines += [f"{name:<{_KEYS}}{first}", *(" " * _KEYS + line for line in further)]
    return lines


def _rows(trainer: Any) -> str:
    held_out = trainer.eval_dataset or {}
    sets = held_out.values() if isinstance(held_out, dict) else [held_out]
    images = int(trainer.train_dataset.rows.images.counts().sum())
    return f"{len(trainer.train_dataset):,} with {images:,} images; {sum(map(len, sets)):,} held out"


def _device(trainer: Any) -> str:
    args, dtype = trainer.args, trainer.step_dtype
    weights = next(trainer.model.parameters()).dtype
    steps = "" if dtype in (None, weights) else f", steps in {_name(dtype)}"
    devices = args.device.type if args.world_size == 1 else f"{args.world_size} x {args.device.type}"
    triton = use_triton(torch.empty(0, dtype=dtype or weights, device=args.device))
    return f"{devices}, weights in {_name(weights)}{steps}; {'Triton kernels' if triton else 'plain PyTorch'}"


def _way(trainer: Any) -> str:
    branches = trainer.args.branches
    attention = attention_backend(trainer.model, trainer.step_dtype)
    if isinstance(trainer.family, Separate):
        return f"{trainer.family.line(branches)}; attention {attention.removeprefix('separate: ')}"
    packed, separate = (cost_of(branches, packed=packed) for packed in (True, False))
    return f"packed, {packed} tokens an example (separately {separate}; P prompt, R answer); attention {attention}"


def _reference(trainer: Any) -> str:
    kept = "computed in every step" if trainer._cache is None else f"cached in {trainer._cache.folder}"
    return f"{trainer.policy.reference.description}; {kept}"


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
