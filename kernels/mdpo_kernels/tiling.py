"""How the N×V logits are cut into tiles, and the matrix products that fill and use them.

Shapes: N rows, V vocabulary columns, of which a tile holds R and T.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .backend import tl, triton

# Rows of a buffer start at multiples of 16 entries: the products want 16 bytes, and Triton specialises on 16 entries.
ALIGNMENT = 16
ALIGNED = tl.constexpr(ALIGNMENT)  # the same number for a kernel, which reads no other globals
# A chunk of rows is made a multiple of this where it can be, the products' own tile being at least as high.
ROW_MULTIPLE = 64


class Tiling(NamedTuple):
    """The rows R and columns T of one tile of the logits, and how far apart the rows of its buffers lie."""

    rows: int
    columns: int
    row_stride: int

    def buffer(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised buffer for one tile; its first T columns are the tile."""
        return torch.empty((self.rows, self.row_stride), dtype=dtype, device=device)


def plan_tiles(rows: int, columns: int, max_entries: int, *, whole_rows: int, tiled_rows: int) -> Tiling:
    """The largest tile of at most `max_entries` entries, alignment included; rows and columns are at least 1.

    The vocabulary stays whole as long as `whole_rows` rows (or all there are) fit; else at most `tiled_rows` rows are
    taken, and as many columns as fit. Chunks of rows are made equal, so that the last is not a small and slow one.
    """
    row = _round_up(columns, ALIGNMENT)
    whole = max_entries // row >= min(rows, whole_rows)
    most = max_entries // row if whole else min(tiled_rows, max_entries // ALIGNMENT)
    most = min(rows, most if most < ROW_MULTIPLE else most // ROW_MULTIPLE * ROW_MULTIPLE)
    chunks = -(-rows // most)
    tile_rows = min(most, _round_up(-(-rows // chunks), ROW_MULTIPLE))
    row_stride = min(row, max_entries // tile_rows // ALIGNMENT * ALIGNMENT)
    return Tiling(tile_rows, min(columns, row_stride), row_stride)


def padded(bias: Tensor | None) -> Tensor | None:
    """The bias, (V,), followed in memory by zeros up to a multiple of ALIGNMENT, as a row of a buffer is."""
    return None if bias is None else torch.nn.functional.pad(bias, (0, -len(bias) % ALIGNMENT))[: len(bias)]


def float32_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in float32, also of half-precision operands, whose product is never rounded to their dtype."""
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)  # in Triton's interpreter, where operands are small


def launch_options(columns: int) -> dict[str, int]:
    """The block of columns that a program holds at a time, and the warps to do it with.

    columns: of the whole vocabulary, or hidden size: what a model has once, since every block size is a kernel of its
    own.
    """
    block = min(triton.next_power_of_2(columns), 4096)
    return {"BLOCK": block, "num_warps": 8 if block >= 2048 else 4}


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
