"""Every op of this package in plain PyTorch: the oracle for the kernels, and what runs on a CPU.

Shapes: N scored rows, H hidden size, V vocabulary, T columns of one vocabulary tile, B examples.

All gradients here come from autograd, so nothing is shared with the kernels' own backward passes. What is shared is the
way a log-prob is written, with the target y kept out of the sum:

    m = max_{v≠y} z_v,  S = Σ_{v≠y} exp(z_v − m),  logp = log σ((z_y − m) − log S)

so that the gradient of a confident token, which is proportional to 1 − p, does not come out of a difference of two
numbers close to 1. Computed in float32, or float64 for float64 inputs (which is what gradcheck wants).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention_reference import varlen_attention
from .autocast import without_autocast
from .checks import check_linear_arguments, check_logits_arguments, check_lora_arguments
from .head import Head
from .lora_linear import LoraLayer, check_one_dtype
from .loss import (
    MDPOLoss,
    Objective,
    PreferenceLoss,
    check_loss_arguments,
    loss_of_branches,
    mdpo_loss,
    preference_loss,
    result_dtype,
    sequence_logps,
    sums_of,
)
from .terms import BRANCHES, Term, matrix_of, mdpo_terms

__all__ = [
    "fused_linear_mdpo_loss",
    "fused_linear_preference_loss",
    "fused_mdpo_loss",
    "linear_token_logps",
    "lora_linear",
    "lora_linears",
    "mdpo_loss",
    "preference_loss",
    "sequence_logps",
    "token_logps",
    "varlen_attention",
]

# How many N×T temporaries of the result's dtype are alive at once in a tile's forward and backward together (counted
# by tests/kernels/test_memory.py); the softcap's derivative needs more.
TILE_TEMPORARIES = 5
SOFTCAP_TILE_TEMPORARIES = 7
# A tile narrower than this makes poor matrix products: then the rows are split as well.
MIN_TILE_COLUMNS = 256


def token_logps(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    scale: float = 1.0,
    inplace_backward: bool = False,
) -> Tensor:
    """`mdpo_kernels.token_logps` in plain PyTorch; `inplace_backward` is accepted and changes nothing."""
    check_logits_arguments(logits, targets, ignore_index, softcap, scale)
    return token_logps_of(logits, targets, ignore_index, softcap, scale)


def token_logps_of(logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None, scale: float) -> Tensor:
    """`token_logps` of arguments that have been checked."""
    targets = targets.long()  # against an int32 tensor PyTorch compares an ignore_index modulo 2³²
    scored = targets != ignore_index
    # A row that is not scored has no gradient, whatever is in it: 0 times NaN would be one.
    kept = logits.to(result_dtype(logits)).masked_fill(~scored.unsqueeze(1), 0)
    return _log_prob(*_tile_statistics(_scale_and_cap(kept, softcap, scale), targets, 0), scored)


def linear_token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    scale: float = 1.0,
    max_workspace_bytes: int = 256 * 2**20,
) -> Tensor:
    """`mdpo_kernels.linear_token_logps` in plain PyTorch: vocabulary tiles, each recomputed in the backward."""
    head = Head(weight, bias, softcap, scale)
    hidden = check_linear_arguments(hidden, head, targets, ignore_index, max_workspace_bytes)
    return linear_token_logps_of(hidden, head, targets, ignore_index, max_workspace_bytes)


def linear_token_logps_of(
    hidden: Tensor, head: Head, targets: Tensor, ignore_index: int, max_workspace_bytes: int
) -> Tensor:
    """`linear_token_logps` of arguments that have been checked."""
    dtype = result_dtype(hidden)
    temporaries = TILE_TEMPORARIES if head.softcap is None else SOFTCAP_TILE_TEMPORARIES
    elements = max_workspace_bytes // (temporaries * dtype.itemsize)
    rows, columns = _tile_shape(hidden.shape[0], hidden.shape[1], head.vocabulary, elements)
    head_tiles = head.tiles(columns)

    logps = []
    # The cast is out here, so that autograd adds the tiles' gradients up in float32 and rounds their sum once.
    targets = targets.long()  # as in token_logps
    scored = targets != ignore_index
    chunks = zip(hidden.to(dtype).split(rows), targets.split(rows), scored.split(rows), strict=True)
    for hidden_rows, target_rows, scored_positions in chunks:
        tiles = [
            checkpoint(
                _linear_tile_statistics,
                *(hidden_rows, tile, target_rows, scored_positions, number * columns),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for number, tile in enumerate(head_tiles)
        ]
        maxima, sums, target_logits = (torch.stack(parts) for parts in zip(*tiles, strict=True))
        maximum = maxima.amax(0)
        total = (sums * (maxima - _finite(maximum)).exp()).sum(0)
        logps.append(_log_prob(maximum, total, target_logits.sum(0), scored_positions))
    return torch.cat(logps)


def fused_mdpo_loss(
    logits: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    reference: Tensor,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    scale: float = 1.0,
    beta: float = 0.1,
    anchor: float | Sequence[float] = 0.0,
    conditional: bool = True,
    anchors: Sequence[str] = ("chosen",),
    num_examples: int | None = None,
) -> MDPOLoss:
    """`mdpo_kernels.fused_mdpo_loss` in plain PyTorch."""
    logps = token_logps(logits, targets, ignore_index=ignore_index, softcap=softcap, scale=scale)
    matrix = matrix_of(mdpo_terms(conditional=conditional, anchors=anchors, anchor=anchor), BRANCHES)
    objective = Objective(matrix, beta, num_examples)
    check_loss_arguments(logps, cu_seqlens, reference, objective)
    return loss_of_logps(logps, cu_seqlens, reference, objective)


def fused_linear_mdpo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    reference: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    scale: float = 1.0,
    max_workspace_bytes: int = 256 * 2**20,
    beta: float = 0.1,
    anchor: float | Sequence[float] = 0.0,
    conditional: bool = True,
    anchors: Sequence[str] = ("chosen",),
    num_examples: int | None = None,
) -> MDPOLoss:
    """`mdpo_kernels.fused_linear_mdpo_loss` in plain PyTorch."""
    return fused_linear_preference_loss(
        hidden,
        weight,
        targets,
        cu_seqlens,
        reference,
        mdpo_terms(conditional=conditional, anchors=anchors, anchor=anchor),
        branches=BRANCHES,
        bias=bias,
        ignore_index=ignore_index,
        softcap=softcap,
        scale=scale,
        max_workspace_bytes=max_workspace_bytes,
        beta=beta,
        num_examples=num_examples,
    )


def fused_linear_preference_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    reference: Tensor | None,
    terms: Sequence[Term],
    *,
    branches: Sequence[str],
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    scale: float = 1.0,
    max_workspace_bytes: int = 256 * 2**20,
    beta: float | Tensor = 0.1,
    num_examples: int | None = None,
) -> PreferenceLoss:
    """`mdpo_kernels.fused_linear_preference_loss` in plain PyTorch."""
    logps = linear_token_logps(
        hidden,
        weight,
        targets,
        bias=bias,
        ignore_index=ignore_index,
        softcap=softcap,
        scale=scale,
        max_workspace_bytes=max_workspace_bytes,
    )
    objective = Objective(matrix_of(terms, branches), beta, num_examples)
    check_loss_arguments(logps, cu_seqlens, reference, objective)
    return loss_of_logps(logps, cu_seqlens, reference, objective)


def loss_of_logps(logps: Tensor, cu_seqlens: Tensor, reference: Tensor | None, objective: Objective) -> PreferenceLoss:
    """Token log-probs (N,) → the loss; without a reference, of their means over each sequence. Arguments as
    `check_loss_arguments` has found them.

    An empty sequence is an absent branch, a NaN log-prob is not: it makes the loss NaN instead of dropping the terms.
    """
    policy = sums_of(logps, cu_seqlens).view(len(objective.matrix.branches), -1)
    lengths = cu_seqlens.diff().view_as(policy)
    present = lengths > 0 if reference is None else (lengths > 0) & ~reference.isnan()
    if reference is None:
        policy = policy / lengths.clamp_min(1)
    return loss_of_branches(policy, reference, present, objective)


def _scale_and_cap(logits: Tensor, softcap: float | None, scale: float) -> Tensor:
    """z = scale · x, then c · tanh(z / c)."""
    scaled = logits * scale if scale != 1.0 else logits
    return scaled if softcap is None else softcap * (scaled / softcap).tanh()


def _linear_tile_statistics(
    hidden: Tensor, tile: Head, targets: Tensor, scored: Tensor, first_column: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`_tile_statistics` of hidden @ weightᵀ + bias for a tile of the head."""
    weight, bias, softcap, scale = tile
    # Casting the tile, not the product: bf16 logits would cost 1e-2 a token. Autocast would round them again.
    with without_autocast(hidden.device):
        logits = F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
    logits.masked_fill_(~scored.unsqueeze(1), 0)  # as in token_logps
    return _tile_statistics(_scale_and_cap(logits, softcap, scale), targets, first_column)


def _tile_statistics(logits: Tensor, targets: Tensor, first_column: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, T) logits of the columns from first_column on → m, S and z_y of these columns alone, (N,) each.

    m is a constant to autograd (it cancels in the log-prob); a target that is not in the tile leaves z_y = 0.
    """
    column = targets - first_column
    inside = (column >= 0) & (column < logits.shape[1])
    index = column.clamp(0, logits.shape[1] - 1).unsqueeze(1)
    found = logits.gather(1, index).squeeze(1)
    # Outside the tile the logit at `index` belongs to another token: it is put back where it was.
    others = logits.scatter(1, index, found.masked_fill(inside, float("-inf")).unsqueeze(1))
    del logits
    maximum = others.detach().amax(1)
    return maximum, (others - _finite(maximum).unsqueeze(1)).exp().sum(1), found.where(inside, 0)


def _log_prob(maximum: Tensor, total: Tensor, target_logit: Tensor, scored: Tensor) -> Tensor:
    """log σ((z_y − m) − log S), 0 for rows that are not scored; NaN and infinities as in log_softmax, gradients too.

    S = 0 says that there is no other token, or that all others are at −inf: then p = 1.
    """
    others = total != 0  # not "> 0": NaN has to come out as NaN
    margin = (target_logit - _finite(maximum)) - total.where(others, 1).log()
    # +inf, or NaN if z_y is not finite. S, which is 0, is there for the gradient: a NaN has to reach the whole row.
    alone = (target_logit - target_logit) + float("inf") - total
    # 0, or NaN for a target at +inf.
    undefined = 0 * target_logit.clamp_min(0)
    return F.logsigmoid(margin.where(others, alone) + undefined).where(scored, 0)


def _finite(maximum: Tensor) -> Tensor:
    """The maximum of nothing is −inf; −inf − −inf would be NaN."""
    return maximum.masked_fill(maximum == float("-inf"), 0)


def _tile_shape(rows: int, hidden_size: int, columns: int, elements: int) -> tuple[int, int]:
    """The rows and columns of a tile of at most `elements` entries: all rows, as long as the tile stays wide enough.

    A tile's columns of the head, which may have to be cast to float32, are at most as many entries.
    """
    tile_rows = max(1, min(rows, elements // min(columns, MIN_TILE_COLUMNS)))
    return tile_rows, max(1, min(columns, elements // max(tile_rows, hidden_size)))


def lora_linears(x: Tensor, layers: Sequence[LoraLayer]) -> tuple[Tensor, ...]:
    """`mdpo_kernels.lora_linears` in plain PyTorch: one layer after the other."""
    check_one_dtype(layers)
    return tuple(lora_linear(x, *layer) for layer in layers)


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """`mdpo_kernels.lora_linear` in plain PyTorch: as peft computes it, in the weight's dtype."""
    x = check_lora_arguments(x, weight, bias, A, B, scale)
    with without_autocast(x.device):
        adapted = F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype)) + adapted * scale
