"""What surrounds FlashAttention's kernels, which need a GPU: gathering, padding, summing, PyTorch's switches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch.utils._python_dispatch import TorchDispatchMode

from mdpo_kernels import Segments, attention_flash, reference, varlen_attention
from mdpo_kernels.attention_segments import Attention
from tests.kernels.packed_rows import PATTERNS, Grads, inputs, run


class PlainFlash:
    """FlashAttention's two varlen functions in plain PyTorch, over keys that are already gathered; D must be a
    multiple of 8."""

    @staticmethod
    def _attend(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size_left):
        assert q.shape[-1] % 8 == 0
        own = Segments(cu_seqlens_q, cu_seqlens_k, torch.arange(len(k)), 0, 0, torch.empty(len(k), 0))
        # FlashAttention counts the keys before a query's own, and −1 is all of them.
        window = None if window_size_left < 0 else window_size_left + 1
        return reference.varlen_attention(q, k, v, own, scale=softmax_scale, window=window)

    def _flash_attn_varlen_forward(
        self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left, window_size_right,
    ):  # fmt: skip
        assert causal and dropout_p == 0 and window_size_right == 0
        out = self._attend(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size_left)
        return out, q.new_zeros(q.shape[1], len(q))

    def _flash_attn_varlen_backward(
        self, dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
    ):  # fmt: skip
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            again = self._attend(*leaves, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size_left)
        for into, gradient in zip((dq, dk, dv), torch.autograd.grad(again, leaves, dout), strict=True):
            into.copy_(gradient)


@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("pattern", ["three-readers", "unshared"])
def test_flash_gathers_pads_and_sums(pattern: str, window: int) -> None:
    """All that surrounds FlashAttention's kernels, which need a GPU: head_dim 5 is padded, a shared row's gradients
    are summed."""
    segments = PATTERNS[pattern]
    query, key, value, grad = inputs(segments.copies.shape[0], (4, 2, 5))
    call = Attention(query, key, value, segments, 0.4, window)
    out, lse = attention_flash.forward(call, PlainFlash())
    grads = attention_flash.backward(call, grad, out, lse, False, PlainFlash())
    expected = run(reference.varlen_attention, (query, key, value, grad), segments, scale=0.4, window=window or None)
    for got, wanted in zip((out, *grads), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def flash_on_meta(deterministic: bool) -> tuple[Grads, Grads]:
    """PyTorch's FlashAttention, forward (out, lse) and backward, in shapes alone."""
    segments = PATTERNS["unshared"].to("meta")
    query, key, value, grad = inputs(17, (4, 2, 5), torch.bfloat16, "meta")
    call = Attention(query, key, value, segments, 0.4, 4)
    out, lse = attention_flash.forward(call, None)
    return (out, lse), attention_flash.backward(call, grad, out, lse, deterministic, None)


def test_torchs_flash_attention_takes_our_arguments() -> None:
    """Shapes and signatures of PyTorch's private ops on this PyTorch, without running them."""
    (out, lse), grads = flash_on_meta(deterministic=True)
    assert (out.shape, lse.shape) == ((17, 4, 5), (4, 17))
    assert [g.shape for g in grads] == [(17, 4, 5), (17, 2, 5), (17, 2, 5)]


class Calls(TorchDispatchMode):
    """The operations that are called, and PyTorch's deterministic debug mode during each: 0 off, 1 warn, 2 error."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: dict[str, int] = {}
        self.zeros: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        self.modes[name] = torch.get_deterministic_debug_mode()
        if "zero" in name or "fill" in name:
            self.zeros.append(result.shape)
        return result


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_switch_for_deterministic_algorithms_stays_the_users(before: int, deterministic: bool) -> None:
    users = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(before)
    try:
        with inductor.patch(deterministic=True), Calls() as calls:
            flash_on_meta(deterministic)
            assert inductor.deterministic is True
        assert torch.get_deterministic_debug_mode() == before
    finally:
        torch.set_deterministic_debug_mode(users)
    assert calls.modes["_flash_attention_backward"] == (2 if deterministic else before)
    assert calls.modes["_flash_attention_forward"] == before


@pytest.mark.slow
def test_a_backward_does_not_import_inductor() -> None:
    """Seconds in a first step; only a process of its own has not imported it yet."""
    root = Path(__file__).parents[2]
    code = """
import sys, torch
from mdpo_kernels import Segments, attention_flash
from mdpo_kernels.attention_segments import Attention
segments = Segments.build([(0, 9)], [[(0, 9)]]).to("meta")
q, k, v, grad = (torch.empty(9, 2, 8, dtype=torch.bfloat16, device="meta") for _ in range(4))
call = Attention(q, k, v, segments, 0.4, 0)
out, lse = attention_flash.forward(call, None)
for deterministic in (False, True):
    attention_flash.backward(call, grad, out, lse, deterministic, None)
print([name for name in sys.modules if name.startswith("torch._inductor")])
"""
    environment = {**os.environ, "PYTHONPATH": str(root / "kernels")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_backward_makes_no_zeros() -> None:
    """Neither for the generator's state, which nothing reads, nor as a gradient of the log-sum-exp."""
    with Calls() as flash:
        flash_on_meta(deterministic=False)
    segments = PATTERNS["unshared"]
    query, key, value = (t.requires_grad_() for t in inputs(17, (4, 2, 16))[:3])
    out = varlen_attention(query, key, value, segments)
    with Calls() as ours:
        torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
    assert "varlen_attention_backward" in ours.modes and "_flash_attention_backward" in flash.modes
    assert not flash.zeros and not ours.zeros
