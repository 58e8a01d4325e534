"""linear_token_logps' backward for a trainable head: the logits again, tile by tile, then dhidden, dW and dbias.

Shapes: N rows, H hidden size, V vocabulary; R rows and T columns of one tile of the logits.

With g the gradient from above, the logits' gradient is g·scale·slope_v times −p_v, or times 1 − p for the target (see
online_softmax.py); in the weight's dtype it is the operand of two products. 6NHV operations, with the forward's 8NHV.
"""

import torch
from torch import Tensor

from .backend import tl, triton
from .head import Head
from .online_softmax import logit_gradient, others_of, scale_and_cap
from .tiling import ALIGNED, float32_product, launch_options, padded, plan_tiles

# More rows at a time than in the forward: each chunk of rows adds a float32 product to a tile of dW.
TILED_ROWS = 4096


@triton.jit(do_not_specialize=["rows", "columns", "first_column"])
def linear_token_logps_bwd_kernel(
    grad_logps,  # (R,) float32
    logits,  # (R, T) float32, rows row_stride apart
    bias,  # (T,) and zeros up to a multiple of ALIGNMENT
    targets,  # (R,)
    stats,  # (3, R) of (3, N) float32, from the forward
    coefficients,  # (R, T) in the weight's dtype, rows row_stride apart, out: the logits' gradient
    row_stride,
    rows,
    columns,
    first_column,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets + row) - first_column
    maximum = tl.load(stats + row)
    rest = tl.load(stats + rows + row)
    factor = tl.load(stats + 2 * rows + row)
    grad = tl.load(grad_logps + row) * scale
    padded_columns = (columns + ALIGNED - 1) // ALIGNED * ALIGNED
    x = tl.load(logits + row * row_stride + column, mask=column < padded_columns, other=0.0)
    if HAS_BIAS:
        x += tl.load(bias + column, mask=column < padded_columns, other=0.0).to(tl.float32)
    z, slope = scale_and_cap(x, scale, softcap, HAS_SOFTCAP)
    others = others_of(z, column, target, columns)
    gradient = logit_gradient(others, slope, column == target, maximum, rest, factor, grad)
    tl.store(coefficients + row * row_stride + column, gradient, mask=column < padded_columns)


@torch.library.custom_op("mdpo_kernels::linear_token_logps_backward", mutates_args=())
def trainable_head_backward(
    grad_logps: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    softcap: float | None,
    scale: float,
    max_workspace_bytes: int,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """→ the gradients of hidden (N, H), weight (V, H) and bias (V,), empty where not needed.

    The vocabulary is the outer loop, so that one tile of dW at a time is added up in float32 and rounded once.
    """
    rows = hidden.shape[0]
    hidden_sum, grad_weight, bias_sum = (
        torch.zeros(like.shape if needed else (0,), dtype=dtype, device=hidden.device)
        for like, needed, dtype in (
            (hidden, needs_hidden, torch.float32),
            (weight, needs_weight, weight.dtype),
            (weight[:, 0], needs_bias, torch.float32),
        )
    )
    if rows == 0:
        return hidden_sum.to(hidden.dtype), grad_weight, bias_sum if bias is None else bias_sum.to(bias.dtype)
    head = Head(weight, padded(bias), softcap, scale)
    max_entries = max_workspace_bytes // (4 + weight.itemsize)
    tiling = plan_tiles(rows, head.vocabulary, max_entries, whole_rows=rows, tiled_rows=TILED_ROWS)
    options = launch_options(head.vocabulary)
    logits, coefficients = (tiling.buffer(dtype, hidden.device) for dtype in (torch.float32, weight.dtype))
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        for number, tile in enumerate(head.tiles(tiling.columns)):
            first = number * tiling.columns
            tokens = slice(first, first + tile.vocabulary)
            # A single chunk of rows leaves nothing to add up: the product itself rounds once.
            summed = needs_weight and tiling.rows < rows
            weight_sum = torch.zeros_like(tile.weight, dtype=torch.float32) if summed else grad_weight[tokens]
            for first_row in range(0, rows, tiling.rows):
                chunk = slice(first_row, min(first_row + tiling.rows, rows))
                gradient = _logits_gradient(
                    grad_logps[chunk], hidden[chunk], tile, targets[chunk], stats[:, chunk], first, logits,
                    coefficients, options,
                )  # fmt: skip
                if needs_hidden:
                    hidden_sum[chunk] += float32_product(gradient, tile.weight)
                if summed:
                    weight_sum += float32_product(gradient.T, hidden[chunk])
                elif needs_weight:
                    torch.mm(gradient.T, hidden[chunk], out=weight_sum)
                if needs_bias:
                    bias_sum[tokens] += gradient.sum(0, dtype=torch.float32)
            if summed:
                grad_weight[tokens] = weight_sum
    return hidden_sum.to(hidden.dtype), grad_weight, bias_sum if bias is None else bias_sum.to(bias.dtype)


@trainable_head_backward.register_fake
def _(grad_logps, hidden, weight, targets, bias, stats, softcap, scale, max_workspace_bytes, *needed):
    needs_hidden, needs_weight, needs_bias = needed
    return (
        torch.empty(hidden.shape if needs_hidden else (0,), dtype=hidden.dtype, device=hidden.device),
        torch.empty(weight.shape if needs_weight else (0,), dtype=weight.dtype, device=hidden.device),
        torch.empty(
            weight.shape[:1] if needs_bias else (0,),
            dtype=torch.float32 if bias is None else bias.dtype,
            device=hidden.device,
        ),
    )


def _logits_gradient(
    grad_logps: Tensor,
    hidden: Tensor,
    tile: Head,
    targets: Tensor,
    stats: Tensor,
    first_column: int,
    logits: Tensor,
    coefficients: Tensor,
    options: dict[str, int],
) -> Tensor:
    """The logits' gradient of one tile, (R, T) in the weight's dtype, in the buffer `coefficients`."""
    rows, columns = hidden.shape[0], tile.vocabulary
    float32_product(hidden, tile.weight.T, out=logits[:rows, :columns])
    linear_token_logps_bwd_kernel[(rows, triton.cdiv(columns, options["BLOCK"]))](
        grad_logps, logits, tile.bias, targets, stats, coefficients,
        logits.stride(0), stats.stride(0), columns, first_column, tile.scale, tile.softcap or 1.0,
        **tile.flags, **options,
    )  # fmt: skip
    return coefficients[:rows, :columns]
