"""Keys and values that several segments read: gathered in the forward, their gradients summed in the backward.

`index_select`'s own backward on CUDA is an atomic add in the gradient's dtype: the order of the additions, and with
bf16 the result, changes from run to run. Here each packed row collects its copies in a fixed order and in fp32, and
is written once.

Shapes: T packed rows, K gathered rows, C the most copies of one row, W = heads · head_dim elements in a row.
"""

import torch

from .backend import tl, triton, use_triton


@triton.jit
def sum_copies_fwd_kernel(
    gathered_ptr,  # (K, W), contiguous
    copies_ptr,  # (T, C) int64, contiguous; -1 = none
    out_ptr,  # (T, W), contiguous
    width,
    COPIES: tl.constexpr,  # C: 2 for a prompt with two responses, so the loop is unrolled
    BLOCK: tl.constexpr,
):
    """out[t] = Σ_c gathered[copies[t, c]], added in fp32 in the order of c. Grid (T, ⌈W / BLOCK⌉)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for copy in tl.static_range(COPIES):
        source = tl.load(copies_ptr + row * COPIES + copy)
        total += tl.load(gathered_ptr + source * width + columns, mask=inside & (source >= 0), other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


def gather_rows(tensor: torch.Tensor, key_rows: torch.Tensor, copies: torch.Tensor) -> torch.Tensor:
    """(T, H, D) → (K, H, D): the rows each segment reads, or the tensor itself where every row is read in place."""
    return tensor.index_select(0, key_rows) if copies.shape[1] else tensor


def sum_copies(gathered: torch.Tensor, copies: torch.Tensor) -> torch.Tensor:
    """The transpose of `gather_rows`: (K, H, D) → (T, H, D), summed in fp32 (float64 for float64), deterministic.

    copies: (T, C) as in `Segments`; with C = 0 nothing was gathered and the gradient passes through.
    """
    if copies.shape[1] == 0:
        return gathered
    return _sum_copies_triton(gathered, copies) if use_triton(gathered) else sum_copies_plain(gathered, copies)


def _sum_copies_triton(gathered: torch.Tensor, copies: torch.Tensor) -> torch.Tensor:
    rows, max_copies = copies.shape
    gathered = gathered.contiguous()
    out = gathered.new_empty((rows, *gathered.shape[1:]))
    width = out.stride(0)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(width), 1024)
    with torch.cuda.device_of(gathered):
        sum_copies_fwd_kernel[(rows, triton.cdiv(width, block))](
            gathered, copies.contiguous(), out, width, COPIES=max_copies, BLOCK=block
        )
    return out


def sum_copies_plain(gathered: torch.Tensor, copies: torch.Tensor) -> torch.Tensor:
    """`sum_copies` in plain PyTorch: the twin of the kernel."""
    dtype = torch.float64 if gathered.dtype == torch.float64 else torch.float32
    total = torch.zeros((copies.shape[0], *gathered.shape[1:]), dtype=dtype, device=gathered.device)
    for sources in copies.unbind(1):
        part = gathered.index_select(0, sources.clamp_min(0)).to(dtype)
        total += part.masked_fill_((sources < 0).view(-1, 1, 1), 0)
    return total.to(gathered.dtype)
