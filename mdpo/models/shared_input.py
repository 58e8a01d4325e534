"""Fused LoRA layers that read one input, query, key and value or gate and up: computed together by the first that is
asked.

transformers calls such layers one after the other. What the first one computes for the others waits for their calls,
and for nothing else: another input, or one that has been written to in between, is computed anew.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mdpo_kernels import LoraLayer, lora_linears
from mdpo_kernels.autocast import autocast_is_on

from .fused_lora import FusedLoraLinear
from .layers import language_layers

_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def share_inputs(model: nn.Module) -> None:
    """Has the fused layers of each group in the language model's repeated layers, where there are at least two, read
    their input together.

    model: bare or PEFT. Nothing is done twice.
    """
    for module in language_layers(model).modules():
        share_among_children(module)


def share_among_children(module: nn.Module) -> None:
    """As ``share_inputs``, for the layers of an attention or of an MLP."""
    for names in _GROUPS:
        layers = [
            layer for layer in (getattr(module, name, None) for name in names) if isinstance(layer, FusedLoraLinear)
        ]
        widths = {layer.in_features for layer in layers}
        if len(layers) > 1 and len(widths) == 1 and all(layer.shared_input is None for layer in layers):
            shared = SharedInput(tuple(layers))
            for layer in layers:
                layer.shared_input = shared


class SharedInput:
    """Of the layers that read one input.

    It learns nothing from one forward for the next: what is recomputed in a backward has to be what was computed.
    Layers that do not read one input after all are computed more often than needed, and right.
    """

    def __init__(self, layers: tuple[FusedLoraLinear, ...]) -> None:
        self._layers = layers
        self._input: Tensor | None = None
        self._state: tuple[Any, ...] = ()
        self._waiting: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:  # of a copy, which has computed nothing yet
        return self.__dict__ | {"_input": None, "_state": (), "_waiting": {}}

    def output(self, layer: FusedLoraLinear, x: Tensor) -> Tensor | None:
        """What the layer puts out for ``x``; None where it is to be computed alone."""
        if not torch.compiler.is_compiling() and x.is_inference():
            return None
        position = next((i for i, other in enumerate(self._layers) if other is layer), None)
        if self._input is x and position in self._waiting and self._state == self._now(x):
            found = self._waiting.pop(position)
            if not self._waiting:
                self._input = None
            return found
        self._waiting, self._input = {}, None
        if position is None or any(other.obstacle(x.dtype) is not None for other in self._layers):
            return None
        self._waiting = dict(enumerate(lora_linears(x, [_parts(other) for other in self._layers])))
        self._input, self._state = x, self._now(x)
        return self._waiting.pop(position)

    def _now(self, x: Tensor) -> tuple[Any, ...]:
        """What must not change until the others' results are asked for."""
        autocast = torch.get_autocast_dtype(x.device.type) if autocast_is_on(x.device) else None
        modes = (x.requires_grad, torch.is_grad_enabled(), autocast)
        if torch.compiler.is_compiling():  # which knows by itself what is written to
            return modes
        parts = [_parts(layer) for layer in self._layers]
        tensors = [x, *(tensor for part in parts for tensor in part[:-1] if tensor is not None)]
        return *modes, *((id(tensor), tensor._version) for tensor in tensors), *(part.scale for part in parts)


def _parts(layer: Any) -> LoraLayer:
    adapter = next(name for name in layer.active_adapters if name in layer.lora_A)
    base = layer.base_layer
    return LoraLayer(
        base.weight, base.bias, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
    )
