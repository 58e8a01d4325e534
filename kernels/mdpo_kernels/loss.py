"""From sequence log-probs to a preference loss, in plain PyTorch; mDPO's is the one of the terms `mdpo_terms`.

Shapes: N scored rows, S sequences, B examples, K branches, T terms. What the terms say: terms.py.

A branch that an example does not have drops every term that uses it; the mean stays over examples.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    check_branch_logps,
    check_cu_seqlens,
    check_positive,
    check_same_device,
    check_sequences,
    check_values,
    check_vector,
)
from .terms import BRANCHES, LINEAR, SQUARE, Matrix, Term, matrix_of, mdpo_terms


@dataclass(frozen=True)
class PreferenceLoss:
    """What one call of a loss gives back. The dtype is float32, or float64 where the inputs were.

    loss: (), the sum of `losses` over `num_examples` (or B); carries the gradient.
    losses: (B,), each example's terms added up; carries the gradient too.
    rewards: (K, B), β(π − ρ), detached; NaN for a branch that the example does not have.
    terms: (B,) for each term by its name, weighted; 0 where an example lacks a branch of the term. Detached.
    """

    loss: Tensor
    losses: Tensor
    rewards: Tensor
    terms: dict[str, Tensor]


# Of mDPO's three branches and terms.
MDPOLoss = PreferenceLoss


class Objective(NamedTuple):
    """What a loss is asked for, behind its public function: the terms over K branches, β, and what the sum over B
    examples is divided by if not B."""

    matrix: Matrix
    beta: float | Tensor
    num_examples: int | None


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


def sequence_logps(token_logps: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums token log-probs over each sequence.

    Args:
        token_logps: (N,), floating.
        cu_seqlens: (S + 1,), int32 or int64, non-decreasing from 0 to N; sequence s is the rows cu_seqlens[s] to
            cu_seqlens[s + 1] − 1.
        weights: (N,), floating, how much each token counts, such as more in a corrected span (dense DPO, RLHF-V, Yu et
            al. 2024); no gradient. None: 1 each. A token of weight 0 counts nothing, whatever its log-prob.

    Returns:
        (S,) float32 (float64 for float64); an empty sequence gives 0. Added up in float64, in a fixed order: the
        result does not depend on the rest of the batch, and is deterministic.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; offsets that do not fit raise on a CPU, and fail a
            device-side assertion on a GPU, where looking at them would synchronise.
    """
    check_vector("token_logps", token_logps, floating=True)
    check_cu_seqlens(cu_seqlens, rows=token_logps.shape[0])
    if weights is not None:
        check_vector("weights", weights, floating=True, length=token_logps.shape[0])
    check_same_device(token_logps=token_logps, cu_seqlens=cu_seqlens, weights=weights)
    return sums_of(token_logps, cu_seqlens, weights)


def sums_of(token_logps: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None) -> Tensor:
    """`sequence_logps` of arguments that have been checked."""
    values = token_logps.double()
    if weights is not None:
        weights = weights.detach().double()
        values = values.where(weights != 0, 0) * weights
    sums: Tensor = _SequenceSums.apply(values, cu_seqlens.long())  # pyright: ignore[reportAssignmentType]
    return sums.to(result_dtype(token_logps))


def preference_loss(
    policy: Tensor,
    reference: Tensor | None,
    terms: Sequence[Term],
    *,
    branches: Sequence[str],
    beta: float | Tensor = 0.1,
    num_examples: int | None = None,
) -> PreferenceLoss:
    """The loss of B examples from the summed log-probs of their K branches.

    policy == reference gives rewards of exactly 0. Can be differentiated twice.

    Args:
        policy, reference: (K, B), floating, in the order of `branches`; NaN in either marks a branch that the example
            does not have. No gradient flows into `reference`. Without one (None) rewards are β·policy: give log-probs
            per token.
        terms: of the objective.
        branches: the K names that the terms use.
        beta: β > 0, a number or (B,), one for each example.
        num_examples: what the sum of losses is divided by, if not B: a micro-batch passes its step's total.

    Returns:
        A `PreferenceLoss`, of which `loss` and `losses` carry the gradient.

    Raises:
        ValueError: shapes, devices, terms or options that do not fit.
    """
    matrix = matrix_of(terms, branches)
    check_branch_logps("policy", policy, branches=branches)
    if reference is not None:
        check_branch_logps("reference", reference, branches=branches, examples=policy.shape[1])
    check_same_device(policy=policy, reference=reference)
    objective = Objective(matrix, beta, num_examples)
    _check_options(objective, policy.shape[1], policy=policy)
    present = ~policy.isnan() if reference is None else ~(policy.isnan() | reference.isnan())
    return loss_of_branches(policy, reference, present, objective)


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

    policy == reference gives rewards and margins of exactly 0, so log 2 a term. Can be differentiated twice.

    Args:
        policy, reference: (3, B), floating; rows chosen, rejected, image_rejected; NaN in either marks a branch that
            the example does not have. No gradient flows into `reference`.
        beta: β > 0.
        anchor: offsets δ of `anchors` in reward units, a number for all or one per entry.
        conditional: with the image preference; without it, and with anchors=(), this is DPO.
        anchors: the branches to anchor.
        num_examples: what the sum of losses is divided by, if not B: a micro-batch passes its step's total.

    Returns:
        An `MDPOLoss`, of which `loss` and `losses` carry the gradient.

    Raises:
        ValueError: shapes, devices or options that do not fit.
    """
    check_positive("beta", beta)
    terms = mdpo_terms(conditional=conditional, anchors=anchors, anchor=anchor)
    return preference_loss(policy, reference, terms, branches=BRANCHES, beta=beta, num_examples=num_examples)


def loss_of_branches(policy: Tensor, reference: Tensor | None, present: Tensor, objective: Objective) -> PreferenceLoss:
    """`preference_loss` of arguments that have been checked, where `present`, (K, B) bool, says which branches there
    are: a NaN of a present one stays a NaN.
    """
    matrix, beta, num_examples = objective
    # NaN is replaced before it enters any arithmetic: a NaN that is masked afterwards still poisons the gradient.
    dtype = result_dtype(policy, *([] if reference is None else [reference]))
    ratio = policy.to(dtype).where(present, 0)
    if reference is not None:
        ratio = ratio - reference.detach().to(dtype).where(present, 0)
    rewards = (beta.detach().to(dtype) if isinstance(beta, Tensor) else beta) * ratio

    values = {}
    each = zip(matrix.names, matrix.links, matrix.rows, matrix.weights, matrix.offsets, strict=True)
    for name, link, rows, weight, offset in each:
        used = functools.reduce(torch.logical_and, (present[branch] for row in rows for branch, _ in row))
        value = _linked(link, [_weighted_sum(rewards, row, offset) for row in rows])
        values[name] = (value if weight == 1 else weight * value).where(used, 0)
    losses = torch.stack(list(values.values())).sum(0)
    return PreferenceLoss(
        loss=losses.sum() / examples_to_divide_by(policy.shape[1], num_examples),
        losses=losses,
        rewards=rewards.detach().where(present, math.nan),
        terms={name: value.detach() for name, value in values.items()},
    )


def _weighted_sum(rewards: Tensor, row: list[tuple[int, float]], offset: float) -> Tensor:
    """Σ_b C_b·Δ_b − offset, (B,). By sums alone where coefficients are ±1, so that it rounds as a difference does."""
    (first, coefficient), *others = row
    total = rewards[first] if coefficient == 1 else coefficient * rewards[first]
    for branch, coefficient in others:
        if abs(coefficient) == 1:
            total = total + rewards[branch] if coefficient == 1 else total - rewards[branch]
        else:
            total = total + coefficient * rewards[branch]
    return total - offset if offset else total


def _linked(link: int, arguments: Sequence[Tensor]) -> Tensor:
    """The link of a term's rows, (B,) each."""
    if link == SQUARE:
        return arguments[0].square()
    if link == LINEAR:
        return -arguments[0]
    if len(arguments) == 1:
        return -F.logsigmoid(arguments[0])
    return torch.stack([torch.zeros_like(arguments[0]), *(-argument for argument in arguments)]).logsumexp(0)


def check_loss_arguments(logps: Tensor, cu_seqlens: Tensor, reference: Tensor | None, objective: Objective) -> None:
    """Token log-probs (N,), the bounds of their sequences, a reference and the objective's options fit one another:
    what the fused losses check, once, before they choose how to compute."""
    branches = objective.matrix.branches
    check_sequences(logps, cu_seqlens, reference, branches)
    _check_options(objective, (cu_seqlens.shape[0] - 1) // len(branches), logps=logps)


def _check_options(objective: Objective, examples: int, **beside: Tensor) -> None:
    """Raises ValueError where β is neither a number above 0 nor one for each of the examples, on the device of the
    tensor beside it, and for a count that is none.
    """
    _, beta, num_examples = objective
    if isinstance(beta, Tensor):
        check_vector("beta", beta, floating=True, length=examples)
        check_values(
            "beta", ((beta > 0) & beta.isfinite()).all(), lambda: "holds a value that is not finite and above 0"
        )
    else:
        check_positive("beta", beta)
    if num_examples is not None:
        check_positive("num_examples", num_examples, ", or None for the batch's own")
    check_same_device(**beside, beta=beta if isinstance(beta, Tensor) else None)


def examples_to_divide_by(examples: int, num_examples: int | None) -> int:
    """The divisor of a mean over examples; an empty micro-batch then has loss 0, not 0/0."""
    return num_examples if num_examples is not None else max(examples, 1)


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where one of the tensors is float64: what log-probs and losses are computed in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
