"""From sequence log-probs to the mDPO loss, in plain PyTorch.

Shapes: N scored rows, S sequences, B examples; a (3, B) tensor holds the branches chosen, rejected, image_rejected.

With Δx = β(π_x − ρ_x) for the branches x (π policy, ρ reference), an example's loss is the sum of

    response_preference         −log σ(Δchosen − Δrejected)           DPO (Rafailov et al. 2023, eq. 7)
    image_preference            −log σ(Δchosen − Δimage_rejected)     CoPO (mDPO, Wang et al. 2024, section 3)
    anchor_x, for x in anchors  −log σ(s·(Δx − δx))                   AncPO; s = +1 for chosen, −1 for the others

A branch that an example does not have drops every term that uses it; the mean stays over examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_branch_logps, check_cu_seqlens, check_positive, check_same_device, check_vector, is_finite

BRANCHES = ("chosen", "rejected", "image_rejected")
CHOSEN, REJECTED, IMAGE_REJECTED = range(3)


@dataclass(frozen=True)
class MDPOLoss:
    """What one call of a loss gives back. The dtype is float32, or float64 where the inputs were.

    loss: (), the sum of `losses` over `num_examples` (or B); carries the gradient.
    losses: (B,), each example's terms added up; carries the gradient too.
    rewards: (3, B), β(π − ρ), detached; NaN for a branch that the example does not have.
    terms: (B,) for each term that was asked for, by name; 0 where an example lacks a branch of the term. Detached.
    """

    loss: Tensor
    losses: Tensor
    rewards: Tensor
    terms: dict[str, Tensor]


class Anchor(NamedTuple):
    """One anchor term, −log σ(sign·(Δ − offset)), on row `row` of the (3, B) tensors; `offset` is in reward units."""

    row: int
    sign: float
    offset: float


class _SequenceSums(torch.autograd.Function):
    """segment_reduce's sums, with a gradient that has one itself: PyTorch's own has none."""

    @staticmethod
    def forward(values: Tensor, offsets: Tensor) -> Tensor:
        # unsafe=True leaves out segment_reduce's own look at the offsets, which would synchronise.
        return torch.segment_reduce(values, "sum", offsets=offsets, unsafe=True, initial=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        values, offsets = inputs
        ctx.rows = values.shape[0]
        ctx.save_for_backward(offsets)

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (offsets,) = ctx.saved_tensors
        rows = torch.arange(ctx.rows, device=offsets.device)
        return grad_sums[torch.bucketize(rows, offsets[1:], right=True)], None


def sequence_logps(token_logps: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sums token log-probs over each sequence.

    token_logps: (N,), floating. cu_seqlens: (S + 1,), int32 or int64, non-decreasing from 0 to N; sequence s is the
    rows cu_seqlens[s] to cu_seqlens[s + 1] − 1.

    Returns (S,) float32 (float64 for float64); an empty sequence gives 0. Added up in float64, in a fixed order: the
    result does not depend on what else is in the batch, nor changes from run to run.

    Raises ValueError for shapes, dtypes or devices that do not fit; offsets that do not fit raise on a CPU, and fail
    a device-side assertion on a GPU, where looking at them would synchronise.
    """
    check_vector("token_logps", token_logps, floating=True)
    check_cu_seqlens(cu_seqlens, rows=token_logps.shape[0])
    check_same_device(token_logps=token_logps, cu_seqlens=cu_seqlens)
    sums: Tensor = _SequenceSums.apply(token_logps.double(), cu_seqlens.long())  # pyright: ignore[reportAssignmentType]
    return sums.to(result_dtype(token_logps))


def mdpo_loss(
    policy: Tensor,
    reference: Tensor,
    *,
    beta: float = 0.1,
    anchor: float | Sequence[float] = 0.0,
    conditional: bool = True,
    anchors: Sequence[str] = ("chosen",),
    num_examples: int | None = None,
) -> MDPOLoss:
    """The mDPO loss of B examples from the summed log-probs of their branches.

    policy, reference: (3, B), floating; rows chosen, rejected, image_rejected; NaN in either marks a branch that the
    example does not have. No gradient flows into `reference`.
    beta: β > 0. conditional: with the image preference; without it, and with anchors=(), this is DPO.
    anchors: the branches to anchor. anchor: their offsets δ in reward units, a number for all or one per entry.
    num_examples: what the sum of losses is divided by, if not B: a micro-batch passes its step's total.

    policy == reference gives rewards and margins of exactly 0, so log 2 a term. Raises ValueError for shapes, devices
    or options that do not fit. Can be differentiated twice.
    """
    check_branch_logps("policy", policy)
    check_branch_logps("reference", reference, examples=policy.shape[1])
    check_same_device(policy=policy, reference=reference)
    present = ~(policy.isnan() | reference.isnan())
    return loss_of_branches(
        policy,
        reference,
        present,
        beta=beta,
        anchor=anchor,
        conditional=conditional,
        anchors=anchors,
        num_examples=num_examples,
    )


def loss_of_branches(
    policy: Tensor,
    reference: Tensor,
    present: Tensor,
    *,
    beta: float = 0.1,
    anchor: float | Sequence[float] = 0.0,
    conditional: bool = True,
    anchors: Sequence[str] = ("chosen",),
    num_examples: int | None = None,
) -> MDPOLoss:
    """`mdpo_loss` where `present`, (3, B) bool, says which branches there are: a NaN of a present one stays a NaN."""
    anchor_terms = check_options(beta, anchor, anchors, num_examples)
    # NaN is replaced before it enters any arithmetic: a NaN that is masked afterwards still poisons the gradient.
    dtype = result_dtype(policy, reference)
    ratio = policy.to(dtype).where(present, 0) - reference.detach().to(dtype).where(present, 0)
    rewards = beta * ratio

    def preference(worse: int) -> Tensor:
        used = present[CHOSEN] & present[worse]
        return (-F.logsigmoid(rewards[CHOSEN] - rewards[worse])).where(used, 0)

    terms = {"response_preference": preference(REJECTED)}
    if conditional:
        terms["image_preference"] = preference(IMAGE_REJECTED)
    for row, sign, offset in anchor_terms:
        terms["anchor_" + BRANCHES[row]] = (-F.logsigmoid(sign * (rewards[row] - offset))).where(present[row], 0)
    losses = torch.stack(list(terms.values())).sum(0)
    return MDPOLoss(
        loss=losses.sum() / examples_to_divide_by(policy.shape[1], num_examples),
        losses=losses,
        rewards=rewards.detach().where(present, math.nan),
        terms={name: value.detach() for name, value in terms.items()},
    )


def check_options(
    beta: float, anchor: float | Sequence[float], anchors: Sequence[str], num_examples: int | None
) -> tuple[Anchor, ...]:
    """Checks the options of a loss and pairs each anchored branch with its offset; ValueError names what is wrong."""
    check_positive("beta", beta)
    if num_examples is not None:
        check_positive("num_examples", num_examples, ", or None for the batch's own")
    if isinstance(anchors, str):
        raise ValueError(f"anchors is the string {anchors!r}; expected a sequence of names, as in ({anchors!r},)")
    if not isinstance(anchors, Sequence):
        raise ValueError(f"anchors is {anchors!r}; expected a sequence of names out of {BRANCHES}")
    unknown = [name for name in anchors if name not in BRANCHES]
    if unknown or len(set(anchors)) != len(anchors):
        raise ValueError(f"anchors is {anchors!r}; expected names out of {BRANCHES}, each at most once")
    given = list(anchor) if isinstance(anchor, Sequence) else [anchor] * len(anchors)
    if not is_finite(*given) or len(given) != len(anchors) or not (isinstance(anchor, Sequence) or is_finite(anchor)):
        raise ValueError(f"anchor is {anchor!r}; expected a finite number, or one for each of anchors={anchors!r}")
    offsets = [float(offset) for offset in given]
    rows = [BRANCHES.index(name) for name in anchors]
    return tuple(Anchor(row, 1.0 if row == CHOSEN else -1.0, offset) for row, offset in zip(rows, offsets, strict=True))


def examples_to_divide_by(examples: int, num_examples: int | None) -> int:
    """The divisor of a mean over examples; an empty micro-batch then has loss 0, not 0/0."""
    return num_examples if num_examples is not None else max(examples, 1)


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where one of the tensors is float64: what log-probs and losses are computed in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
