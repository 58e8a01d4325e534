"""fused_mdpo_loss and fused_linear_mdpo_loss: from logits, or hidden states and the head, to the mDPO loss in one call.

Shapes: N scored rows, B examples; a (3, B) tensor holds the branches chosen, rejected, image_rejected, and sequence
branch·B + example is the rows cu_seqlens[branch·B + example] … cu_seqlens[branch·B + example + 1] − 1.

Log-probs come from token_logps or linear_token_logps. One small kernel turns them into each example's loss and into
the slopes dL/d logp of its three sequences; in the backward the slopes, spread over the rows, scale the one gradient
that the log-probs' backward writes. The formulas are those of loss.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backend import tl, triton, use_triton
from .checks import check_branch_logps, check_cu_seqlens, check_same_device
from .derivatives import differentiable_once, refuse_forward_mode
from .linear_token_logps import linear_token_logps
from .loss import BRANCHES, MDPOLoss, check_options, examples_to_divide_by
from .online_softmax import log_sigmoid
from .reference import loss_of_logps as reference_loss_of_logps
from .token_logps import token_logps

TERMS = ("response_preference", "image_preference", *("anchor_" + branch for branch in BRANCHES))


@triton.jit
def _reward(logps, cu_seqlens, reference, sequence, beta, BLOCK: tl.constexpr):
    """β(π − ρ) of a sequence and whether there is one; 0 where there is none, so that no NaN enters any arithmetic."""
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    lanes = tl.zeros((BLOCK,), tl.float64)
    first = start
    while first < end:
        row = first + tl.arange(0, BLOCK)
        lanes += tl.load(logps + row, mask=row < end, other=0.0).to(tl.float64)
        first += BLOCK
    policy = tl.sum(lanes, 0).to(tl.float32)
    frozen = tl.load(reference + sequence).to(tl.float32)
    # A policy that has gone NaN is not an absent branch: its loss has to be NaN.
    present = (end > start) & (frozen == frozen)
    return tl.where(present, beta * (policy - frozen), 0.0), present


@triton.jit
def _term(terms, position, argument, used):
    """Stores −log σ(argument), or 0 where a branch is missing; → its value and its slope in the argument."""
    log_probability, rest = log_sigmoid(argument)
    value = tl.where(used, -log_probability, 0.0)
    tl.store(terms + position, value)
    return value, tl.where(used, -rest, 0.0)


@triton.jit(do_not_specialize=["examples"])
def mdpo_loss_fwd_kernel(
    logps,  # (N,) float32
    cu_seqlens,  # (3B + 1,)
    reference,  # (3, B)
    losses,  # (B,) float32, out
    rewards,  # (3, B) float32, out; NaN for an absent branch
    terms,  # (5, B) float32, out, in the order of TERMS; a term that was not asked for is left alone
    slopes,  # (3, B) float32, out: dL/d logp of each sequence
    examples,
    beta,
    offset_chosen,
    offset_rejected,
    offset_image_rejected,
    CONDITIONAL: tl.constexpr,
    ANCHOR_CHOSEN: tl.constexpr,
    ANCHOR_REJECTED: tl.constexpr,
    ANCHOR_IMAGE_REJECTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    example = tl.program_id(0)
    rejected = examples + example
    image_rejected = 2 * examples + example
    reward_c, has_c = _reward(logps, cu_seqlens, reference, example, beta, BLOCK)
    reward_r, has_r = _reward(logps, cu_seqlens, reference, rejected, beta, BLOCK)
    reward_i, has_i = _reward(logps, cu_seqlens, reference, image_rejected, beta, BLOCK)

    loss, slope = _term(terms, example, reward_c - reward_r, has_c & has_r)
    slope_c = slope
    slope_r = -slope
    slope_i = beta * 0.0  # not slope * 0: a slope of NaN belongs to its own two branches
    if CONDITIONAL:
        value, slope = _term(terms, examples + example, reward_c - reward_i, has_c & has_i)
        loss += value
        slope_c += slope
        slope_i -= slope
    if ANCHOR_CHOSEN:
        value, slope = _term(terms, 2 * examples + example, reward_c - offset_chosen, has_c)
        loss += value
        slope_c += slope
    if ANCHOR_REJECTED:
        value, slope = _term(terms, 3 * examples + example, offset_rejected - reward_r, has_r)
        loss += value
        slope_r -= slope
    if ANCHOR_IMAGE_REJECTED:
        value, slope = _term(terms, 4 * examples + example, offset_image_rejected - reward_i, has_i)
        loss += value
        slope_i -= slope

    tl.store(losses + example, loss)
    absent = float("nan")
    tl.store(rewards + example, tl.where(has_c, reward_c, absent))
    tl.store(rewards + rejected, tl.where(has_r, reward_r, absent))
    tl.store(rewards + image_rejected, tl.where(has_i, reward_i, absent))
    tl.store(slopes + example, beta * slope_c)
    tl.store(slopes + rejected, beta * slope_r)
    tl.store(slopes + image_rejected, beta * slope_i)


@triton.jit(do_not_specialize=["examples"])
def mdpo_loss_bwd_kernel(
    grad_losses,  # (B,) float32
    slopes,  # (3, B) float32
    cu_seqlens,  # (3B + 1,)
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


@torch.library.custom_op("mdpo_kernels::mdpo_loss", mutates_args=())
def _forward(
    logps: Tensor,
    cu_seqlens: Tensor,
    reference: Tensor,
    beta: float,
    conditional: bool,
    anchored: list[bool],
    offsets: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """→ losses (B,), rewards (3, B), terms (5, B), slopes (3, B), all float32; anchored and offsets are by branch."""
    losses, rewards, terms, slopes = _allocate_outputs(reference)
    if losses.shape[0]:
        with torch.cuda.device_of(logps):
            mdpo_loss_fwd_kernel[losses.shape](
                logps, cu_seqlens, reference, losses, rewards, terms, slopes, losses.shape[0], beta, *offsets,
                conditional, *anchored, BLOCK=256,
            )  # fmt: skip
    return losses, rewards, terms, slopes


def _allocate_outputs(reference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    examples = reference.shape[1]
    losses = torch.empty(examples, dtype=torch.float32, device=reference.device)
    rewards, slopes = losses.new_empty((3, examples)), losses.new_empty((3, examples))
    return losses, rewards, losses.new_zeros((len(TERMS), examples)), slopes


@_forward.register_fake
def _(logps, cu_seqlens, reference, beta, conditional, anchored, offsets):
    return _allocate_outputs(reference)


@torch.library.custom_op("mdpo_kernels::mdpo_loss_backward", mutates_args=())
def _backward(grad_losses: Tensor, slopes: Tensor, cu_seqlens: Tensor, rows: int) -> Tensor:
    """→ the log-probs' gradient (N,) float32."""
    grad_logps = torch.empty(rows, dtype=torch.float32, device=slopes.device)
    if slopes.numel():
        with torch.cuda.device_of(slopes):
            mdpo_loss_bwd_kernel[(slopes.numel(),)](
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
        return (None,) * 7
    slopes, cu_seqlens, logps = ctx.saved_tensors
    with torch.no_grad():
        found = _backward(grad_losses, slopes, cu_seqlens, logps.shape[0])
    return differentiable_once("fused_mdpo_loss", found, logps, grad_losses), *(None,) * 6


_forward.register_autograd(_differentiate, setup_context=_save)


def _loss_of_logps(
    logps: Tensor,
    cu_seqlens: Tensor,
    reference: Tensor,
    beta: float,
    anchor: float | Sequence[float],
    conditional: bool,
    anchors: Sequence[str],
    num_examples: int | None,
) -> MDPOLoss:
    """Token log-probs (N,) → the loss."""
    check_branch_logps("reference", reference)
    check_cu_seqlens(cu_seqlens, rows=logps.shape[0], examples=reference.shape[1])
    check_same_device(logps=logps, cu_seqlens=cu_seqlens, reference=reference)
    if not use_triton(logps):
        return reference_loss_of_logps(
            logps,
            cu_seqlens,
            reference,
            beta=beta,
            anchor=anchor,
            conditional=conditional,
            anchors=anchors,
            num_examples=num_examples,
        )
    anchor_terms = check_options(beta, anchor, anchors, num_examples)
    refuse_forward_mode("fused_mdpo_loss", logps)
    offsets = {term.row: term.offset for term in anchor_terms}
    losses, rewards, values, _ = _forward(
        logps,
        cu_seqlens.contiguous(),
        reference.detach().contiguous(),
        beta,
        conditional,
        [row in offsets for row in range(3)],
        [offsets.get(row, 0.0) for row in range(3)],
    )
    asked_for = [0, *([1] if conditional else []), *(2 + term.row for term in anchor_terms)]
    return MDPOLoss(
        loss=losses.sum() / examples_to_divide_by(losses.shape[0], num_examples),
        losses=losses,
        rewards=rewards,
        terms={TERMS[position]: values[position] for position in asked_for},
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

    logits, targets, ignore_index, softcap, scale: (N, V) and (N,), as in `token_logps`.
    cu_seqlens: (3B + 1,), int32 or int64, from 0 to N: sequences chosen 1 … B, rejected 1 … B, image_rejected 1 … B. An
        empty sequence is a branch that the example does not have; one whose targets are all ignored has log-prob 0.
    reference: (3, B), floating, the reference's summed log-probs (NaN also marks an absent branch); no gradient.
    beta, anchor, conditional, anchors, num_examples: as in `mdpo_loss`.

    Returns an `MDPOLoss`, of which `loss` and `losses` carry the gradient. Raises ValueError as `token_logps` and
    `mdpo_loss` do, and for a cu_seqlens that does not fit. Nothing here synchronises a GPU.
    """
    logps = token_logps(logits, targets, ignore_index=ignore_index, softcap=softcap, scale=scale)
    return _loss_of_logps(logps, cu_seqlens, reference, beta, anchor, conditional, anchors, num_examples)


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

    hidden, weight, targets, bias, ignore_index, softcap, scale, max_workspace_bytes: as in `linear_token_logps`.
    cu_seqlens, reference: as in `fused_mdpo_loss`.
    beta, anchor, conditional, anchors, num_examples: as in `mdpo_loss`.

    Returns an `MDPOLoss`, of which `loss` and `losses` carry the gradient. Raises ValueError as `linear_token_logps`
    and `mdpo_loss` do, and for a cu_seqlens that does not fit. Nothing here synchronises a GPU.
    """
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
    return _loss_of_logps(logps, cu_seqlens, reference, beta, anchor, conditional, anchors, num_examples)
