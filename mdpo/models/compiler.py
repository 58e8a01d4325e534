"""Whether torch.compile works on this machine: tried, since what it needs (Triton, a C compiler, headers) is found by use."""

import torch
from torch import Tensor

from .folder import short


def compiler_fault(device: torch.device | str) -> str | None:
    """Why nothing can be compiled for ``device``, in a few words; None where forward and backward of two operations were."""
    try:
        values = torch.ones(8, device=device, requires_grad=True)
        torch.compile(_two_operations, dynamic=True)(values).sum().backward()
    except Exception as error:  # the compiler's parts raise whatever they meet: a missing gcc, a driver too old
        return short(error)
    return None


def _two_operations(values: Tensor) -> Tensor:
    return values.sin() * 2
