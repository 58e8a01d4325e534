"""Autocast on any device: PyTorch raises where it is asked about a meta tensor's, which has none."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_is_on(device: torch.device) -> bool:
    """Whether an op on this device would have its arguments cast."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block whose ops on this device compute in the dtype of their arguments."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
