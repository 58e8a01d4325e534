"""The packed attention: one registered op over whichever FlashAttention is there, else one segment at a time.

The backends (`choose_backend` is the one place that picks, and says in one line what it picked):

    flash-attn    the flash-attn package, CUDA, bf16 or fp16
    torch-flash   the FlashAttention-2 inside PyTorch, the same kernels and limits
    segmentwise   any device and dtype, one segment at a time: the CPU path

Shapes: T packed rows, K gathered keys, S segments; Hq query heads, Hkv key heads; D head_dim.
"""

import importlib
import importlib.util
import logging
from functools import lru_cache
from typing import Any, Literal, get_args

import torch

from . import attention_flash, attention_segmentwise
from .attention_segments import Attention, Segments
from .autocast import autocast_is_on
from .checks import FLOATING, check_positive, check_same_device, check_tensor, check_whole, describe
from .derivatives import differentiable_once, gradients, refuse_forward_mode

__all__ = ["Backend", "Segments", "choose_backend", "varlen_attention"]

Backend = Literal["auto", "flash-attn", "torch-flash", "segmentwise"]
_log = logging.getLogger("mdpo_kernels")
_OLDEST_FLASH_ATTN = (2, 7)  # the first whose forward and backward can be called apart by these argument names


@lru_cache(maxsize=1)
def _flash_attn() -> tuple[Any | None, str]:
    """flash_attn.flash_attn_interface, or None and the reason."""
    if importlib.util.find_spec("flash_attn") is None:
        return None, "flash-attn is not installed"
    try:
        version = importlib.import_module("flash_attn").__version__
        package = importlib.import_module("flash_attn.flash_attn_interface")
    except (ImportError, AttributeError) as error:
        # A build for another PyTorch fails here with an undefined symbol.
        return None, f"flash-attn is installed but cannot be imported ({error})"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_FLASH_ATTN:
        return None, f"flash-attn {version} is older than {'.'.join(map(str, _OLDEST_FLASH_ATTN))}"
    return package, ""


@lru_cache(maxsize=64)
def choose_backend(device_type: str, dtype: torch.dtype, head_dim: int) -> Backend:
    """The backend for such tensors; logged once per kind, as a warning where a GPU goes without FlashAttention."""
    kind = f"packed attention ({device_type}, {str(dtype).removeprefix('torch.')}, head_dim {head_dim})"
    if device_type != "cuda":
        _log.info("%s: segmentwise", kind)
        return "segmentwise"
    if dtype not in attention_flash.DTYPES or head_dim > attention_flash.MAX_HEAD_DIM:
        _log.warning("%s: segmentwise, because FlashAttention takes bfloat16 and float16 up to head_dim 256", kind)
        return "segmentwise"
    # Without a GPU there is a CUDA device only to fake tensors, which take any path.
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        _log.warning("%s: segmentwise, because FlashAttention needs an Ampere GPU or a newer one", kind)
        return "segmentwise"
    package, reason = _flash_attn()
    if package is not None:
        _log.info("%s: flash-attn", kind)
        return "flash-attn"
    _log.info("%s: torch-flash, because %s", kind, reason)
    return "torch-flash"


@torch.library.custom_op("mdpo_kernels::varlen_attention", mutates_args=())
def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, key_rows: torch.Tensor, copies: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, scale: float, window: int, deterministic: bool, backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """→ out (T, Hq, D), lse (Hq, T) float32 or float64. window: 0 for none."""
    segments = Segments(cu_seqlens_q, cu_seqlens_k, key_rows, max_seqlen_q, max_seqlen_k, copies)
    call = Attention(query, key, value, segments, scale, window)
    backend = _resolve(backend, query)
    if query.shape[0] == 0:
        return query.new_empty(query.shape), query.new_empty((query.shape[1], 0), dtype=_lse_dtype(query))
    with torch.autocast(query.device.type, enabled=False):
        if backend == "segmentwise":
            return attention_segmentwise.forward(call)
        return attention_flash.forward(call, _package(backend))


@_attention.register_fake
def _(query, *rest):
    lse = query.new_empty((query.shape[1], query.shape[0]), dtype=_lse_dtype(query))
    return query.new_empty(query.shape), lse


@torch.library.custom_op("mdpo_kernels::varlen_attention_backward", mutates_args=())
def _attention_backward(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, 
    out: torch.Tensor, lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, key_rows: torch.Tensor, copies: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, scale: float, window: int, deterministic: bool, backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    segments = Segments(cu_seqlens_q, cu_seqlens_k, key_rows, max_seqlen_q, max_seqlen_k, copies)
    call = Attention(query, key, value, segments, scale, window)
    backend = _resolve(backend, query)
    if query.shape[0] == 0:
        return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    with torch.autocast(query.device.type, enabled=False):
        if backend == "segmentwise":
            return attention_segmentwise.backward(call, grad_out, out, lse)
        return attention_flash.backward(call, grad_out, out, lse, deterministic, _package(backend))


@_attention_backward.register_fake
def _(grad_out, query, key, value, *rest):
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.scale, ctx.window, ctx.deterministic, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    # The log-sum-exp never leaves this file; a gradient of zeros would be made for it in each layer.
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: torch.Tensor | None, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if grad_out is None:
        return gradients(ctx)
    query, key, value, cu_seqlens_q, cu_seqlens_k, key_rows, copies, out, lse = ctx.saved_tensors
    with torch.no_grad():
        grads = _attention_backward(
            grad_out, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, key_rows, copies,
            ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.scale, ctx.window, ctx.deterministic, ctx.backend,
        )  # fmt: skip
    parents = query, key, value, grad_out
    return gradients(ctx, *(differentiable_once("varlen_attention", grad, *parents) for grad in grads))


_attention.register_autograd(_differentiate, setup_context=_save)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    scale: float | None = None,
    window: int | None = None,
    deterministic: bool = False,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Causal attention over a packed row whose segments may share keys; one FlashAttention call on a GPU.

    Args:
        query: (T, Hq, D) floating point.
        key, value: (T, Hkv, D), same dtype and device; Hq a multiple of Hkv (query head h reads key head
            h · Hkv // Hq).
        segments: which rows attend to which, on the same device (`Segments.build`, then `.to`). Aligned bottom-right.
        scale: factor of the scores, default D ** -0.5.
        window: how many of its segment's keys a query sees at most: its own and those right before it. None: all before
            it. Counted in the segment's keys, so that a response's window reaches back into the prompt that it reads.
        deterministic: a backward that gives the same bits each time. On a GPU it is slower; without it the sums of
            dquery run in no fixed order. The sum over the readers of a shared row is in a fixed order and fp32 anyway.
        backend: "auto" lets `choose_backend` pick.

    Returns:
        (T, Hq, D) in query's dtype. Under autocast the inputs are cast to its dtype, as PyTorch's own attention does.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a backend that cannot take them: no device
            synchronisation is made.

    The plain twin is `mdpo_kernels.reference.varlen_attention`. Method: Dao, FlashAttention-2 (arXiv:2307.08691).
    """
    check_tensor("query", query, "(T, Hq, D)", FLOATING)
    if autocast_is_on(query.device):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (t.to(dtype) if isinstance(t, torch.Tensor) else t for t in (query, key, value))
    _check(query, key, value, segments, backend)
    if scale is not None:
        check_positive("scale", scale, ", or None for D ** -0.5")
    if window is not None:
        check_whole("window", window, 1, 2**31 - 1)
    refuse_forward_mode("varlen_attention", query, key, value)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return _attention(
        query, key, value, segments.cu_seqlens_q, segments.cu_seqlens_k, segments.key_rows, segments.copies,
        segments.max_seqlen_q, segments.max_seqlen_k, factor, window or 0, deterministic, backend,
    )[0]  # fmt: skip


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, backend: str) -> None:
    """Everything that can be seen without reading a tensor's contents."""
    rows, heads, head_dim = query.shape
    if heads < 1 or head_dim < 1:
        raise ValueError(f"query is {describe(query)}; expected at least one head and one column")
    for name, tensor in (("key", key), ("value", value)):
        check_tensor(name, tensor, "(T, Hkv, D)", (query.dtype,))
        if tensor.shape != (rows, key.shape[1], head_dim) or tensor.shape[1] < 1 or heads % tensor.shape[1]:
            expected = f"({rows}, Hkv, {head_dim}), Hkv the same for key and value and a divisor of {heads}"
            raise ValueError(f"{name} is {describe(tensor)}; expected {expected}")
    if not isinstance(segments, Segments):
        raise ValueError(f"segments is {describe(segments)}; expected mdpo_kernels.Segments")
    if segments.copies.shape[0] != rows:
        raise ValueError(f"segments is built for {segments.copies.shape[0]} rows; expected {rows}, as query has")
    check_same_device(query=query, key=key, value=value, segments=segments.key_rows)
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(get_args(Backend))}")
    if backend in ("flash-attn", "torch-flash"):
        _check_flash(query, backend)


def _check_flash(query: torch.Tensor, backend: str) -> None:
    if (
        query.device.type != "cuda"
        or query.dtype not in attention_flash.DTYPES
        or query.shape[-1] > attention_flash.MAX_HEAD_DIM
    ):
        raise ValueError(f"query is {describe(query)}; backend {backend!r} expects bfloat16 or float16 on a GPU and "
                         f"D <= {attention_flash.MAX_HEAD_DIM}")  # fmt: skip
    if backend == "flash-attn" and _flash_attn()[0] is None:
        raise ValueError(f"backend is 'flash-attn'; expected one that is here: {_flash_attn()[1]}")


def _resolve(backend: str, query: torch.Tensor) -> str:
    return choose_backend(query.device.type, query.dtype, query.shape[-1]) if backend == "auto" else backend


def _package(backend: str) -> Any | None:
    return _flash_attn()[0] if backend == "flash-attn" else None


def _lse_dtype(query: torch.Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32
