"""The memory claims, counted by the allocator on a CPU (in the interpreter for the kernels) and by CUDA's on a GPU."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mdpo_kernels import fused_linear_mdpo_loss, linear_token_logps, reference
from mdpo_kernels.tiling import plan_tiles

MIB = 2**20


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes alive at once, above what was there before, in CPU tensors that `function` allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    recorded: Any = profiler.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "scale": 0.5}], ids=["plain", "softcap"])
@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
def test_reference_keeps_to_its_workspace(options: dict[str, Any], train: bool) -> None:
    rows, hidden_size, vocabulary, workspace = 64, 8, 20_000, 2**19
    hidden = torch.randn(rows, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, requires_grad=train)
    targets = torch.randint(vocabulary, (rows,))

    def step() -> None:
        logps = reference.linear_token_logps(hidden, weight, targets, max_workspace_bytes=workspace, **options)
        logps.sum().backward()

    # The gradient of the weight, once in tiles and once put together, and a handful of vectors.
    outputs = 4 * hidden_size * (4 * rows + 2 * vocabulary * train)
    assert peak_bytes(step) <= workspace + outputs + 32 * 1024 < 4 * rows * vocabulary


@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
def test_kernels_keep_to_their_workspace(train: bool, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("counted on the GPU by test_fused_linear_mdpo_loss_adds_at_most_320_mib")
    rows, hidden_size, vocabulary, workspace = 16, 8, 3000, 2**16
    hidden = torch.randn(rows, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, requires_grad=train)
    targets = torch.randint(vocabulary, (rows,))

    # Forward and backward one by one, since the interpreter lets go of a kernel's arguments only at the next launch.
    logps: list[torch.Tensor] = []
    forward = peak_bytes(
        lambda: logps.append(linear_token_logps(hidden, weight, targets, max_workspace_bytes=workspace))
    )
    linear_token_logps(hidden[:1], weight[:1], targets[:1] * 0)
    backward = peak_bytes(lambda: logps[0].sum().backward())
    # hidden's gradient, U, A and its addend; for a trained head dW. Only float32 here: the interpreter casts operands.
    outputs = 4 * hidden_size * (6 * rows + vocabulary * train)
    assert max(forward, backward) <= workspace + outputs + 16 * 1024 < 4 * rows * vocabulary + outputs


def test_tiles_never_exceed_the_workspace() -> None:
    for rows, columns, entries in itertools.product(
        (1, 16, 600, 4096, 100_000), (1, 7, 32064, 51200, 151936), (170, 2**18, 256 * MIB // 6, 256 * MIB // 4)
    ):
        tiling = plan_tiles(rows, columns, entries, whole_rows=512, tiled_rows=1024)
        assert tiling.rows * tiling.row_stride <= entries
        assert 1 <= tiling.rows <= rows and 1 <= tiling.columns <= min(columns, tiling.row_stride)


def test_tiles_of_the_models_we_care_about() -> None:
    """256 MiB, bf16, 4096 rows: LLaVA-1.5 and Bunny keep the vocabulary whole, Qwen2.5-VL has it tiled.

    With U (N, H) in bf16, A and its addend (R, H) in float32, and 32 MiB that cuBLAS keeps on a Hopper GPU, the last
    stays below the 320 MiB that fused_linear_mdpo_loss may add.
    """
    for columns in (32064, 51200):
        tiling = plan_tiles(4096, columns, 256 * MIB // 6, whole_rows=512, tiled_rows=1024)
        assert tiling.columns == columns and tiling.rows >= 512
    tiling = plan_tiles(4096, 151936, 256 * MIB // 6, whole_rows=512, tiled_rows=1024)
    assert tiling.rows == 1024 and tiling.columns > 40_000
    unit, sums = 4096 * 2048 * 2, 2 * tiling.rows * 2048 * 4
    assert tiling.rows * tiling.row_stride * 6 + unit + sums + 32 * MIB <= 320 * MIB


@pytest.mark.gpu
def test_fused_linear_mdpo_loss_adds_at_most_320_mib() -> None:
    rows, hidden_size, vocabulary, examples = 4096, 2048, 151936, 16
    hidden = torch.randn(rows, hidden_size, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, hidden_size, device="cuda") / hidden_size**0.5).bfloat16()
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    cu_seqlens = torch.linspace(0, rows, 3 * examples + 1, device="cuda").int()
    frozen = torch.randn(3, examples, device="cuda")
    hidden.grad = torch.zeros_like(hidden)  # an output: in place before the count begins
    fused_linear_mdpo_loss(hidden, weight, targets, cu_seqlens, frozen).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_linear_mdpo_loss(hidden, weight, targets, cu_seqlens, frozen).loss.backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 320 * MIB
