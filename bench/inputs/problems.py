"""The inputs of the benchmarks: heads and linear layers of real models, and hidden states whose tokens are as confident
as a trained model's.

Shapes: N scored rows, H hidden size, V vocabulary, B examples; of a linear layer T rows, I inputs, O outputs, r its
LoRA's rank.
"""

from dataclasses import dataclass

import torch

from mdpo_kernels import reference


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer of a model: hidden size and (padded) vocabulary."""

    name: str
    hidden: int
    vocabulary: int


HEADS = (
    Head("llava-1.5-7b", 4096, 32064),
    Head("bunny-3b", 2560, 51200),
    Head("qwen2.5-vl-3b", 2048, 151936),
)
# The same proportions of V to H, small enough for two CPU cores.
CPU_HEADS = (Head("llava-1.5-small", 512, 4008), Head("qwen2.5-vl-small", 128, 9496))


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer of a model's decoder, and the rank of the LoRA on it."""

    model: str
    name: str
    inputs: int
    outputs: int
    bias: bool = False
    rank: int = 64


PROJECTIONS = (
    Projection("llava-1.5-7b", "q", 4096, 4096),
    Projection("llava-1.5-7b", "gate", 4096, 11008),
    Projection("bunny-3b", "q", 2560, 2560, bias=True),
    Projection("bunny-3b", "fc1", 2560, 10240, bias=True),
    Projection("qwen2.5-vl-3b", "q", 2048, 2048, bias=True),
    Projection("qwen2.5-vl-3b", "gate", 2048, 11008),
)
# An eighth of the widths and of the rank.
CPU_PROJECTIONS = (
    Projection("llava-1.5-small", "q", 512, 512, rank=8),
    Projection("llava-1.5-small", "gate", 512, 1376, rank=8),
)


@dataclass(frozen=True, slots=True)
class LinearProblem:
    """hidden (N, H), weight (V, H), targets (N,)."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor


def linear_problem(head: Head, rows: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> LinearProblem:
    """Random, with the targets' probabilities spread from about 1/V to beyond 0.9999: a trained model is sure of most
    tokens, and an implementation's error is largest there."""
    generator = torch.Generator(device=device).manual_seed(seed)
    weight = torch.randn(head.vocabulary, head.hidden, generator=generator, device=device) / head.hidden**0.5
    hidden = torch.randn(rows, head.hidden, generator=generator, device=device)
    targets = torch.randint(head.vocabulary, (rows,), generator=generator, device=device)
    # |W[y]|² is about 1, so this adds 0 … 24 to the target's logit; log V is 10 to 12.
    gains = torch.rand(rows, 1, generator=generator, device=device) * 24
    hidden += gains * weight[targets]
    return LinearProblem(hidden.to(dtype), weight.to(dtype), targets)


def sampled_rows(rows: int, device: torch.device, count: int = 64) -> torch.Tensor:
    """At most `count` rows, evenly spread, at which gradients are compared with float64."""
    return torch.linspace(0, rows - 1, min(rows, count), device=device).round().long()


def sequence_bounds(sequences: int, rows: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """(sequences + 1,) int32: uneven lengths, every sequence has at least one row."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(sequences, generator=generator) + 0.5
    inner = (weights.cumsum(0) / weights.sum() * (rows - sequences)).round().long() + torch.arange(1, sequences + 1)
    inner[-1] = rows
    return torch.cat([torch.zeros(1, dtype=torch.int64), inner]).to(torch.int32).to(device)


def float64_logps(problem: LinearProblem, rows_at_once: int = 512) -> torch.Tensor:
    """(N,) float64, without a gradient; the logits of `rows_at_once` rows at a time."""
    weight = problem.weight.detach().double()
    return torch.cat(
        [
            reference.token_logps(hidden.detach().double() @ weight.t(), targets)
            for hidden, targets in zip(
                problem.hidden.split(rows_at_once), problem.targets.split(rows_at_once), strict=True
            )
        ]
    )


def relative_error(got: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """‖got − truth‖ / ‖truth‖ over all rows, and of the worst row: the rows of confident tokens are small, and only
    the second sees them."""
    difference = (got.double() - truth).flatten(1).norm(dim=1)
    norms = truth.flatten(1).norm(dim=1)
    return {
        "gradient": (difference.norm() / norms.norm()).item(),
        "gradient, worst row": (difference / norms.clamp_min(torch.finfo(torch.float64).tiny)).max().item(),
    }
