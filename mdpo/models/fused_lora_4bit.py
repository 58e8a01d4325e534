"""The fused LoRA layer on bitsandbytes' linear layer in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

from typing import Any

import bitsandbytes  # pyright: ignore[reportMissingImports]  # an extra
import torch
from peft import LoraConfig
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from mdpo_kernels.lora_linear import Down

from .fused_lora import FusedLora, obstacle_of_dtypes


class FusedLoraLinear4bit(FusedLora, Linear4bit):
    """peft's LoRA on a linear layer in 4 bits: bitsandbytes' product, whose backward stays its own, and the adapter's
    added where that lies, where peft copies it first."""

    def fused(self, x: Tensor, base: Any, down: Tensor, up: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # Before the base: a checkpointed layer is recomputed up to here, and not its product.
        h, carrier = Down.apply(rows, (scale,), None, down, up)  # pyright: ignore[reportGeneralTypeIssues]
        # Of rows, since with a bias the product of anything else is a view, and nothing writes into a view's base.
        y: Any = _Added.apply(base(rows), carrier, h, up.detach(), scale)
        return y.view(*x.shape[:-1], base.out_features)

    def obstacle_of_base(self, base: Any, dtype: torch.dtype, adapter: tuple[torch.dtype, ...]) -> str | None:
        products = base.compute_dtype or dtype  # where it is not said, bitsandbytes takes its input's
        if products != dtype:
            return "bitsandbytes casts its input"
        return obstacle_of_dtypes(base.weight.device, dtype, products, adapter)


class _Added(torch.autograd.Function):
    """y + s·h Bᵀ; its gradient goes to y and to the carrier, which is the adapter's."""

    @staticmethod
    def forward(y: Tensor, carrier: Tensor, h: Tensor, B: Tensor, scale: float) -> Tensor:
        up = B.to(y.dtype).t()
        with torch.autocast(y.device.type, enabled=False):
            if torch.compiler.is_compiling():  # which finds out by itself that nobody reads y any more
                return torch.addmm(y, h, up, alpha=scale)
            return y.addmm_(h, up, alpha=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not torch.compiler.is_compiling():
            ctx.mark_dirty(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        return grad, grad, None, None, None


def fused_layer_4bit(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
    """For peft's dispatch; None for a layer that is not in 4 bits."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not isinstance(base, bitsandbytes.nn.Linear4bit):
        return None
    return FusedLoraLinear4bit(target, adapter_name, config=config, **kwargs)
