"""Fused LoRA layers that read one input, query, key and value or gate and up: computed together by the first that is asked.

transformers calls such layers one after the other. What the first one computes for the others waits for their calls, and for
nothing else: another input, or one that has been written to in between, is computed anew.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mdpo_kernels import LoraLayer, lora_linears

from .fused_lora import FusedLoraLinear

_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def share_inputs(model: nn.Module) -> None:
    """Has the fused layers of each group, where there are at least two, read their input together.

    model: bare or PEFT. Nothing is done twice.
    """
    for module in model.modules():
        for names in _GROUPS:
            layers = [layer for layer in (getattr(module, name, None) for name in names) if isinstance(layer, FusedLoraLinear)]
            if len(layers) > 1 and all(layer.shared_input is None for layer in layers):
                shared = SharedInput(tuple(layers))
                for layer in layers:
                    layer.shared_input = shared


class SharedInput:
    """Of the layers that read one input. Where they turn out not to, they go apart for good."""

    def __init__(self, layers: tuple[FusedLoraLinear, ...]) -> None:
        self._layers = layers
        self._apart = False
        self._input: Tensor | None = None
        self._state: tuple[Any, ...] = ()
        self._waiting: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:  # of a copy, which has computed nothing yet
        return self.__dict__ | {"_input": None, "_state": (), "_waiting": {}}

    def output(self, layer: FusedLoraLinear, x: Tensor) -> Tensor | None:
        """What the layer puts out for ``x``; None where it is to be computed alone."""
        if self._apart or (not torch.compiler.is_compiling() and x.is_inference()):
            return None
        position = next((i for i, other in enumerate(self._layers) if other is layer), None)
        if self._input is x and self._state == _state(x) and position in self._waiting:
            found = self._waiting.pop(position)
            if not self._waiting:
                self._input = None
            return found
        self._apart = bool(self._waiting)
        self._waiting, self._input = {}, None
        if self._apart or position != 0 or any(other.obstacle(x.dtype) is not None for other in self._layers):
            return None
        first, *others = lora_linears(x, [_parts(other) for other in self._layers])
        self._waiting = dict(enumerate(others, 1))
        self._input, self._state = x, _state(x)
        return first


def _state(x: Tensor) -> tuple[Any, ...]:
    """What must not have changed since the others' results were computed."""
    version = 0 if torch.compiler.is_compiling() else x._version  # a compiler knows by itself what is written to
    return version, torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type)


def _parts(layer: Any) -> LoraLayer:
    (adapter,) = (name for name in layer.active_adapters if name in layer.lora_A)
    base = layer.base_layer
    return LoraLayer(
        base.weight, base.bias, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
    )
