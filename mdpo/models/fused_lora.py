"""LoRA layers that add to their base's product where it lies: peft's own, with another forward.

peft makes them by its dispatch for custom modules, so that everything else stays peft's: what is saved and loaded, merging,
``disable_adapter``, several adapters, ``print_trainable_parameters``.
"""

import copy
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from mdpo_kernels import lora_linear


class FusedLoraLinear(Linear):
    """peft's LoRA on a plain linear layer. One plain active adapter without dropout, on a frozen base, goes through
    ``mdpo_kernels.lora_linear``; everything else, and whatever somebody watches or has replaced, through peft's forward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = None if args or any(value is not None for value in kwargs.values()) else self._plain_adapter(x)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base, down, up = self._layers(adapter)
        return lora_linear(x, base.weight, base.bias, down.weight, up.weight, self.scaling[adapter])

    def _layers(self, adapter: str) -> tuple[Any, Any, Any]:
        return self.base_layer, self.lora_A[adapter], self.lora_B[adapter]

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The adapter that the fused way computes; None where it would compute something else than peft."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        (name,) = active
        base, down, up = self._layers(name)
        dropout: Any = self.lora_dropout[name]
        keeps = type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and not (dropout.training and dropout.p))
        plain = keeps and not _is_watched(dropout) and all(map(_is_plain, (base, down, up)))
        if not plain or name in self.lora_variant or not isinstance(self.scaling[name], (int, float)):
            return None
        frozen = not any(weight is not None and weight.requires_grad for weight in (base.weight, base.bias))
        return name if frozen and up.bias is None and self._fits(x, base.weight, down.weight, up.weight) else None

    def _fits(self, x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> bool:
        """Whether peft's products would run in the weight's dtype too, and the op takes what it is given."""
        if x.is_nested or x.layout != torch.strided or not weight.shape[1]:
            return False
        if torch.is_autocast_enabled(x.device.type):
            same = weight.dtype == torch.get_autocast_dtype(x.device.type)
            return same and down.dtype in (weight.dtype, torch.float32) and up.dtype in (weight.dtype, torch.float32)
        return x.dtype == weight.dtype == down.dtype == up.dtype


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is linear and nothing but that: not a subclass, its weight neither quantised nor sharded."""
    if type(layer) is not nn.Linear or _is_watched(layer):
        return False
    return all(type(weight) in (nn.Parameter, Tensor) for weight in (layer.weight, layer.bias) if weight is not None)


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody's code runs when the module is called: a hook, or a forward put in the place of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _layer(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
    """None leaves a layer to peft's own dispatch: other kinds of layers are linear to Python too."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if config.fan_in_fan_out or kwargs.get("parameter_name") is not None or not _is_plain(base):
        return None
    kwargs.pop("parameter_name", None)
    return FusedLoraLinear(target, adapter_name, config=config, **kwargs)


def fuse_lora(config: LoraConfig) -> LoraConfig:
    """The config, with ``FusedLoraLinear`` for plain linear layers: ``get_peft_model(model, fuse_lora(LoraConfig(...)))``, or
    ``PeftModel.from_pretrained(model, folder, config=fuse_lora(LoraConfig.from_pretrained(folder)))``.

    Trains the same adapter to rounding, and the same bits while B is zero; a row of a layer's output is written twice, not
    four times, and what is kept for the backward is no more. In the backward A and B get their gradients summed in float32.
    A fused layer is differentiated once: a second derivative and forward mode raise NotImplementedError.

    Raises ValueError for a config with custom modules of its own: peft asks one for each layer, the first that fits.
    """
    if config._custom_modules:
        raise ValueError("the config has custom modules of its own, which fuse_lora would hide; register one or the other")
    config = copy.deepcopy(config)
    config._register_custom_module({nn.Linear: _layer})  # pyright: ignore[reportArgumentType]  # called, like a class
    return config
