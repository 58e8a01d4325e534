"""No rows, no examples, only empty sequences, only ignored targets: empty values and gradients of zeros, on
both paths.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import mdpo_kernels
from mdpo_kernels import Segments, reference, varlen_attention

HIDDEN_SIZE, VOCABULARY = 6, 40
MODULES = pytest.mark.parametrize("module", [mdpo_kernels, reference], ids=["kernels", "reference"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
WORKSPACES = pytest.mark.parametrize("workspace", [1024, 2**28])


def head(device: torch.device, dtype: torch.dtype, rows: int, train: bool) -> dict[str, Tensor]:
    return {
        "hidden": torch.randn(rows, HIDDEN_SIZE, device=device).to(dtype).requires_grad_(),
        "weight": torch.randn(VOCABULARY, HIDDEN_SIZE, device=device).to(dtype).requires_grad_(train),
        "bias": torch.randn(VOCABULARY, device=device).to(dtype).requires_grad_(train),
    }


def assert_no_gradient(value: Tensor, tensors: dict[str, Tensor]) -> None:
    value.sum().backward()
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            assert tensor.grad is not None, name
            assert tensor.grad.shape == tensor.shape and tensor.grad.dtype == tensor.dtype, name
            assert not tensor.grad.any(), name


@MODULES
@DTYPES
@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "all ignored"])
def test_token_logps(module: Any, dtype: torch.dtype, rows: int, device: torch.device) -> None:
    logits = torch.randn(rows, VOCABULARY, device=device).to(dtype).requires_grad_()
    targets = torch.full((rows,), -100, device=device)
    for options in ({}, {"softcap": 2.0}, {"inplace_backward": True}):
        value = module.token_logps(1 * logits, targets, **options)
        assert value.shape == (rows,) and value.dtype == torch.float32 and not value.any()
        logits.grad = None
        assert_no_gradient(value, {"logits": logits})


@MODULES
@DTYPES
@WORKSPACES
@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "all ignored"])
def test_linear_token_logps(
    module: Any, dtype: torch.dtype, workspace: int, train: bool, rows: int, device: torch.device
) -> None:
    tensors = head(device, dtype, rows, train)
    targets = torch.full((rows,), -100, device=device)
    value = module.linear_token_logps(**tensors, targets=targets, max_workspace_bytes=workspace)
    assert value.shape == (rows,) and value.dtype == torch.float32 and not value.any()
    assert_no_gradient(value, tensors)
    with torch.no_grad():
        assert module.linear_token_logps(**tensors, targets=targets, max_workspace_bytes=workspace).shape == (rows,)


@MODULES
@WORKSPACES
@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("examples", [0, 2], ids=["no examples", "only empty sequences"])
def test_losses(module: Any, workspace: int, train: bool, examples: int, device: torch.device) -> None:
    tensors = head(device, torch.float32, 0, train)
    targets = torch.zeros(0, dtype=torch.int64, device=device)
    cu_seqlens = torch.zeros(3 * examples + 1, dtype=torch.int32, device=device)
    frozen = torch.zeros(3, examples, device=device)
    found = module.fused_linear_mdpo_loss(
        **tensors, targets=targets, cu_seqlens=cu_seqlens, reference=frozen, max_workspace_bytes=workspace
    )
    assert found.loss == 0 and found.losses.shape == (examples,) and not found.losses.any()
    assert found.rewards.shape == (3, examples) and found.rewards.isnan().all()
    assert all(term.shape == (examples,) and not term.any() for term in found.terms.values())
    assert_no_gradient(found.loss, tensors)
    logits = torch.zeros(0, VOCABULARY, device=device, requires_grad=True)
    assert_no_gradient(module.fused_mdpo_loss(logits, targets, cu_seqlens, frozen).loss, {"logits": logits})


@MODULES
def test_sums_and_the_loss_of_sums(module: Any) -> None:
    logps = torch.zeros(0, requires_grad=True)
    for sequences in (0, 3):
        sums = module.sequence_logps(logps, torch.zeros(sequences + 1, dtype=torch.int64))
        assert sums.shape == (sequences,) and not sums.any()
        logps.grad = None
        assert_no_gradient(sums, {"logps": logps})
    policy = torch.zeros(3, 0, requires_grad=True)
    assert_no_gradient(module.mdpo_loss(policy, torch.zeros(3, 0)).loss, {"policy": policy})


@MODULES
def test_all_ignored_beside_empty_sequences(module: Any, device: torch.device) -> None:
    """A sequence of ignored targets is there, with log-prob 0: its loss is the reference's alone, without gradient."""
    tensors = head(device, torch.float32, 2, True)
    targets = torch.full((2,), -100, device=device)
    cu_seqlens = torch.tensor([0, 1, 2, 2], device=device)
    frozen = torch.tensor([[-1.0], [-3.0], [-1.0]], device=device)
    found = module.fused_linear_mdpo_loss(
        **tensors, targets=targets, cu_seqlens=cu_seqlens, reference=frozen, conditional=False, anchors=(), beta=1.0
    )
    torch.testing.assert_close(found.loss, -torch.nn.functional.logsigmoid(torch.tensor(1.0 - 3.0, device=device)))
    assert_no_gradient(found.loss, tensors)


def test_attention(device: torch.device) -> None:
    for ranges in ([], [(0, 0)]):
        segments = Segments.build(ranges, [[r] for r in ranges]).to(device)
        tensors = {name: torch.zeros(0, 2, 8, device=device, requires_grad=True) for name in ("query", "key", "value")}
        out = varlen_attention(**tensors, segments=segments)
        assert out.shape == (0, 2, 8)
        assert_no_gradient(out, tensors)
