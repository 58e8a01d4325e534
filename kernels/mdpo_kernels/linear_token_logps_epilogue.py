"""An experiment: linear_token_logps for a frozen head, with the exponentials in the first product's epilogue.

The logits never reach memory. A tile of the product hidden @ weightᵀ becomes powers of two where it was computed, and
these alone are written:

    e_v = 2^(z_v·log₂e − k),   k = ⌈log₂e · max z_v⌉ over the tile's tokens v ≠ y,   for each row and tile

The exponents k are integers, so e ≤ 1 whatever the logits are, and bringing a row's tiles to the largest one, K, is a
factor 2^(k − K), exact in any dtype: block floating point. The second product applies it as it reads. A logit costs a
write and a read in the weight's dtype, 4 bytes in bfloat16, where ``mdpo_kernels.linear_token_logps`` takes 16: it
writes logits in float32, reads them twice, and writes coefficients that cuBLAS reads. The price is that both products
are Triton's. Which is faster has not been measured; bench/LOG.md has the prediction.

Shapes: N rows, H hidden size, V vocabulary; a chunk of R rows, and T tiles of the vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backend import tl, triton
from .checks import check_linear_arguments
from .head import Head
from .linear_token_logps import linear_token_logps_finish_kernel
from .online_softmax import scale_and_cap
from .tiling import ALIGNMENT, launch_options

ROWS = 128  # of a program
_WIDE_BYTES = 160 * 1024  # of shared memory: with 256 columns a program takes 147 KB of it in bfloat16, with 128 98 KB


@triton.jit
def exponent_of(maximum):
    """k = ⌈log₂e · maximum⌉, finite for any logit."""
    return tl.ceil(tl.maximum(maximum * 1.4426950408889634, -3.4028234663852886e38))


@triton.jit
def fraction_of(maximum):
    """log₂e · maximum − k, in (−1, 0]; 0 for what many mask with, numbers so large that their own rounding is more."""
    fraction = tl.fma(maximum, 1.4426950408889634, -exponent_of(maximum))
    return tl.where(tl.abs(maximum) < 1048576.0, fraction, 0.0)


@triton.jit
def power_of_two(exponent):
    """2^exponent for integers ≤ 0 in float32, exact; 0 below −126."""
    whole = tl.maximum(exponent, -127.0).to(tl.int32) + 127
    return (whole << 23).to(tl.float32, bitcast=True)


@triton.jit
def shift_of(maximum, highest):
    """2^(k − K), for a tile's maximum and its row's: exact where logits are logits. Where they are so large that k says
    less than the maximum itself, by the maxima."""
    exact = power_of_two(exponent_of(maximum) - exponent_of(highest))
    by_maxima = (maximum - highest) * 1.4426950408889634 - fraction_of(maximum) + fraction_of(highest)
    small = (tl.abs(maximum) < 1048576.0) & (tl.abs(highest) < 1048576.0)
    return tl.where(small, exact, tl.exp2(by_maxima))


@triton.jit
def powers_kernel(
    hidden,  # (R, H)
    weight,  # (V, H)
    bias,  # (V,)
    targets,  # (R,)
    powers,  # (R, V) in the weight's dtype, rows row_stride apart, out: e_v·slope_v, 0 for the target
    maxima,  # (T, R) float32, out: max z_v, −inf where a tile has no token but y
    totals,  # (T, R) float32, out: Σ e_v
    target_logits,  # (2, R) float32, out: z_y and slope_y
    hidden_row_stride,
    hidden_column_stride,
    weight_row_stride,
    weight_column_stride,
    row_stride,
    rows,
    vocabulary,
    scale,
    softcap,
    HIDDEN_SIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WITH_POWERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # Programs of all rows follow one another: they share a tile of the weight, the larger operand.
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    tile = tl.program_id(1)
    column = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    depth = tl.arange(0, BLOCK_DEPTH)
    # A row or column too many repeats a real one, and is masked where something is written.
    hidden_rows = hidden + (row % rows)[:, None] * hidden_row_stride
    weight_rows = weight + (column % vocabulary).to(tl.int64)[None, :] * weight_row_stride
    x = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, HIDDEN_SIZE, BLOCK_DEPTH):
        inside = first + depth < HIDDEN_SIZE
        left = tl.load(hidden_rows + (first + depth)[None, :] * hidden_column_stride, mask=inside[None, :], other=0.0)
        right = tl.load(weight_rows + (first + depth)[:, None] * weight_column_stride, mask=inside[:, None], other=0.0)
        if WIDEN:  # Triton's interpreter would multiply bfloat16's bits
            left, right = left.to(tl.float32), right.to(tl.float32)
        x = tl.dot(left, right, x, input_precision="ieee")
    if HAS_BIAS:
        x += tl.load(bias + column, mask=column < vocabulary, other=0.0).to(tl.float32)[None, :]
    z, slope = scale_and_cap(x, scale, softcap, HAS_SOFTCAP)
    own = tl.load(targets + row, mask=row < rows, other=-1).to(tl.int32)
    held = (row < rows) & (own >= tile * BLOCK_COLUMNS) & (own < (tile + 1) * BLOCK_COLUMNS)
    is_target = column[None, :] == own[:, None]
    tl.store(target_logits + row, tl.sum(tl.where(is_target, z, 0.0), 1), mask=held)
    if HAS_SOFTCAP:
        tl.store(target_logits + rows + row, tl.sum(tl.where(is_target, slope, 0.0), 1), mask=held)

    z = tl.where((column[None, :] != own[:, None]) & (column < vocabulary)[None, :], z, float("-inf"))
    maximum = tl.max(z, 1)
    lowest = tl.maximum(maximum, -3.4028234663852886e38)  # −inf − −inf is NaN
    power = tl.exp2(tl.fma(z - lowest[:, None], 1.4426950408889634, fraction_of(lowest)[:, None]))
    tl.store(maxima + tile * rows + row, maximum, mask=row < rows)
    tl.store(totals + tile * rows + row, tl.sum(power, 1), mask=row < rows)
    if WITH_POWERS:
        inside = (row < rows)[:, None] & (column < vocabulary)[None, :]
        tl.store(powers + row[:, None] * row_stride + column[None, :], power * slope, mask=inside)


@triton.jit
def totals_kernel(
    maxima,  # (T, R) float32
    totals,  # (T, R) float32: Σ e_v; out: 2^(k − K)
    target_logits,  # (2, R) float32
    state,  # (4, R) float32, out: m, S, z_y and slope_y, as the finish kernel reads them
    tiles,
    rows,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    # A row that has no token but y keeps m at float32's lowest number, as in online_softmax.
    highest = tl.full((BLOCK_ROWS,), -3.4028234663852886e38, tl.float32)
    for first in range(0, tiles, BLOCK_TILES):
        tile = first + tl.arange(0, BLOCK_TILES)[:, None]
        found = tl.load(
            maxima + tile * rows + row[None, :], mask=(tile < tiles) & (row < rows)[None, :], other=float("-inf")
        )
        highest = tl.maximum(highest, tl.max(found, 0))
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, tiles, BLOCK_TILES):
        tile = first + tl.arange(0, BLOCK_TILES)[:, None]
        inside = (tile < tiles) & (row < rows)[None, :]
        found = tl.load(maxima + tile * rows + row[None, :], mask=inside, other=float("-inf"))
        part = tl.load(totals + tile * rows + row[None, :], mask=inside, other=0.0)
        shift = shift_of(found, highest[None, :])
        total += tl.sum(part * shift, 0)
        tl.store(totals + tile * rows + row[None, :], shift, mask=inside)
    inside = row < rows
    tl.store(state + row, highest, mask=inside)
    tl.store(state + rows + row, total * tl.exp2(-fraction_of(highest)), mask=inside)
    tl.store(state + 2 * rows + row, tl.load(target_logits + row, mask=inside, other=0.0), mask=inside)
    slope = tl.load(target_logits + rows + row, mask=inside & HAS_SOFTCAP, other=1.0)
    tl.store(state + 3 * rows + row, slope, mask=inside)


@triton.jit
def weighted_kernel(
    powers,  # (R, V), rows row_stride apart
    shifts,  # (T, R) float32: 2^(k − K)
    state,  # (4, R) float32: m, …
    weight,  # (V, H)
    weighted,  # (R, H) float32, out: A = Σ_{v≠y} exp(z_v − m)·slope_v·W_v
    weight_row_stride,
    weight_column_stride,
    row_stride,
    rows,
    vocabulary,
    HIDDEN_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    depth = tl.arange(0, BLOCK_DEPTH)
    real_row = row % rows
    power_rows = powers + real_row[:, None] * row_stride
    weight_columns = weight + (column % HIDDEN_SIZE)[None, :].to(tl.int64) * weight_column_stride
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, vocabulary, BLOCK_DEPTH):
        token = (first + depth).to(tl.int64)
        inside = token < vocabulary
        left = tl.load(power_rows + token[None, :], mask=inside[None, :], other=0.0)
        shift = tl.load(shifts + first // TILE * rows + real_row)
        left = (left.to(tl.float32) * shift[:, None]).to(left.dtype)
        right = tl.load(weight_columns + token[:, None] * weight_row_stride, mask=inside[:, None], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
    total *= tl.exp2(-fraction_of(tl.load(state + real_row)))[:, None]
    inside = (row < rows)[:, None] & (column < HIDDEN_SIZE)[None, :]
    tl.store(weighted + row[:, None] * HIDDEN_SIZE + column[None, :], total, mask=inside)


class _Launch(NamedTuple):
    """How the products are launched on a device: a program's rows and columns, and the rest of its options."""

    rows: int
    columns: int
    options: dict[str, Any]


def _launch(hidden: Tensor, head: Head, with_unit: bool) -> _Launch:
    if hidden.device.type != "cuda":  # the interpreter; small blocks, so that small problems have several of them
        return _Launch(16, 16, {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 16, "BLOCK_DEPTH": 16, "WIDEN": True})
    card = torch.cuda.get_device_properties(hidden.device)
    return launch_on(
        card.major, card.shared_memory_per_block_optin, hidden.itemsize, has_bias=head.bias is not None,
        has_softcap=head.softcap is not None, with_powers=with_unit,
    )  # fmt: skip


def launch_on(
    major: int, shared_bytes: int, itemsize: int, *, has_bias: bool, has_softcap: bool, with_powers: bool
) -> _Launch:
    """The largest blocks whose operands fit the shared memory of a program and whose sums fit its registers.

    major: of the compute capability. shared_bytes: the most a program may have. itemsize: bytes of an operand's
    element.
    """
    # What is done to a tile of sums next needs registers as well: most of all tanh. From 10 on the sums come from a
    # memory of their own, and a bias, or nothing to write, is already too much beside them.
    crowded = int(has_softcap) + (has_bias and (has_softcap or major >= 10) or (not with_powers and major >= 10))
    depth, stages = 64, 3
    if itemsize == 4:  # no matrix units: the operands pass through registers as well
        columns, depth, stages = 64 if crowded < 2 else 32, 32, 2
    elif crowded or shared_bytes < _WIDE_BYTES:
        columns = 128 if crowded < 2 else 64
    else:
        columns = 256
        if major < 9:  # both operands pass through registers on their way to the matrix units
            depth, stages = 32, 4
    blocks = {"BLOCK_ROWS": ROWS, "BLOCK_COLUMNS": columns, "BLOCK_DEPTH": depth, "WIDEN": False}
    return _Launch(ROWS, columns, blocks | {"num_warps": 8, "num_stages": stages})


def _forward(
    hidden: Tensor, head: Head, targets: Tensor, ignore_index: int, max_workspace_bytes: int, *, with_unit: bool
) -> tuple[Tensor, Tensor]:
    """→ logps (N,) float32 and U (N, H) or (0, H)."""
    (rows, hidden_size), weight, device = hidden.shape, head.weight, hidden.device
    logps = torch.empty(rows, dtype=torch.float32, device=device)
    unit = torch.empty((rows if with_unit else 0, hidden_size), dtype=hidden.dtype, device=device)
    if rows == 0:
        return logps, unit
    launch = _launch(hidden, head, with_unit)
    tiles = triton.cdiv(head.vocabulary, launch.columns)
    row_stride = triton.cdiv(head.vocabulary, ALIGNMENT) * ALIGNMENT if with_unit else 0
    row_bytes = row_stride * weight.itemsize + 8 * tiles
    chunk_rows = min(rows, max(max_workspace_bytes // row_bytes // ROWS * ROWS, ROWS))
    powers = torch.empty((chunk_rows, row_stride), dtype=weight.dtype, device=device)
    weighted = torch.empty((chunk_rows if with_unit else 0, hidden_size), dtype=torch.float32, device=device)
    with torch.cuda.device_of(hidden):
        for first in range(0, rows, chunk_rows):
            chunk = slice(first, min(first + chunk_rows, rows))
            state = _forward_rows(hidden[chunk], head, targets[chunk], launch, powers, weighted, with_unit)
            stats = torch.empty((3, state.shape[1]), dtype=torch.float32, device=device)
            linear_token_logps_finish_kernel[(state.shape[1],)](
                state, targets[chunk], weight, weighted, logps[chunk], stats, unit[chunk],
                weight.stride(0), weight.stride(1), state.shape[1], state.shape[1], ignore_index, head.scale,
                HIDDEN_SIZE=hidden_size, WITH_UNIT=with_unit, **launch_options(hidden_size),
            )  # fmt: skip
    return logps, unit


def _forward_rows(
    hidden: Tensor, head: Head, targets: Tensor, launch: _Launch, powers: Tensor, weighted: Tensor, with_unit: bool
) -> Tensor:
    """One chunk of rows → the rows' state (4, R); leaves A in ``weighted``."""
    (rows, hidden_size), weight, vocabulary = hidden.shape, head.weight, head.vocabulary
    tiles, blocks = triton.cdiv(vocabulary, launch.columns), triton.cdiv(rows, launch.rows)
    maxima, totals = torch.empty((2, tiles, rows), dtype=torch.float32, device=hidden.device)
    # A target of no token leaves its own at 0: such a row is not scored.
    target_logits = torch.zeros((2, rows), dtype=torch.float32, device=hidden.device)
    state = torch.empty((4, rows), dtype=torch.float32, device=hidden.device)
    powers_kernel[(blocks, tiles)](
        hidden, weight, head.bias, targets, powers, maxima, totals, target_logits,
        hidden.stride(0), hidden.stride(1), weight.stride(0), weight.stride(1), powers.stride(0), rows, vocabulary,
        head.scale, head.softcap or 1.0, HIDDEN_SIZE=hidden_size, WITH_POWERS=with_unit, **head.flags,
        **launch.options,
    )  # fmt: skip
    totals_kernel[(triton.cdiv(rows, 16),)](
        maxima, totals, target_logits, state, tiles, rows,
        HAS_SOFTCAP=head.softcap is not None, BLOCK_ROWS=16, BLOCK_TILES=64,
    )  # fmt: skip
    if with_unit:
        weighted_kernel[(blocks, triton.cdiv(hidden_size, launch.columns))](
            powers, totals, state, weight, weighted, weight.stride(0), weight.stride(1), powers.stride(0), rows,
            vocabulary, HIDDEN_SIZE=hidden_size, TILE=launch.columns, **launch.options,
        )  # fmt: skip
    return state


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, ignore_index: int, max_workspace_bytes: int
    ) -> Tensor:
        arguments = (hidden, head, targets, ignore_index, max_workspace_bytes)
        logps, unit = _forward(*arguments, with_unit=ctx.needs_input_grad[0])
        ctx.save_for_backward(unit)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (unit,), (grad_logps,) = ctx.saved_tensors, grad_outputs
        return torch.mul(unit, grad_logps.unsqueeze(1), out=torch.empty_like(unit)), *[None] * 4


def linear_token_logps_epilogue(
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
    """As ``mdpo_kernels.linear_token_logps``, for a frozen head, on a GPU or in Triton's interpreter.

    max_workspace_bytes: bounds the powers and the tiles' sums of a chunk of rows, of which there are at least 128.

    Raises ValueError as that one does, and where the head wants a gradient or a tensor is float64.
    """
    head = Head(weight, bias, softcap, scale)
    hidden = check_linear_arguments(hidden, head, targets, ignore_index, max_workspace_bytes)
    if head.trains or hidden.dtype == torch.float64:
        raise ValueError("linear_token_logps_epilogue is for a frozen head in float32, bfloat16 or float16")
    head = head._replace(bias=None if bias is None else bias.contiguous())
    return _FrozenHead.apply(  # pyright: ignore[reportReturnType]
        hidden, head, targets.contiguous(), ignore_index, max_workspace_bytes
    )
