"""The one tolerance rule of this repository's numerical tests.

An implementation's largest error against float64 is at most twice the largest error that plain PyTorch makes in the
same dtype, plus a little: 1e-6 of the largest true value, some eight roundings of float32. The rule is the same for
values and for gradients and is not loosened to make a test pass. Where the truth is 0 and PyTorch finds it, so must we.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

FACTOR = 2.0
ATOL_OF_LARGEST = 1e-6


def largest_error(value: Tensor, truth: Tensor) -> float:
    """max |value − truth|, the truth being float64; infinite where one is not finite and the other differs."""
    value = value.detach().double()
    same = (value == truth) | (value.isnan() & truth.isnan())
    error = (value - truth).abs().masked_fill(same, 0.0)
    return error.nan_to_num(nan=float("inf")).max().item() if error.numel() else 0.0


def assert_as_exact_as_torch(value: Tensor, *, truth: Tensor, torch_value: Tensor, what: str) -> None:
    """`value` obeys the rule. truth: computed in float64; torch_value: by plain PyTorch in the dtype under test."""
    assert value.shape == truth.shape == torch_value.shape, f"{what}: {value.shape}, {truth.shape}, {torch_value.shape}"
    truth = truth.detach().to(value.device, torch.float64)
    error, torch_error = largest_error(value, truth), largest_error(torch_value.to(value.device), truth)
    largest = truth[truth.isfinite()].abs().max().item() if truth.isfinite().any() else 0.0
    bound = FACTOR * torch_error + ATOL_OF_LARGEST * largest
    assert error <= bound, f"{what}: error {error:.3e} > {bound:.3e} (torch {torch_error:.3e}, largest {largest:.3e})"


def relative_error(value: Tensor, truth: Tensor) -> float:
    """‖value − truth‖ / ‖truth‖: for claims such as "within 0.5%"."""
    truth = truth.detach().to(value.device, torch.float64)
    return ((value.detach().double() - truth).norm() / truth.norm()).item()


def relative_distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """‖Δ − Δ'‖ / ‖Δ‖ of what two runs have moved the same parameters by, from the same start."""
    assert one.keys() == other.keys() == start.keys()
    moved = sum((value - start[name]).norm().item() ** 2 for name, value in one.items())
    apart = sum((value - other[name]).norm().item() ** 2 for name, value in one.items())
    return (apart / moved) ** 0.5
