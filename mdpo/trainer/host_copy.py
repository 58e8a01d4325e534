"""Numbers on their way between the host and the device, without either waiting for the other."""

import torch
from torch import Tensor


class HostCopy:
    """A tensor's values as they are when the device gets here: the copy is queued now, and waited for where it is read.

    So a number can be read while the device works on what was queued behind it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._copy = tensor.detach().to("cpu", non_blocking=True, copy=True)  # from a GPU into pinned memory
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def get(self) -> Tensor:
        """The values, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host, on ``device``.

    Out of memory that is not pinned a copy waits for all that is queued.
    """
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
