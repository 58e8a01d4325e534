"""Whether a model's layers can be compiled, and whether torch.compile works on this machine: that is tried, for what it
needs (Triton, a C compiler, headers) shows in use alone."""

from typing import Any

import torch
from torch import Tensor, nn

from mdpo.packing import Separate, family_of

from .folder import short
from .lora_targets import stacked_experts


def not_compiled(model: nn.Module) -> str | None:
    """Why the layers of ``model`` run eagerly: compiled ones are for packed rows, and for the same work in each. None
    where they can be compiled."""
    family = family_of(model)
    if isinstance(family, Separate):
        return "the model reads its branches separately"
    # Such layers exchange more than a compiled one takes and returns.
    if family.carries_state:
        return "its layers with linear attention read prompts and responses one after the other"
    config: Any = model.config
    if config.model_type == "gemma4":
        return "its last layers read the keys and values of earlier ones"
    if stacked_experts(model) is not None:
        return "how many tokens an expert gets differs from row to row"
    return None


def compiler_fault(device: torch.device | str) -> str | None:
    """Why nothing can be compiled for ``device``, in a few words; None where forward and backward of two operations
    were.
    """
    try:
        values = torch.ones(8, device=device, requires_grad=True)
        torch.compile(_two_operations, dynamic=True)(values).sum().backward()
    except Exception as error:  # the compiler's parts raise whatever they meet: a missing gcc, a driver too old
        return short(error)
    return None


def _two_operations(values: Tensor) -> Tensor:
    return values.sin() * 2
