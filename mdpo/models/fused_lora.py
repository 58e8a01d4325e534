"""LoRA layers that add to their base's product where it lies: peft's own, with another forward.

peft makes them by its dispatch for custom modules, so that everything else stays peft's: what is saved and loaded,
merging, ``disable_adapter``, several adapters, ``print_trainable_parameters``.
"""

import copy
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from peft import LoraConfig, PeftConfig, PeftType
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

from mdpo_kernels import lora_linear
from mdpo_kernels.autocast import autocast_is_on, without_autocast

# Tensors as they are, also those without data, on which the memory of a step is counted.
_TENSORS = (nn.Parameter, Tensor, FakeTensor)


class FusedLora:
    """The forward of a peft layer that is mixed in: its own way for one plain active adapter without dropout on a
    frozen base, and peft's for everything else, and for whatever somebody watches or has replaced."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = args or any(value is not None for value in kwargs.values())
        if given or x.is_nested or x.layout != torch.strided or self.obstacle(x.dtype) is not None:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]  # peft's
        (adapter,) = _active(self)
        down, up = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        return self.fused(x, self.base_layer, down, up, self.scaling[adapter])

    def obstacle(self: Any, dtype: torch.dtype) -> str | None:
        """Why the layer takes peft's way for an input of ``dtype``, in words; None where it takes its own."""
        active = _active(self)
        if self.disable_adapters or self.merged or len(active) != 1:
            return "not one adapter is active"
        (name,) = active
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        dropout: Any = self.lora_dropout[name]
        if type(dropout) is not nn.Identity and not (
            type(dropout) is nn.Dropout and not (dropout.training and dropout.p)
        ):
            return "it has dropout"
        if any(map(_is_watched, (base, dropout, down, up))):
            return "somebody watches it, or has put another forward in it"
        adapter_is_plain = _is_plain(down) and _is_plain(up) and up.bias is None and name not in self.lora_variant
        if not adapter_is_plain or not isinstance(self.scaling[name], (int, float)):
            return "its adapter is more than A and B"
        if any(weight is not None and weight.requires_grad for weight in (base.weight, base.bias)):
            return "its base trains"
        return self.obstacle_of_base(base, dtype, (down.weight.dtype, up.weight.dtype))


class FusedLoraLinear(FusedLora, Linear):
    """peft's LoRA on a plain linear layer, by ``mdpo_kernels.lora_linear``.

    shared_input: with the layers that read the same, see ``share_inputs``.
    """

    shared_input: Any = None

    def fused(self, x: Tensor, base: Any, down: Tensor, up: Tensor, scale: float) -> Tensor:
        found = None if self.shared_input is None else self.shared_input.output(self, x)
        return lora_linear(x, base.weight, base.bias, down, up, scale) if found is None else found

    def obstacle_of_base(self, base: Any, dtype: torch.dtype, adapter: tuple[torch.dtype, ...]) -> str | None:
        if not _is_plain(base) or not base.weight.shape[1]:
            return "its base is no plain linear layer"
        return obstacle_of_dtypes(base.weight.device, dtype, base.weight.dtype, adapter)


def obstacle_of_dtypes(
    device: torch.device, dtype: torch.dtype, products: torch.dtype, adapter: tuple[torch.dtype, ...]
) -> str | None:
    """None where peft's layer would run the adapter's products in the dtype of the base's, ``products``, too."""
    if autocast_is_on(device):
        same = products == torch.get_autocast_dtype(device.type) and all(
            each in (products, torch.float32) for each in adapter
        )
    else:
        same = {dtype, *adapter} == {products}
    return None if same else "peft computes the adapter in another dtype than the base"


def describe_lora(model: nn.Module, autocast: torch.dtype | None) -> str | None:
    """Which LoRA layers take the fused way in a step, in one line; None for a model without any.

    autocast: the dtype that steps run under, None where that is the weights' own.
    """
    found = dict(_obstacles(model, autocast))
    if not found:
        return None
    fused = sum(reason is None for reason in found.values())
    line = f"LoRA: {fused} of {len(found)} layers fused"
    name, reason = next(((name, reason) for name, reason in found.items() if reason is not None), (None, None))
    return line if name is None else f"{line}; the others are peft's ({name}: {reason})"


def _obstacles(model: nn.Module, autocast: torch.dtype | None) -> Iterator[tuple[str, str | None]]:
    for name, module in model.named_modules():
        layer: Any = module
        if not isinstance(layer, LoraLayer) or not isinstance(layer, BaseTunerLayer):
            continue
        if not isinstance(layer, FusedLora):
            base = layer.get_base_layer()
            yield name, "made without mdpo.models.fuse_lora" if _is_plain(base) else f"on a {type(base).__name__}"
            continue
        base: Any = layer.base_layer
        dtype = getattr(base, "compute_dtype", None) or base.weight.dtype  # of a weight in 4 bits, its products'
        with (
            without_autocast(base.weight.device)
            if autocast is None
            else torch.autocast(base.weight.device.type, autocast)
        ):
            yield name, layer.obstacle(dtype)


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is linear and nothing but that: not a subclass, its weight neither quantised nor sharded."""
    if type(layer) is not nn.Linear:
        return False
    return all(type(weight) in _TENSORS for weight in (layer.weight, layer.bias) if weight is not None)


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody's code runs when the module is called: a hook, or a forward put in the place of its own."""
    if not torch.compiler.is_compiling() and _has_any_global_hook():
        return True
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _layer(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
    """None leaves a layer to peft's own dispatch: other kinds of layers are linear to Python too."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if config.fan_in_fan_out or kwargs.pop("parameter_name", None) is not None:
        return None
    if kwargs.get("loaded_in_4bit"):
        from .fused_lora_4bit import fused_layer_4bit  # bitsandbytes comes with it

        found = fused_layer_4bit(target, adapter_name, config, **kwargs)
        if found is not None:
            return found
    return FusedLoraLinear(target, adapter_name, config=config, **kwargs) if _is_plain(base) else None


def can_fuse(config: PeftConfig) -> TypeGuard[LoraConfig]:
    """Whether ``fuse_lora`` takes the config."""
    return isinstance(config, LoraConfig) and config.peft_type == PeftType.LORA and not config._custom_modules


def fuse_lora(config: LoraConfig) -> LoraConfig:
    """The config, with ``FusedLoraLinear`` for plain linear layers, and ``FusedLoraLinear4bit`` for bitsandbytes' in 4
    bits: ``get_peft_model(model, fuse_lora(LoraConfig(...)))``, or
    ``PeftModel.from_pretrained(model, folder, config=fuse_lora(LoraConfig.from_pretrained(folder)))``.

    Trains the same adapter to rounding, and the same bits while B is zero; a row of a layer's output is written twice,
    not four times, and what is kept for the backward is no more. In the backward A and B get their gradients summed in
    float32. A fused layer is differentiated once: a second derivative and forward mode raise NotImplementedError.

    Raises ValueError for another kind of config, and for one with custom modules of its own: peft asks one for each
    layer, the first that fits.
    """
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        raise ValueError(f"config is a {type(config).__name__}; expected a peft.LoraConfig")
    if not can_fuse(config):
        raise ValueError(
            "the config has custom modules of its own, which fuse_lora would hide; register only one of them"
        )
    config = copy.deepcopy(config)
    config._register_custom_module({nn.Linear: _layer})  # pyright: ignore[reportArgumentType]  # called, like a class
    return config
