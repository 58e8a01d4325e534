"""lora_linear: a frozen linear layer with a LoRA on it (Hu et al. 2021), its output written twice.

    y = x Wᵀ + b + s·(x Aᵀ) Bᵀ

The adapter's product is added where the layer's lies: a row costs 2·O + r numbers written, where PyTorch's operators one
after the other write the product, the adapter's, the scaled one and their sum. For the backward x and h = x Aᵀ are kept:

    dh = s·dy B,   dx = dy W + dh A,   dA = dhᵀ x,   dB = s·dyᵀ h

A and B may be wider than W (float32 beside bfloat16): the products run in W's dtype, the gradients of A and B are
accumulated in float32 and returned in theirs.

Shapes: T rows, I inputs, O outputs, r the adapter's rank.
"""

from typing import Any

import torch
from torch import Tensor

from .checks import check_lora_arguments
from .derivatives import differentiable_once, refuse_forward_mode
from .tiling import float32_product


def products(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """→ y (T, O) and h (T, r)."""
    with torch.autocast(x.device.type, enabled=False):
        y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
        h = torch.mm(x, A.to(x.dtype).t())
        return y.addmm_(h, B.to(x.dtype).t(), alpha=scale), h


def gradients(
    grad: Tensor, x: Tensor, h: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float, needs_x: bool, needs_adapter: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """→ dx (T, I), dA (r, I), dB (O, r), empty where not needed."""
    empty = grad.new_empty(0)
    grad_x, grad_A, grad_B = empty, empty, empty.clone()
    with torch.autocast(grad.device.type, enabled=False):
        grad_h = torch.mm(grad, B.to(grad.dtype)).mul_(scale)
        if needs_x:
            grad_x = torch.mm(grad, weight).addmm_(grad_h, A.to(grad.dtype))
        if needs_adapter:
            grad_A, grad_B = _summed(grad_h.t(), x).to(A.dtype), _summed(grad.t(), h).mul_(scale).to(B.dtype)
    return grad_x, grad_A, grad_B


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """A sum over rows, in float32 at the least."""
    return torch.mm(left, right) if left.dtype == torch.float64 else float32_product(left, right)


@torch.library.custom_op("mdpo_kernels::lora_linear", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """→ y (T, O) and h (T, r), in the dtype of x and weight."""
    return products(x, weight, bias, A, B, scale)


@_forward.register_fake
def _(x, weight, bias, A, B, scale):
    return x.new_empty((x.shape[0], weight.shape[0])), x.new_empty((x.shape[0], A.shape[0]))


@torch.library.custom_op("mdpo_kernels::lora_linear_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, h: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float, needs_x: bool, needs_adapter: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(grad, x, h, weight, A, B, scale, needs_x, needs_adapter)


@_backward.register_fake
def _(grad, x, h, weight, A, B, scale, needs_x, needs_adapter):
    return (
        x.new_empty(x.shape if needs_x else (0,)),
        A.new_empty(A.shape) if needs_adapter else x.new_empty(0),
        B.new_empty(B.shape) if needs_adapter else x.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, A, B, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], weight, A, B)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    x, h, weight, A, B = ctx.saved_tensors
    needs_x, needs_A, needs_B = (ctx.needs_input_grad[position] for position in (0, 3, 4))
    with torch.no_grad():
        found = _backward(grad.contiguous(), x, h, weight, A, B, ctx.scale, needs_x, needs_A or needs_B)
    grad_x, grad_A, grad_B = (
        differentiable_once("lora_linear", value, x, A, B, grad) if needed else None
        for value, needed in zip(found, (needs_x, needs_A, needs_B), strict=True)
    )
    return grad_x, None, None, grad_A, grad_B, None


_forward.register_autograd(_differentiate, setup_context=_save)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> Tensor:
    """A frozen linear layer and its LoRA: x Wᵀ + b + s·(x Aᵀ) Bᵀ.

    x: (…, I), floating; under autocast it is cast to the weight's dtype, never the weight. weight: (O, I) and bias: (O,),
        which do not train. A: (r, I) and B: (O, r), in the weight's dtype or in float32; they train where they want a
        gradient. scale: α/r, or what rank-stabilised LoRA has in its place.

    Returns (…, O) in the weight's dtype. Kept for the backward: x and x Aᵀ.

    Raises ValueError for shapes, dtypes or devices that do not fit, and for a weight or bias that trains. A second
    derivative and forward mode raise NotImplementedError; ``mdpo_kernels.reference`` has both.
    """
    x = check_lora_arguments(x, weight, bias, A, B, scale)
    refuse_forward_mode("lora_linear", x, A, B)
    bias = None if bias is None else bias.to(x.dtype)
    y, _ = _forward(x.reshape(-1, x.shape[-1]), weight, bias, A, B, float(scale))
    return y.view(*x.shape[:-1], weight.shape[0])
