"""fused_linear_preference_loss and mDPO's own: from logits, or hidden states and the head, to the loss in one call.

Shapes: N scored rows, B examples, K branches, T terms; sequence branch·B + example is the rows
cu_seqlens[branch·B + example] … cu_seqlens[branch·B + example + 1] − 1.

Log-probs come from token_logps or linear_token_logps. One small kernel turns them into each example's loss and into
the slopes dL/d logp of its K sequences; in the backward the slopes, spread over the rows, scale the one gradient
that the log-probs' backward writes. What the terms say: terms.py.
"""

# A constexpr may be a tuple, which its type does not say.
# pyright: reportIndexIssue=false

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backend import tl, triton, use_triton
from .derivatives import differentiable_once, gradients, refuse_forward_mode
from .linear_token_logps import linear_token_logps
from .loss import MDPOLoss, Objective, PreferenceLoss, check_loss_arguments, examples_to_divide_by
from .online_softmax import log_sigmoid
from .reference import loss_of_logps as reference_loss_of_logps
from .terms import BRANCHES, LINEAR, SQUARE, Term, matrix_of, mdpo_terms
from .token_logps import token_logps

_SQUARE, _LINEAR = tl.constexpr(SQUARE), tl.constexpr(LINEAR)


@triton.jit
def _rewards(
    logps,
    cu_seqlens,
    reference,
    sequences,
    exists,
    beta,
    LANES: tl.constexpr,
    REFERENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """β(π − ρ) of a lane's sequence, whether there is one, and what a token's log-prob counts; 0 where there is none,
    so that no NaN enters any arithmetic."""
    start = tl.load(cu_seqlens + sequences, mask=exists, other=0).to(tl.int64)
    end = tl.load(cu_seqlens + sequences + 1, mask=exists, other=0).to(tl.int64)
    lengths = end - start
    longest = tl.max(lengths, 0)
    sums = tl.zeros((LANES, BLOCK), tl.float64)
    first = longest * 0
    while first < longest:
        row = first + tl.arange(0, BLOCK)
        inside = row[None, :] < lengths[:, None]
        sums += tl.load(logps + start[:, None] + row[None, :], mask=inside, other=0.0).to(tl.float64)
        first += BLOCK
    policy = tl.sum(sums, 1).to(tl.float32)
    present = lengths > 0
    share = tl.where(present, 1.0, 0.0)
    if REFERENCE:
        frozen = tl.load(reference + sequences, mask=exists, other=0.0).to(tl.float32)
        # A policy that has gone NaN is not an absent branch: its loss has to be NaN.
        present = present & (frozen == frozen)
        policy -= frozen
    else:
        share = share / tl.where(present, lengths, 1).to(tl.float32)
        policy *= share
    return tl.where(present, beta * policy, 0.0), present, share


@triton.jit
def _row(matrix, rewards, present, lane, offset, ROW: tl.constexpr, BRANCHES: tl.constexpr):
    """A row's coefficients by lane, its argument u, and whether all of its branches are there."""
    factors = tl.zeros_like(rewards)
    for branch in tl.static_range(BRANCHES):
        factors = tl.where(lane == branch, matrix[ROW * BRANCHES + branch], factors)
    # A reward of NaN belongs to the rows that read it.
    argument = tl.sum(tl.where(factors != 0.0, factors * rewards, 0.0), 0) - offset
    return factors, argument, tl.min(tl.where((factors == 0.0) | present, 1, 0), 0) == 1


@triton.jit
def _one_row(matrix, rewards, present, lane, offset, ROW: tl.constexpr, LINK: tl.constexpr, BRANCHES: tl.constexpr):
    """A term of one row: its value, its slopes in the rewards, and whether all of its branches are there."""
    factors, argument, used = _row(matrix, rewards, present, lane, offset, ROW, BRANCHES)
    if LINK == _SQUARE:
        value = argument * argument
        slope = 2.0 * argument
    elif LINK == _LINEAR:
        value = -argument
        slope = argument * 0.0 - 1.0
    else:
        log_probability, rest = log_sigmoid(argument)
        value = -log_probability
        slope = -rest
    # Not slope · 0: a slope of NaN belongs to its own branches.
    return value, tl.where(factors != 0.0, slope * factors, 0.0), used


@triton.jit
def _several_rows(
    matrix, rewards, present, lane, offset, FIRST: tl.constexpr, SIZE: tl.constexpr, BRANCHES: tl.constexpr
):
    """As `_one_row`, of log(1 + Σ exp(−u)), whose slopes are −exp(−u) / (1 + Σ exp(−u)); by the largest of 0 and all
    −u.
    """
    _, argument, used = _row(matrix, rewards, present, lane, offset, FIRST, BRANCHES)
    highest = tl.maximum(-argument, 0.0)
    for row in tl.static_range(1, SIZE):
        _, argument, there = _row(matrix, rewards, present, lane, offset, FIRST + row, BRANCHES)
        highest = tl.maximum(highest, -argument)
        used = used & there
    highest = tl.minimum(highest, 3.4028234e38)  # infinite, it would make NaN of what is finite
    total = tl.exp(-highest)
    for row in tl.static_range(SIZE):
        _, argument, _ = _row(matrix, rewards, present, lane, offset, FIRST + row, BRANCHES)
        total += tl.exp(-argument - highest)
    slopes = tl.zeros_like(rewards)
    for row in tl.static_range(SIZE):
        factors, argument, _ = _row(matrix, rewards, present, lane, offset, FIRST + row, BRANCHES)
        slopes += tl.where(factors != 0.0, -tl.exp(-argument - highest) / total * factors, 0.0)
    return highest + tl.log(total), slopes, used


@triton.jit(do_not_specialize=["examples"])
def preference_loss_fwd_kernel(
    logps,  # (N,) float32
    cu_seqlens,  # (K·B + 1,)
    reference,  # (K, B); anything without REFERENCE
    betas,  # (B,); anything unless ITS_OWN_BETA
    losses,  # (B,) float32, out
    rewards_out,  # (K, B) float32, out; NaN for an absent branch
    terms,  # (T, B) float32, out
    slopes_out,  # (K, B) float32, out: dL/d logp of each token of each sequence
    examples,
    beta,
    matrix,  # K coefficients of each row of each term
    term_weights,
    term_offsets,
    BRANCHES: tl.constexpr,
    LANES: tl.constexpr,
    TERMS: tl.constexpr,
    LINKS: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    REFERENCE: tl.constexpr,
    ITS_OWN_BETA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    example = tl.program_id(0)
    lane = tl.arange(0, LANES)
    exists = lane < BRANCHES
    sequences = lane * examples + example
    if ITS_OWN_BETA:
        beta = tl.load(betas + example).to(tl.float32)
    rewards, present, share = _rewards(logps, cu_seqlens, reference, sequences, exists, beta, LANES, REFERENCE, BLOCK)
    loss = beta * 0.0
    slopes = tl.zeros((LANES,), tl.float32)
    for term in tl.static_range(TERMS):
        offset, weight = term_offsets[term], term_weights[term]
        if SIZES[term] > 1:
            value, slope, used = _several_rows(
                matrix, rewards, present, lane, offset, STARTS[term], SIZES[term], BRANCHES
            )
        else:
            value, slope, used = _one_row(matrix, rewards, present, lane, offset, STARTS[term], LINKS[term], BRANCHES)
        slopes += tl.where(used, weight * slope, 0.0)
        value = tl.where(used, weight * value, 0.0)
        tl.store(terms + term * examples + example, value)
        loss += value

    tl.store(losses + example, loss)
    tl.store(rewards_out + sequences, tl.where(present, rewards, float("nan")), mask=exists)
    tl.store(slopes_out + sequences, beta * slopes * share, mask=exists)


@triton.jit(do_not_specialize=["examples"])
def preference_loss_bwd_kernel(
    grad_losses,  # (B,) float32
    slopes,  # (K, B) float32
    cu_seqlens,  # (K·B + 1,)
    grad_logps,  # (N,) float32, out
    examples,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    gradient = tl.load(grad_losses + sequence % examples) * tl.load(slopes + sequence)
    first = start
    while first < end:
        row = first + tl.arange(0, BLOCK)
        tl.store(grad_logps + row, tl.zeros((BLOCK,), tl.float32) + gradient, mask=row < end)
        first += BLOCK


@torch.library.custom_op("mdpo_kernels::preference_loss", mutates_args=())
def _forward(
    logps: Tensor,
    cu_seqlens: Tensor,
    reference: Tensor | None,
    betas: Tensor | None,
    beta: float,
    branches: int,
    links: list[int],
    sizes: list[int],
    coefficients: list[float],
    weights: list[float],
    offsets: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """→ losses (B,), rewards (K, B), terms (T, B), slopes (K, B), all float32. betas: (B,), in place of beta."""
    losses, rewards, terms, slopes = _allocate_outputs(cu_seqlens, branches, len(links))
    starts = itertools.accumulate(sizes[:-1], initial=0)
    if losses.shape[0]:
        with torch.cuda.device_of(logps):
            preference_loss_fwd_kernel[losses.shape](
                logps, cu_seqlens, losses if reference is None else reference, losses if betas is None else betas,
                losses, rewards, terms, slopes, losses.shape[0], beta, tuple(coefficients), tuple(weights),
                tuple(offsets),
                branches, triton.next_power_of_2(branches), len(links), tuple(links), tuple(sizes), tuple(starts),
                reference is not None, betas is not None, BLOCK=256,
            )  # fmt: skip
    return losses, rewards, terms, slopes


def _allocate_outputs(cu_seqlens: Tensor, branches: int, terms: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    examples = (cu_seqlens.shape[0] - 1) // branches
    losses = torch.empty(examples, dtype=torch.float32, device=cu_seqlens.device)
    rewards, slopes = losses.new_empty((branches, examples)), losses.new_empty((branches, examples))
    return losses, rewards, losses.new_empty((terms, examples)), slopes


@_forward.register_fake
def _(logps, cu_seqlens, reference, betas, beta, branches, links, sizes, coefficients, weights, offsets):
    return _allocate_outputs(cu_seqlens, branches, len(links))


@torch.library.custom_op("mdpo_kernels::preference_loss_backward", mutates_args=())
def _backward(grad_losses: Tensor, slopes: Tensor, cu_seqlens: Tensor, rows: int) -> Tensor:
    """→ the log-probs' gradient (N,) float32."""
    grad_logps = torch.empty(rows, dtype=torch.float32, device=slopes.device)
    if slopes.numel():
        with torch.cuda.device_of(slopes):
            preference_loss_bwd_kernel[(slopes.numel(),)](
                grad_losses.contiguous(), slopes, cu_seqlens, grad_logps, slopes.shape[1], BLOCK=256
            )
    return grad_logps


@_backward.register_fake
def _(grad_losses, slopes, cu_seqlens, rows):
    return torch.empty(rows, dtype=torch.float32, device=slopes.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    logps, cu_seqlens, *_ = inputs
    _, rewards, terms, slopes = output
    ctx.save_for_backward(slopes, cu_seqlens, logps)
    ctx.mark_non_differentiable(rewards, terms, slopes)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_losses: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_losses is None:
        return gradients(ctx)
    slopes, cu_seqlens, logps = ctx.saved_tensors
    with torch.no_grad():
        found = _backward(grad_losses, slopes, cu_seqlens, logps.shape[0])
    return gradients(ctx, differentiable_once("fused_linear_preference_loss", found, logps, grad_losses))


_forward.register_autograd(_differentiate, setup_context=_save)


def _loss_of_logps(logps: Tensor, cu_seqlens: Tensor, reference: Tensor | None, objective: Objective) -> PreferenceLoss:
    """Token log-probs (N,) → the loss."""
    check_loss_arguments(logps, cu_seqlens, reference, objective)
    if not use_triton(logps):
        return reference_loss_of_logps(logps, cu_seqlens, reference, objective)
    matrix, beta, num_examples = objective
    betas = beta.detach().contiguous() if isinstance(beta, Tensor) else None
    refuse_forward_mode("fused_linear_preference_loss", logps)
    losses, rewards, values, _ = _forward(
        logps,
        cu_seqlens.contiguous(),
        None if reference is None else reference.detach().contiguous(),
        betas,
        0.0 if isinstance(beta, Tensor) else beta,
        len(matrix.branches),
        list(matrix.links),
        list(matrix.sizes),
        list(matrix.coefficients),
        list(matrix.weights),
        list(matrix.offsets),
    )
    return PreferenceLoss(
        loss=losses.sum() / examples_to_divide_by(losses.shape[0], num_examples),
        losses=losses,
        rewards=rewards,
        terms=dict(zip(matrix.names, values.unbind(), strict=True)),
    )


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
    """The mDPO loss of B examples from the logits of their scored rows.

    Nothing here synchronises a GPU.

    Args:
        logits, targets, ignore_index, softcap, scale: (N, V) and (N,), as in `token_logps`.
        cu_seqlens: (3B + 1,), int32 or int64, from 0 to N: sequences chosen 1 … B, rejected 1 … B, image_rejected 1 …
            B. An empty sequence is a branch that the example does not have; one whose targets are all ignored has
            log-prob 0.
        reference: (3, B), floating, the reference's summed log-probs (NaN also marks an absent branch); no gradient.
        beta, anchor, conditional, anchors, num_examples: as in `mdpo_loss`.

    Returns:
        An `MDPOLoss`, of which `loss` and `losses` carry the gradient.

    Raises:
        ValueError: as `token_logps` and `mdpo_loss`, and for a cu_seqlens that does not fit.
    """
    logps = token_logps(logits, targets, ignore_index=ignore_index, softcap=softcap, scale=scale)
    terms = mdpo_terms(conditional=conditional, anchors=anchors, anchor=anchor)
    objective = Objective(matrix_of(terms, BRANCHES), beta, num_examples)
    return _loss_of_logps(logps, cu_seqlens, reference, objective)


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
    """The mDPO loss of B examples from the hidden states of their scored rows; the logits are never whole.

    Nothing here synchronises a GPU.

    Args:
        hidden, weight, targets, bias, ignore_index, softcap, scale, max_workspace_bytes: as in `linear_token_logps`.
        cu_seqlens, reference: as in `fused_mdpo_loss`.
        beta, anchor, conditional, anchors, num_examples: as in `mdpo_loss`.

    Returns:
        An `MDPOLoss`, of which `loss` and `losses` carry the gradient.

    Raises:
        ValueError: as `linear_token_logps` and `mdpo_loss`, and for a cu_seqlens that does not fit.
    """
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
    """The loss of `terms`, of B examples with K branches, from the hidden states of their scored rows.

    Nothing here synchronises a GPU.

    Args:
        hidden, weight, targets, bias, ignore_index, softcap, scale, max_workspace_bytes: as in `linear_token_logps`.
        cu_seqlens: (K·B + 1,), int32 or int64, from 0 to N: the examples' sequences of the first branch, of the second
            and so on. An empty sequence is a branch that the example does not have.
        reference: (K, B), floating, the reference's summed log-probs (NaN also marks an absent branch); no gradient.
            None: rewards are β times the mean log-prob of a sequence's tokens.
        terms, branches, beta, num_examples: as in `preference_loss`.

    Returns:
        A `PreferenceLoss`, of which `loss` and `losses` carry the gradient.

    Raises:
        ValueError: as `linear_token_logps` and `preference_loss`, and for a cu_seqlens that does not fit.
    """
    matrix = matrix_of(terms, branches)
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
    return _loss_of_logps(logps, cu_seqlens, reference, Objective(matrix, beta, num_examples))
