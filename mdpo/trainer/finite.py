"""Numbers that are not finite: where they are looked for, and the errors that name what they belong to."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mdpo.config import MDPOConfig
from mdpo.models.folder import some

from .checkpoints import last_whole_checkpoint
from .ranks import from_all_ranks, raised_by_all

# GradScaler halves its scale from 65536 on with each step whose gradients are not finite: after thirty in a row it
# trains on nothing.
SMALLEST_SCALE = 2.0**-14


def weights_not_finite(model: nn.Module) -> list[str]:
    """The names of the trained weights that hold a NaN or an infinity; of sharded ones, on this rank."""
    names, largest = [], []
    for name, parameter in model.named_parameters():
        local: Any = getattr(parameter, "_local_tensor", parameter) if parameter.requires_grad else None
        if local is not None and local.numel():
            names.append(name)
            wide = torch.promote_types(
                local.dtype, torch.float32
            )  # a norm can be infinite in float16 where no weight is
            largest.append(torch.linalg.vector_norm(local.detach(), math.inf, dtype=wide).isfinite())
    finite = torch.stack([value.to(largest[0].device) for value in largest]).tolist() if largest else []
    return [name for name, good in zip(names, finite, strict=True) if not good]


def check_weights_finite(model: nn.Module, args: MDPOConfig, what: str, *, sharded: bool) -> None:
    """Raises TrainingError where a trained weight is not finite.

    what: would be written. sharded: whether the ranks hold different weights, and all of them ask.
    """
    bad = weights_not_finite(model)
    if sharded:
        bad = sorted(set(from_all_ranks(args, bad)))
    if not bad:
        return
    last = last_whole_checkpoint(str(args.output_dir), digests=False)
    kept = "there is no earlier checkpoint" if last is None else f"the last good state is {last}"
    raise raised_by_all(  # also where they are not sharded, and so the same on all
        args,
        f"{what} is not written: {len(bad)} of the trained weights are not finite ({some(bad)}); {kept}. Lower "
        "the learning rate, or look at the rows of the steps since then",
    )


def is_finite(norm: Tensor | float) -> bool:
    """norm: of gradients, sharded or not; waits for the device."""
    whole: Any = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore[reportAttributeAccessIssue]
    return math.isfinite(float(whole))


def printable(ids: Iterable[str]) -> str:
    """Rows' ids in one line, without the characters that would move a terminal's cursor."""
    return ", ".join("".join(char if char.isprintable() else "?" for char in str(id)) for id in ids)
