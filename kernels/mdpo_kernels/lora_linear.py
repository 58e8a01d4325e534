"""lora_linear: a frozen linear layer with a LoRA on it (Hu et al. 2021), its output written twice.

    y = x Wᵀ + b + s·(x Aᵀ) Bᵀ

The adapter's product is added where the layer's lies: a row costs 2·O + r numbers written, where PyTorch's operators one
after the other write the product, the adapter's, the scaled one and their sum. For the backward x and h = x Aᵀ are kept:

    dh = s·dy B,   dx = dy W + dh A,   dA = dhᵀ x,   dB = s·dyᵀ h

A and B may be wider than W (float32 beside bfloat16): the products run in W's dtype, the gradients of A and B are
accumulated in float32 and returned in theirs.

Two nodes of autograd's graph share the work. The first computes h, keeps all there is to keep, and has the backward; the
second computes y, keeps nothing, and hands dy to the first. So a checkpointed layer, whose recomputation ends as soon as
everything kept is there again, never recomputes the product of its last linear layer.

Shapes: T rows, I inputs, O outputs, r the adapter's rank.
"""

from typing import Any

import torch
from torch import Tensor

from .autocast import without_autocast
from .checks import check_lora_arguments
from .derivatives import differentiable_once, refuse_forward_mode
from .tiling import float32_product


def down(x: Tensor, A: Tensor) -> Tensor:
    """h (T, r), in the dtype of x."""
    with without_autocast(x.device):
        return torch.mm(x, A.to(x.dtype).t())


def up(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, B: Tensor, scale: float) -> Tensor:
    """y (T, O), in the dtype of x."""
    with without_autocast(x.device):
        y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
        return y.addmm_(h, B.to(x.dtype).t(), alpha=scale)


def gradients(
    grad: Tensor,
    x: Tensor,
    h: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    *,
    needs_x: bool,
    needs_adapter: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """→ dx (T, I), without a weight the adapter's share of it; dA (r, I), dB (O, r). None where not needed."""
    grad_x = grad_A = grad_B = None
    with without_autocast(grad.device):
        grad_h = torch.mm(grad, B.to(grad.dtype)).mul_(scale)
        if needs_x:
            down = A.to(grad.dtype)
            grad_x = torch.mm(grad_h, down) if weight is None else torch.mm(grad, weight).addmm_(grad_h, down)
        if needs_adapter:
            grad_A = _summed(grad_h.t(), x).to(A.dtype)
            # (hᵀ dy)ᵀ: a CPU takes two to four times as long for dyᵀ h.
            grad_B = _summed(h.t(), grad).mul_(scale).to(B.dtype).t().contiguous()
    return grad_x, grad_A, grad_B


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """A sum over rows, in float32 at the least."""
    return torch.mm(left, right) if left.dtype == torch.float64 else float32_product(left, right)


class Down(torch.autograd.Function):
    """(x, weight, A, B, scale, O) → h and a carrier: a tensor of y's shape without y's memory, whose gradient is dy.

    weight: None where another node differentiates the layer's own product; dx is then the adapter's share of it.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, A: Tensor, B: Tensor, scale: float, outputs: int) -> tuple[Tensor, Tensor]:
        return down(x, A), x.new_empty((1, 1)).expand(x.shape[0], outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, A, B, ctx.scale, _ = inputs
        ctx.save_for_backward(x, output[0], weight, A, B)
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        grad = grads[1]
        if grad is None:
            return (None,) * 6
        x, h, weight, A, B = ctx.saved_tensors
        needs_x, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        with torch.no_grad():
            found = gradients(
                grad.contiguous(), x, h, weight, A, B, ctx.scale, needs_x=needs_x, needs_adapter=needs_A or needs_B
            )
        grad_x, grad_A, grad_B = (
            differentiable_once("lora_linear", value, x, A, B, grad) if needed and value is not None else None
            for value, needed in zip(found, (needs_x, needs_A, needs_B), strict=True)
        )
        return grad_x, None, grad_A, grad_B, None, None


class _Up(torch.autograd.Function):
    """y. Everything but the carrier comes without a graph."""

    @staticmethod
    def forward(
        carrier: Tensor, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, B: Tensor, scale: float
    ) -> Tensor:
        return up(x, h, weight, bias, B, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (*grads, None, None, None, None, None, None)


def _differentiable(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    if not torch.is_grad_enabled() or not (x.requires_grad or A.requires_grad or B.requires_grad):
        return _plain(x, weight, bias, A, B, scale)
    h, carrier = Down.apply(x, weight, A, B, scale, weight.shape[0])  # pyright: ignore[reportGeneralTypeIssues]
    return _Up.apply(carrier, x.detach(), h, weight, bias, B.detach(), scale)  # pyright: ignore[reportReturnType]


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return up(x, down(x, A), weight, bias, B, scale)


# Registered by hand: torch.library.custom_op would make the two nodes one.
_library = torch.library.Library("mdpo_kernels", "FRAGMENT")
_library.define("lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor A, Tensor B, float scale) -> Tensor")
_library.impl("lora_linear", _plain, "CompositeExplicitAutograd")
_library.impl("lora_linear", _differentiable, "Autograd")


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
    # A graph holds the op; without one, the way through the dispatcher would take as long as the op.
    op = torch.ops.mdpo_kernels.lora_linear if torch.compiler.is_compiling() else _differentiable
    y = op(x.reshape(-1, x.shape[-1]), weight, bias, A, B, float(scale))
    return y.view(*x.shape[:-1], weight.shape[0])
