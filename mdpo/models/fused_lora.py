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
    ``mdpo_kernels.lora_linear``; everything else through peft's forward."""

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
        dropout: Any = self.lora_dropout[name]
        drops = not isinstance(dropout, nn.Identity) and self.training and getattr(dropout, "p", 1.0) > 0
        base, down, up = self._layers(name)
        if drops or name in self.lora_variant or up.bias is not None:
            return None
        return name if _is_plain(base) and self._fits(x, base.weight, down.weight) else None

    def _fits(self, x: Tensor, weight: Tensor, adapter: Tensor) -> bool:
        """Whether peft's products would run in the weight's dtype too."""
        if torch.is_autocast_enabled(x.device.type):
            return weight.dtype == torch.get_autocast_dtype(x.device.type)
        return x.dtype == weight.dtype == adapter.dtype


def _is_plain(base: nn.Module) -> bool:
    """Whether a layer is a frozen linear one that nobody watches or has sharded."""
    hooks = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    if type(base) is not nn.Linear or hooks or hasattr(base, "_hf_hook"):
        return False
    weights = [weight for weight in (base.weight, base.bias) if weight is not None]
    return not any(weight.requires_grad or hasattr(weight, "device_mesh") for weight in weights)


def _layer(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> FusedLoraLinear | None:
    """None leaves a layer to peft's own dispatch: quantised ones are linear layers to Python too."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if type(base) is not nn.Linear or kwargs.pop("parameter_name", None) is not None or config.fan_in_fan_out:
        return None
    return FusedLoraLinear(target, adapter_name, config=config, **kwargs)


def fuse_lora(config: LoraConfig) -> LoraConfig:
    """The config, with ``FusedLoraLinear`` for plain linear layers: ``get_peft_model(model, fuse_lora(LoraConfig(...)))``, or
    ``PeftModel.from_pretrained(model, folder, config=fuse_lora(LoraConfig.from_pretrained(folder)))``.

    Trains the same adapter to rounding, and the same bits while B is zero; a row of a layer's output is written twice, not
    four times, and what is kept for the backward is no more. In the backward A and B get their gradients summed in float32.
    """
    config = copy.deepcopy(config)
    config._register_custom_module({nn.Linear: _layer})  # pyright: ignore[reportArgumentType]  # called, like a class
    return config
