"""The plain path itself: gradcheck in float64, tiling that changes nothing, and what the kernels leave to it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mdpo_kernels import backend, fused_linear_mdpo_loss, linear_token_logps, reference, token_logps

TARGETS = torch.tensor([0, 12, -100])
OPTIONS: list[dict[str, Any]] = [{}, {"softcap": 2.0, "scale": 0.5}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap and scale"])
def test_gradcheck_token_logps(options: dict[str, Any]) -> None:
    logits = torch.randn(3, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_logps(x, TARGETS, **options), logits)


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap and scale"])
@pytest.mark.parametrize("columns", [13, 30], ids=["one tile", "several tiles"])
def test_gradcheck_linear_token_logps(options: dict[str, Any], columns: int) -> None:
    hidden, weight = (torch.randn(size, 2, dtype=torch.float64, requires_grad=True) for size in (3, columns))
    bias = torch.randn(columns, dtype=torch.float64, requires_grad=True)

    def logps(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_token_logps(hidden, weight, TARGETS, bias=bias, max_workspace_bytes=1024, **options)

    assert torch.autograd.gradcheck(logps, (hidden, weight, bias))


def test_gradcheck_fused_linear_mdpo_loss() -> None:
    hidden, weight = (torch.randn(size, 2, dtype=torch.float64, requires_grad=True) for size in (3, 13))
    cu_seqlens = torch.tensor([0, 1, 3, 3])
    frozen = torch.randn(3, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda hidden, weight: fused_linear_mdpo_loss(hidden, weight, TARGETS, cu_seqlens, frozen).loss,
        (hidden, weight),
    )


def test_tiling_changes_nothing_but_rounding() -> None:
    hidden, weight = torch.randn(20, 7, dtype=torch.float64), torch.randn(300, 7, dtype=torch.float64)
    targets = torch.randint(300, (20,))
    whole = reference.linear_token_logps(hidden, weight, targets)
    for workspace in (4096, 2**14, 2**16):  # rows split as well, columns split, some of both
        tiled = reference.linear_token_logps(hidden, weight, targets, max_workspace_bytes=workspace)
        torch.testing.assert_close(tiled, whole, rtol=1e-13, atol=1e-13)


def test_float64_and_plain_cpu_tensors_do_not_go_to_the_kernels() -> None:
    assert not backend.use_triton(torch.zeros(1, dtype=torch.float64))
    assert backend.use_triton(torch.zeros(1)) == backend.INTERPRETED


def test_the_choice_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_said", set())
    with caplog.at_level("INFO", logger="mdpo_kernels"):
        for _ in range(3):
            backend.use_triton(torch.zeros(1, dtype=torch.float64))
    assert caplog.messages == ["cpu float64: plain PyTorch, the kernels compute in float32"]
