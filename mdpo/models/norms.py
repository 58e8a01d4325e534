"""LayerNorms under CUDA's autocast, which computes them in float32 and leaves the cast down to each of their
readers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .layers import language_layers


def cast_norms_once(model: nn.Module, device_type: str = "cuda") -> None:
    """Has each repeated layer's LayerNorms put out autocast's dtype, as an RMSNorm does.

    In Phi, query, key, value and the MLP read one LayerNorm, each by its base weight and by its adapter: eight casts of
    the same numbers, and eight copies kept. The layers read what they read before, bit for bit; in the backward their
    gradients are added up in autocast's dtype before they reach the norm, as they are behind an RMSNorm.

    model: bare or PEFT. Nothing is done twice, and nothing without autocast, or on another device.
    """
    for layer in language_layers(model):
        for norm in layer.children():
            if isinstance(norm, nn.LayerNorm) and not any(
                isinstance(hook, _Cast) for hook in norm._forward_hooks.values()
            ):
                norm.register_forward_hook(_Cast(device_type))


class _Cast:
    """A forward hook."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        here = output.device.type == self.device_type and output.dtype == torch.float32
        if not here or not torch.is_autocast_enabled(self.device_type):
            return None
        return output.to(torch.get_autocast_dtype(self.device_type))
