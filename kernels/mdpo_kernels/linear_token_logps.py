"""linear_token_logps: the log-probs of given tokens from hidden states and the head; the logits are never whole.

Shapes: N rows, H hidden size, V vocabulary; R rows and T columns of one tile of the logits.

Frozen head. With e_v = exp(z_v − m), S = Σ_{v≠y} e_v and 1 − p from online_softmax.py, the gradient of logp with
respect to a hidden row does not depend on what comes from above:

    U = scale·[(1 − p)·slope_y·W_y − (1 − p)/S · A],   A = Σ_{v≠y} e_v·slope_v·W_v,   slope = dz/dx / scale

So the forward leaves U (N, H) behind, 4NHV operations in all, and the backward is a row scaling. A is accumulated in
float32 over vocabulary tiles, rescaled when the running maximum m moves, as FlashAttention does (Dao et al. 2022), so
that no tiling recomputes anything. e_v ≤ 1 is rounded to the weight's dtype as an operand of the product only, and W_y
is added in float32: nothing cancels as p → 1, and in float16 nothing underflows that matters.

Trainable head. The coefficients of dW are known only in the backward, which computes the logits again: 8NHV. No grad:
2NHV and no U.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .backend import tl, triton, use_triton
from .checks import check_linear_arguments
from .derivatives import differentiable_once, gradients, refuse_forward_mode
from .head import Head
from .linear_token_logps_backward import trainable_head_backward
from .online_softmax import add_lanes, add_totals, empty_lanes, exp, log_prob, others_of, reduce_lanes, scale_and_cap
from .tiling import ALIGNED, Tiling, float32_product, launch_options, padded, plan_tiles

# With a frozen head the vocabulary stays whole, which leaves nothing to add up, until fewer rows than this fit.
WHOLE_ROWS = 512
TILED_ROWS = 1024


# Numbers that differ from micro-batch to micro-batch and only count or address: to specialise on them is to compile
# anew.
@triton.jit(do_not_specialize=["rows", "columns", "first_column"])
def linear_token_logps_fwd_kernel(
    logits,  # (R, T) float32, rows row_stride apart
    bias,  # (T,) and zeros up to a multiple of ALIGNMENT
    targets,  # (R,)
    state,  # (4, R) float32, in and out: m, S, z_y, slope_y over the tiles so far
    rescale,  # (R,) float32, out: what A so far is to be multiplied by
    coefficients,  # (R, T) in the weight's dtype, rows row_stride apart, out: e_v·slope_v, 0 for the target
    row_stride,
    rows,
    columns,
    first_column,
    scale,
    softcap,
    FIRST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WITH_COEFFICIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row) - first_column
    row_logits, row_coefficients = logits + row * row_stride, coefficients + row * row_stride
    # A buffer's rows go on to a multiple of ALIGNMENT: with a mask that ends there, loads and stores are vectors.
    padded_columns = (columns + ALIGNED - 1) // ALIGNED * ALIGNED
    lane_maximum, lane_total = empty_lanes(BLOCK)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(row_logits + column, mask=column < padded_columns, other=0.0)
        if HAS_BIAS:
            x += tl.load(bias + column, mask=column < padded_columns, other=0.0).to(tl.float32)
        z, _ = scale_and_cap(x, scale, softcap, HAS_SOFTCAP)
        lane_maximum, lane_total = add_lanes(lane_maximum, lane_total, others_of(z, column, target, columns))
    maximum, total = reduce_lanes(lane_maximum, lane_total)
    if not FIRST:
        maximum, total, factor = add_totals(tl.load(state + row), tl.load(state + rows + row), maximum, total)
        tl.store(rescale + row, factor)
    tl.store(state + row, maximum)
    tl.store(state + rows + row, total)

    inside = (target >= 0) & (target < columns)
    target_x = tl.load(row_logits + target, mask=inside, other=0.0)
    if HAS_BIAS:
        target_x += tl.load(bias + target, mask=inside, other=0.0).to(tl.float32)
    target_logit, target_slope = scale_and_cap(target_x, scale, softcap, HAS_SOFTCAP)
    # The first tile writes also where the target is not in it, so that no entry stays uninitialised.
    tl.store(state + 2 * rows + row, target_logit, mask=inside | FIRST)
    tl.store(state + 3 * rows + row, target_slope, mask=inside | FIRST)

    if WITH_COEFFICIENTS:
        # From the end to the beginning: what the first pass read last is still in the L2 cache.
        last = (columns - 1) // BLOCK * BLOCK
        for done in range(0, columns, BLOCK):
            column = last - done + tl.arange(0, BLOCK)
            x = tl.load(row_logits + column, mask=column < padded_columns, other=0.0)
            if HAS_BIAS:
                x += tl.load(bias + column, mask=column < padded_columns, other=0.0).to(tl.float32)
            z, slope = scale_and_cap(x, scale, softcap, HAS_SOFTCAP)
            power = tl.where((column < columns) & (column != target), exp(z - maximum), 0.0)
            tl.store(row_coefficients + column, power * slope, mask=column < padded_columns)


@triton.jit(do_not_specialize=["tile_rows", "rows", "ignore_index"])
def linear_token_logps_finish_kernel(
    state,  # (4, R) float32: m, S, z_y, slope_y over all tiles
    targets,  # (R,)
    weight,  # (V, H), strides weight_row_stride and weight_column_stride
    weighted,  # (R, H) float32: A
    logps,  # (R,) of (N,) float32, out
    stats,  # (3, R) of (3, N) float32, out: m, 1 − p, (1 − p)/S
    unit,  # (R, H) in the dtype of hidden, out: U
    weight_row_stride,
    weight_column_stride,
    tile_rows,
    rows,
    ignore_index,
    scale,
    HIDDEN_SIZE: tl.constexpr,
    WITH_UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.int64)
    scored = target != ignore_index
    maximum = tl.load(state + row)
    total = tl.load(state + tile_rows + row)
    target_logit = tl.load(state + 2 * tile_rows + row)
    log_probability, rest, factor = log_prob(target_logit, maximum, total, scored)
    tl.store(logps + row, log_probability)
    tl.store(stats + row, maximum)
    tl.store(stats + rows + row, rest)
    tl.store(stats + 2 * rows + row, factor)
    if WITH_UNIT:
        slope = tl.load(state + 3 * tile_rows + row)
        target_row = weight + target * weight_row_stride
        for first in range(0, HIDDEN_SIZE, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < HIDDEN_SIZE
            own = tl.load(target_row + column.to(tl.int64) * weight_column_stride, mask=inside & scored, other=0.0).to(
                tl.float32
            )
            others = tl.load(weighted + row * HIDDEN_SIZE + column, mask=inside, other=0.0)
            gradient = scale * (rest * slope * own - factor * others)
            # p = 1, or a row that is not scored, whose logits may be NaN
            gradient = tl.where(rest == 0.0, 0.0, gradient)
            tl.store(unit + row * HIDDEN_SIZE + column, gradient, mask=inside)


class _Buffers(NamedTuple):
    """The workspace of one tile. Without U the coefficients and A are not used, and the logits stand for them."""

    logits: Tensor  # (R, T) float32
    coefficients: Tensor  # (R, T) in the weight's dtype
    weighted: Tensor  # (R, H) float32: A


@torch.library.custom_op("mdpo_kernels::linear_token_logps", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    graph: Tensor,
    ignore_index: int,
    softcap: float | None,
    scale: float,
    max_workspace_bytes: int,
    with_unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """→ logps (N,) float32, U (N, H) or (0, H), and what a trainable head's backward needs, (3, N) float32.

    graph: (0, H), of the graph of hidden and without its memory: ties a frozen head's backward to it.
    """
    rows, hidden_size = hidden.shape
    logps, unit, stats = _allocate_outputs(hidden, with_unit)
    if rows == 0:
        return logps, unit, stats
    head = Head(weight, padded(bias), softcap, scale)
    # The same tiles with a gradient and without: policy and reference of equal weights get bit-equal log-probs.
    max_entries = max_workspace_bytes // (4 + weight.itemsize)
    tiling = plan_tiles(rows, head.vocabulary, max_entries, whole_rows=WHOLE_ROWS, tiled_rows=TILED_ROWS)
    buffers = _allocate_buffers(hidden, head, tiling, with_unit)
    # Triton launches on the current GPU, whichever one the tensors are on.
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        for first_row in range(0, rows, tiling.rows):
            chunk = slice(first_row, first_row + tiling.rows)
            state = _forward_rows(hidden[chunk], head, targets[chunk], tiling, buffers, with_unit)
            linear_token_logps_finish_kernel[(state.shape[1],)](
                state, targets[chunk], weight, buffers.weighted, logps[chunk], stats[:, chunk], unit[chunk],
                weight.stride(0), weight.stride(1), state.shape[1], rows, ignore_index, scale,
                HIDDEN_SIZE=hidden_size, WITH_UNIT=with_unit, **launch_options(hidden_size),
            )  # fmt: skip
    return logps, unit, stats


@_forward.register_fake
def _(hidden, weight, targets, bias, graph, ignore_index, softcap, scale, max_workspace_bytes, with_unit):
    return _allocate_outputs(hidden, with_unit)


def _allocate_outputs(hidden: Tensor, with_unit: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, hidden_size = hidden.shape
    logps = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    unit = torch.empty((rows if with_unit else 0, hidden_size), dtype=hidden.dtype, device=hidden.device)
    return logps, unit, torch.empty((3, rows), dtype=torch.float32, device=hidden.device)


def _allocate_buffers(hidden: Tensor, head: Head, tiling: Tiling, with_unit: bool) -> _Buffers:
    logits = tiling.buffer(torch.float32, hidden.device)
    if not with_unit:
        return _Buffers(logits, logits, logits)
    weighted = torch.empty((tiling.rows, hidden.shape[1]), dtype=torch.float32, device=hidden.device)
    return _Buffers(logits, tiling.buffer(head.weight.dtype, hidden.device), weighted)


def _forward_rows(
    hidden: Tensor, head: Head, targets: Tensor, tiling: Tiling, buffers: _Buffers, with_unit: bool
) -> Tensor:
    """All vocabulary tiles of one chunk of rows → the rows' state (4, R); leaves A in the buffer `weighted`."""
    rows = hidden.shape[0]
    state = torch.empty((4, rows), dtype=torch.float32, device=hidden.device)
    rescale = torch.empty((rows, 1), dtype=torch.float32, device=hidden.device)
    weighted = buffers.weighted[:rows]
    for number, tile in enumerate(head.tiles(tiling.columns)):
        columns, first = tile.vocabulary, number * tiling.columns
        float32_product(hidden, tile.weight.T, out=buffers.logits[:rows, :columns])
        linear_token_logps_fwd_kernel[(rows,)](
            buffers.logits, tile.bias, targets, state, rescale, buffers.coefficients,
            tiling.row_stride, rows, columns, first, tile.scale, tile.softcap or 1.0,
            FIRST=first == 0, WITH_COEFFICIENTS=with_unit, **tile.flags, **launch_options(head.vocabulary),
        )  # fmt: skip
        if with_unit and first == 0:
            float32_product(buffers.coefficients[:rows, :columns], tile.weight, out=weighted)
        elif with_unit:
            product = float32_product(buffers.coefficients[:rows, :columns], tile.weight)
            torch.addcmul(product, weighted, rescale, out=weighted)
    return state


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, bias, graph, _, ctx.softcap, ctx.scale, ctx.max_workspace_bytes, ctx.with_unit = inputs
    _, unit, stats = output
    if ctx.with_unit:
        ctx.save_for_backward(unit, graph)
    else:
        ctx.save_for_backward(hidden, weight, targets, bias, stats)
    ctx.mark_non_differentiable(unit, stats)
    ctx.set_materialize_grads(False)  # or the unused gradient of U would be allocated


def _differentiate(ctx: Any, grad_logps: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_logps is None:
        return gradients(ctx)
    if ctx.with_unit:
        unit, graph = ctx.saved_tensors
        with torch.no_grad():
            # out= keeps the float32 product from being stored before it is rounded.
            found = torch.mul(unit, grad_logps.unsqueeze(1), out=torch.empty_like(unit))
        return gradients(ctx, differentiable_once("linear_token_logps", found, graph, grad_logps))
    hidden, weight, targets, bias, stats = ctx.saved_tensors
    needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]]
    with torch.no_grad():
        found = trainable_head_backward(
            grad_logps.contiguous(),
            hidden,
            weight,
            targets,
            bias,
            stats,
            ctx.softcap,
            ctx.scale,
            ctx.max_workspace_bytes,
            *needed,
        )
    parents = [hidden, weight, grad_logps, *([] if bias is None else [bias])]
    of_hidden, of_weight, of_bias = (
        differentiable_once("linear_token_logps", grad, *parents) if need else None
        for grad, need in zip(found, needed, strict=True)
    )
    return gradients(ctx, of_hidden, of_weight, None, of_bias)


_forward.register_autograd(_differentiate, setup_context=_save)


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
    """Log-probs of `targets` under the softmax of a head's logits, which are never whole.

    With x = hidden @ weightᵀ + bias, it is the softmax of z = scale·x, or of z = softcap·tanh(scale·x / softcap).

    Whether the head is trained is read from requires_grad of `weight` and `bias`: a frozen head takes 4NHV operations
    for forward and backward and keeps the unit gradient, (N, H), between them; a trainable one 8NHV. Without grad:
    2NHV, nothing kept. Plain PyTorch, on a CPU, recomputes the logits in the backward for either.

    Args:
        hidden: (N, H), float32, bfloat16, float16 or float64.
        weight: (V, H), of the same dtype; under autocast `hidden` is cast to it, never the weight (that would be a
            second copy of it).
        targets: (N,), int64 or int32, in 0 … V − 1.
        bias: (V,), floating.
        ignore_index: a row with this target gives 0 and no gradient.
        softcap: above 0; None: no cap.
        scale: of the logits, before the cap.
        max_workspace_bytes: a bound on every temporary of N×V kind together (a tile of the logits and of their
            gradient). Not in it: the gradients themselves, two float32 tensors of the size of a tile's rows of hidden,
            and for a trainable head float32 sums of hidden's gradient and of one tile of the weight's.

    Returns:
        (N,) float32 (float64 for float64). NaN and infinities give what log_softmax gives, in value and gradient; a row
        that is ignored gives 0 and no gradient whatever its logits are.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, a head wrapped by an adapter, and a target out
            of range (on a GPU: an assertion on the device, so that nothing synchronises).
        NotImplementedError: a second derivative or forward mode of the kernels; plain PyTorch has both.
    """
    head = Head(weight, bias, softcap, scale)
    hidden = check_linear_arguments(hidden, head, targets, ignore_index, max_workspace_bytes)
    if not use_triton(hidden):
        return reference.linear_token_logps_of(hidden, head, targets, ignore_index, max_workspace_bytes)
    refuse_forward_mode("linear_token_logps", hidden, weight, bias)
    with_unit = torch.is_grad_enabled() and hidden.requires_grad and not head.trains
    bias = None if bias is None else bias.contiguous()
    graph = hidden[:0].clone()  # a slice alone would keep all of hidden for the backward
    options = (ignore_index, softcap, scale, min(max_workspace_bytes, 2**62), with_unit)
    return _forward(hidden, weight, targets.contiguous(), bias, graph, *options)[0]
