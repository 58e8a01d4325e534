"""token_logps: the log-probs of given tokens from logits, without a softmax the size of the logits.

Shapes: N rows, V vocabulary. One program reads a row once (forward), or writes one block of a row (backward).

The gradient of logp with respect to the logit x_v is scale·slope_v times −p_v, or times 1 − p for the target, where
slope = dz/dx / scale: the target's entry is a number of its own, not 1 minus one close to 1 (see online_softmax.py).
"""

from typing import Any

import torch
from torch import Tensor

from . import reference
from .backend import tl, triton, use_triton
from .checks import check_logits_arguments
from .derivatives import differentiable_once, gradients, refuse_forward_mode
from .online_softmax import (
    add_lanes,
    add_totals,
    empty_lanes,
    log_prob,
    logit_gradient,
    others_of,
    reduce_lanes,
    scale_and_cap,
)
from .tiling import ALIGNED, ALIGNMENT, launch_options

# Where V is not a multiple of ALIGNMENT, rows begin anywhere. Vectors are read from the row's first multiple of it to
# its last one; the entries before and behind, fewer than EDGES together, are read one by one.
EDGES = tl.constexpr(2 * ALIGNMENT)


@triton.jit
def aligned_part(start, columns):
    """Where a row from `start` on has its first multiple of ALIGNMENT, how many columns lie before it, and how many
    follow up to the last one."""
    first = (start + (ALIGNED - 1)) // ALIGNED * ALIGNED
    head = (first - start).to(tl.int32)
    return first, head, tl.maximum(columns - head, 0) // ALIGNED * ALIGNED


@triton.jit
def edges(head, length, columns):
    """The columns before and behind the aligned part, (EDGES,); `columns` for a lane that has none."""
    lane = tl.arange(0, EDGES)
    column = tl.where(lane < ALIGNED, lane, head + length + lane - ALIGNED)
    return tl.where((column < columns) & ((lane >= ALIGNED) | (lane < head)), column, columns)


@triton.jit(do_not_specialize=["rows", "columns", "ignore_index"])
def token_logps_fwd_kernel(
    logits,  # (N, V), rows row_stride apart
    targets,  # (N,)
    logps,  # (N,) float32, out
    stats,  # (3, N) float32, out: m, 1 − p, (1 − p)/S
    row_stride,
    rows,
    columns,
    ignore_index,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    scored = target != ignore_index
    start = row * row_stride
    first, head, length = aligned_part(start, columns)
    lane_maximum, lane_total = empty_lanes(BLOCK)
    for done in range(0, length, BLOCK):
        lane = done + tl.arange(0, BLOCK)
        x = tl.load(logits + first + lane, mask=lane < length, other=0.0).to(tl.float32)
        z, _ = scale_and_cap(x, scale, softcap, HAS_SOFTCAP)
        lane_maximum, lane_total = add_lanes(lane_maximum, lane_total, others_of(z, lane, target - head, length))
    maximum, total = reduce_lanes(lane_maximum, lane_total)
    column = edges(head, length, columns)
    edge_x = tl.load(logits + start + column, mask=column < columns, other=0.0).to(tl.float32)
    edge_z, _ = scale_and_cap(edge_x, scale, softcap, HAS_SOFTCAP)
    edge_maximum, edge_total = empty_lanes(EDGES)
    edge_maximum, edge_total = add_lanes(edge_maximum, edge_total, others_of(edge_z, column, target, columns))
    edge_maximum, edge_total = reduce_lanes(edge_maximum, edge_total)
    maximum, total, _ = add_totals(maximum, total, edge_maximum, edge_total)

    target_x = tl.load(logits + start + target, mask=scored, other=0.0).to(tl.float32)
    target_logit, _ = scale_and_cap(target_x, scale, softcap, HAS_SOFTCAP)
    log_probability, rest, factor = log_prob(target_logit, maximum, total, scored)
    tl.store(logps + row, log_probability)
    tl.store(stats + row, maximum)
    tl.store(stats + rows + row, rest)
    tl.store(stats + 2 * rows + row, factor)


@triton.jit(do_not_specialize=["rows", "columns"])
def token_logps_bwd_kernel(
    grad_logps,  # (N,) float32
    logits,  # (N, V), rows row_stride apart
    targets,  # (N,)
    stats,  # (3, N) float32, from the forward
    grad_logits,  # (N, V), rows grad_row_stride apart, out; may be logits itself: each entry is read, then written
    row_stride,
    grad_row_stride,
    rows,
    columns,
    scale,
    softcap,
    SAME_STRIDE: tl.constexpr,  # of logits and grad_logits: then both are vectors at the same places
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    maximum = tl.load(stats + row)
    rest = tl.load(stats + rows + row)
    factor = tl.load(stats + 2 * rows + row)
    grad = tl.load(grad_logps + row) * scale
    start = row * grad_row_stride
    first, head, length = aligned_part(start, columns)
    read = first
    if not SAME_STRIDE:
        read = row * row_stride + head
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + read + lane, mask=lane < length, other=0.0).to(tl.float32)
    z, slope = scale_and_cap(x, scale, softcap, HAS_SOFTCAP)
    others = others_of(z, lane, target - head, length)
    gradient = logit_gradient(others, slope, lane == target - head, maximum, rest, factor, grad)
    tl.store(grad_logits + first + lane, gradient, mask=lane < length)
    if tl.program_id(1) == 0:
        column = edges(head, length, columns)
        edge_x = tl.load(logits + row * row_stride + column, mask=column < columns, other=0.0).to(tl.float32)
        edge_z, edge_slope = scale_and_cap(edge_x, scale, softcap, HAS_SOFTCAP)
        edge_others = others_of(edge_z, column, target, columns)
        edge_gradient = logit_gradient(edge_others, edge_slope, column == target, maximum, rest, factor, grad)
        tl.store(grad_logits + start + column, edge_gradient, mask=column < columns)


@torch.library.custom_op("mdpo_kernels::token_logps", mutates_args=())
def _forward(
    logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None, scale: float, inplace_backward: bool
) -> tuple[Tensor, Tensor]:
    """→ logps (N,) and what the backward needs of each row, (3, N), both float32."""
    rows, columns = logits.shape
    logps, stats = (torch.empty(shape, dtype=torch.float32, device=logits.device) for shape in ((rows,), (3, rows)))
    if rows:
        with torch.cuda.device_of(logits):
            token_logps_fwd_kernel[(rows,)](
                logits, targets, logps, stats, logits.stride(0), rows, columns, ignore_index, scale, softcap or 1.0,
                HAS_SOFTCAP=softcap is not None, **launch_options(columns),
            )  # fmt: skip
    return logps, stats


@_forward.register_fake
def _(logits, targets, ignore_index, softcap, scale, inplace_backward):
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.float32), logits.new_empty((3, rows), dtype=torch.float32)


def _launch_backward(
    grad_logps: Tensor,
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    softcap: float | None,
    scale: float,
    grad_logits: Tensor,
) -> None:
    rows, columns = logits.shape
    if rows == 0:
        return
    options = launch_options(columns)
    with torch.cuda.device_of(logits):
        token_logps_bwd_kernel[(rows, triton.cdiv(columns, options["BLOCK"]))](
            grad_logps.contiguous(), logits, targets, stats, grad_logits,
            logits.stride(0), grad_logits.stride(0), rows, columns, scale, softcap or 1.0,
            SAME_STRIDE=logits.stride(0) == grad_logits.stride(0), HAS_SOFTCAP=softcap is not None, **options,
        )  # fmt: skip


@torch.library.custom_op("mdpo_kernels::token_logps_backward", mutates_args=())
def _backward(
    grad_logps: Tensor, logits: Tensor, targets: Tensor, stats: Tensor, softcap: float | None, scale: float
) -> Tensor:
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _launch_backward(grad_logps, logits, targets, stats, softcap, scale, grad_logits)
    return grad_logits


@_backward.register_fake
def _(grad_logps, logits, targets, stats, softcap, scale):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.custom_op("mdpo_kernels::token_logps_backward_", mutates_args={"logits"})
def _backward_inplace(
    grad_logps: Tensor, logits: Tensor, targets: Tensor, stats: Tensor, softcap: float | None, scale: float
) -> None:
    _launch_backward(grad_logps, logits, targets, stats, softcap, scale, logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, targets, _, ctx.softcap, ctx.scale, ctx.inplace_backward = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_logps: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_logps is None:
        return gradients(ctx)
    logits, targets, stats = ctx.saved_tensors
    with torch.no_grad():
        if ctx.inplace_backward:
            found = logits.detach()
            _backward_inplace(grad_logps, found, targets, stats, ctx.softcap, ctx.scale)
        else:
            found = _backward(grad_logps, logits, targets, stats, ctx.softcap, ctx.scale)
    return gradients(ctx, differentiable_once("token_logps", found, logits, grad_logps))


_forward.register_autograd(_differentiate, setup_context=_save)


def token_logps(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    scale: float = 1.0,
    inplace_backward: bool = False,
) -> Tensor:
    """Log-probs of `targets` under softmax(z), z = scale·logits, or z = softcap·tanh(scale·logits / softcap).

    Args:
        logits: (N, V), float32, bfloat16, float16 or float64; rows may lie apart (any row stride); V of any size.
        targets: (N,), int64 or int32, in 0 … V − 1.
        ignore_index: a row with this target gives 0 and no gradient.
        softcap: above 0; None: no cap.
        scale: of the logits, before the cap.
        inplace_backward: the backward writes the logits' gradient over the logits, which halves its memory. For logits
            that nothing else needs any more; a second backward through them raises. Where they cannot be overwritten
            (columns not contiguous, rows that overlap), under torch.compile and in plain PyTorch it has no effect.

    Returns:
        (N,) float32 (float64 for float64). Statistics are float32; the gradient has the dtype of the logits, and its
        error does not grow as p → 1. NaN and infinities give what log_softmax gives, in value and gradient; a row that
        is ignored gives 0 and no gradient whatever is in it.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, and a target out of range (on a GPU: an
            assertion on the device, so that nothing synchronises).
        NotImplementedError: a second derivative or forward mode of the kernels; plain PyTorch has both.

    Online softmax: Milakov and Gimelshein 2018; here with the target kept out of the sum.
    """
    check_logits_arguments(logits, targets, ignore_index, softcap, scale)
    if not use_triton(logits):
        return reference.token_logps_of(logits, targets, ignore_index, softcap, scale)
    refuse_forward_mode("token_logps", logits)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    owns_its_rows = logits.stride(0) >= logits.shape[1]
    inplace = inplace_backward and owns_its_rows and not torch.compiler.is_compiling()
    return _forward(logits, targets.contiguous(), ignore_index, softcap, scale, inplace)[0]
