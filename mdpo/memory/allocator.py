"""How PyTorch's allocator cuts a GPU's memory."""

import os
from collections.abc import MutableMapping

import torch

# The names by which versions of PyTorch read the allocator's settings; the first is today's.
_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def use_expandable_segments(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets the allocator grow its segments, unless the user has set it up: no two micro-batches have the same length,
    and segments of fixed sizes would be left with holes that no later tensor fits. For before the first tensor on a
    GPU.
    """
    if torch.version.cuda is not None and not any(name in environment for name in _NAMES):
        environment[_NAMES[0]] = "expandable_segments:True"
