"""Packed attention by FlashAttention-2 on a GPU: the flash-attn package, or the copy of it inside PyTorch.

Both are called below autograd, forward and backward apart: so the backward can gather shared keys once more instead
of keeping them (activations grow with the packed rows, not with the gathered ones), sum them in fp32, and be
deterministic on request.

Shapes: T packed rows, K gathered keys; Hq query heads, Hkv key heads; D head_dim, at most 256; lse (Hq, T) float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from .attention_gather import gather_rows, sum_copies
from .attention_segments import Attention, Segments

MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16)
_LANES = 8  # the kernels read 16 bytes at a time, so D is padded to a multiple of 8 elements


def forward(call: Attention, package: Any | None) -> tuple[torch.Tensor, torch.Tensor]:
    """→ out (T, Hq, D), lse (Hq, T). package: flash-attn's, or None for PyTorch's."""
    q, k, v, segments, scale, window = _gathered(call)
    if package is None:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, segments.cu_seqlens_q, segments.cu_seqlens_k, segments.max_seqlen_q, segments.max_seqlen_k,
            0.0, True, False, scale=scale, window_size_left=_before(window), window_size_right=0,
        )  # fmt: skip
    else:
        out, lse, *_ = package._flash_attn_varlen_forward(
            q, k, v, segments.cu_seqlens_q, segments.cu_seqlens_k, segments.max_seqlen_q, segments.max_seqlen_k,
            dropout_p=0.0, softmax_scale=scale, causal=True, window_size_left=_before(window), window_size_right=0,
        )  # fmt: skip
    return out[..., : call.query.shape[-1]].contiguous(), lse


def backward(
    call: Attention,
    grad_out: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    deterministic: bool,
    package: Any | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, in their dtype."""
    given = (_gathered(call), _padded(grad_out), _padded(out), lse, deterministic)
    grad_q, grad_k, grad_v = _torch_backward(*given) if package is None else _package_backward(*given, package)
    head_dim, copies = call.query.shape[-1], call.segments.copies
    return (
        grad_q[..., :head_dim].contiguous(),
        sum_copies(grad_k[..., :head_dim], copies).contiguous(),
        sum_copies(grad_v[..., :head_dim], copies).contiguous(),
    )


def _torch_backward(
    call: Attention, grad_out: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, deterministic: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v, segments, scale, window = call
    # Nothing is dropped out, so the generator's state is never read, but the op wants one.
    rng_state, unused = torch.empty(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    with _deterministic_algorithms() if deterministic else nullcontext():
        return torch.ops.aten._flash_attention_backward(
            grad_out, q, k, v, out, lse, segments.cu_seqlens_q, segments.cu_seqlens_k, segments.max_seqlen_q,
            segments.max_seqlen_k, 0.0, True, rng_state, unused, scale=scale, window_size_left=_before(window),
            window_size_right=0,
        )  # fmt: skip


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """PyTorch's op has no argument for it, but asks the global switch; so that is set for the length of the call.

    By its debug mode: `torch.use_deterministic_algorithms` would import all of inductor's configuration, seconds in the
    first backward, and change the user's.
    """
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _package_backward(
    call: Attention, grad_out: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, deterministic: bool, package: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v, segments, scale, window = call
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    package._flash_attn_varlen_backward(
        grad_out, q, k, v, out, lse, grad_q, grad_k, grad_v,
        segments.cu_seqlens_q, segments.cu_seqlens_k, segments.max_seqlen_q, segments.max_seqlen_k,
        dropout_p=0.0, softmax_scale=scale, causal=True, window_size_left=_before(window), window_size_right=0,
        softcap=0.0,
        alibi_slopes=None, deterministic=deterministic or torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _before(window: int) -> int:
    """The keys that a query sees before its own, as FlashAttention counts them: by their place in the segment, aligned
    bottom-right; −1 for all."""
    return window - 1


def _gathered(call: Attention) -> Attention:
    """With the keys that each segment reads behind each other, and heads as wide as the kernels take them."""
    key, value = _gather(call.key, call.segments), _gather(call.value, call.segments)
    return call._replace(query=_padded(call.query), key=_padded(key), value=_padded(value))


def _gather(tensor: torch.Tensor, segments: Segments) -> torch.Tensor:
    return gather_rows(tensor, segments.key_rows, segments.copies)


def _padded(tensor: torch.Tensor) -> torch.Tensor:
    """The head dimension padded with zeros to what the kernels take, the last stride 1: zeros change neither
    scores nor outputs."""
    missing = -tensor.shape[-1] % _LANES
    tensor = F.pad(tensor, (0, missing)) if missing else tensor
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
