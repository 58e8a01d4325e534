"""lora_linear: a frozen linear layer with a LoRA on it (Hu et al. 2021), its output written twice.

    y = x Wᵀ + b + s·(x Aᵀ) Bᵀ

The adapter's product is added where the layer's lies: a row costs 2·O + r numbers written, where PyTorch's operators
one after the other write the product, the adapter's, the scaled one and their sum. For the backward x and h = x Aᵀ are
kept:

    dh = s·dy B,   dx = dy W + dh A,   dA = dhᵀ x,   dB = s·dyᵀ h

A and B may be wider than W (float32 beside bfloat16): the products run in W's dtype, the gradients of A and B are
accumulated in float32 and returned in theirs.

Two nodes of autograd's graph share the work. The first computes h, keeps all there is to keep, and has the backward;
the second computes y, keeps nothing, and hands dy to the first. So a checkpointed layer, whose recomputation ends as
soon as everything kept is there again, never recomputes the product of its last linear layer.

Shapes: T rows, I inputs, O outputs, r the adapter's rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class LoraLayer(NamedTuple):
    """A frozen linear layer and its LoRA, as `lora_linear` takes them."""

    weight: Tensor
    bias: Tensor | None
    A: Tensor
    B: Tensor
    scale: float


def gradients(
    grads: Sequence[Tensor | None],
    x: Tensor | None,
    h: Tensor | None,
    layers: Sequence[tuple[Tensor | None, Tensor, Tensor, float]],
    *,
    needs_x: bool,
    needs_A: bool,
    needs_B: bool,
) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
    """→ dx (T, I), and of each layer dA (r, I) and dB (O, r). None where not needed.

    grads: dy of each layer, None for one that nobody reads, whose adapter then has no gradient. x: for dA, h: for dB.
    layers: W, A, B, scale; without W, dx is the adapter's share.
    """
    total, dA, dB = None, [None] * len(layers), [None] * len(layers)
    some = next(grad for grad in grads if grad is not None)
    ranks = [A.shape[0] for _, A, _, _ in layers]
    with without_autocast(some.device):
        if needs_x or needs_A:
            # The scale goes into B first: in float16 dy·B by itself may be too large, or too small, for what s makes of
            # it.
            slopes = [
                some.new_zeros((some.shape[0], rank)) if grad is None else torch.mm(grad, (scale * B).to(grad.dtype))
                for grad, rank, (_, _, B, scale) in zip(grads, ranks, layers, strict=True)
            ]
            grad_h = _joined(slopes, 1)
            if needs_x:
                for grad, (weight, _, _, _) in zip(grads, layers, strict=True):
                    if grad is not None and weight is not None:
                        total = torch.mm(grad, weight) if total is None else total.addmm_(grad, weight)
                every_A = _joined([A.to(some.dtype) for _, A, _, _ in layers], 0)
                total = torch.mm(grad_h, every_A) if total is None else total.addmm_(grad_h, every_A)
            if needs_A:
                assert x is not None
                dA = [
                    None if grad is None else part.to(A.dtype)
                    for part, grad, (_, A, _, _) in zip(_summed(grad_h.t(), x).split(ranks), grads, layers, strict=True)
                ]
        if needs_B:
            assert h is not None
            # (hᵀ dy)ᵀ: a CPU takes two to four times as long for dyᵀ h.
            dB = [
                None if grad is None else _summed(part.t(), grad).mul_(scale).to(B.dtype).t().contiguous()
                for part, grad, (_, _, B, scale) in zip(h.split(ranks, 1), grads, layers, strict=True)
            ]
    return total, dA, dB


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """A sum over rows, in float32 at the least."""
    return torch.mm(left, right) if left.dtype == torch.float64 else float32_product(left, right)


class Down(torch.autograd.Function):
    """(x, (s_1, s_2, …), W_1, A_1, B_1, W_2, A_2, B_2, …) → all h side by side, and a carrier for each layer: a tensor
    of its y's shape without y's memory, whose gradient is dy.

    W: None where another node differentiates the layer's own product; dx is then the adapter's share of it.
    """

    @staticmethod
    def forward(x: Tensor, scales: tuple[float, ...], *tensors: Any) -> tuple[Tensor, ...]:
        return (
            down(x, _joined(list(tensors[1::3]), 0)),
            *(x.new_empty((1, 1)).expand(x.shape[0], B.shape[0]) for B in tensors[2::3]),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.scales, *tensors = inputs
        ctx.needs_A, ctx.needs_B = (any(ctx.needs_input_grad[2 + which :: 3]) for which in (1, 2))
        ctx.save_for_backward(x if ctx.needs_A else None, output[0] if ctx.needs_B else None, *tensors)
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        dy = [None if grad is None else grad.contiguous() for grad in grads[1:]]
        if all(grad is None for grad in dy):
            return (None,) * len(ctx.needs_input_grad)
        x, h, *tensors = ctx.saved_tensors
        layers = [(*tensors[3 * i : 3 * i + 3], scale) for i, scale in enumerate(ctx.scales)]
        needs_x = ctx.needs_input_grad[0]
        with torch.no_grad():
            grad_x, dA, dB = gradients(dy, x, h, layers, needs_x=needs_x, needs_A=ctx.needs_A, needs_B=ctx.needs_B)
        found = [grad_x, None, *(each for pair in zip(dA, dB, strict=True) for each in (None, *pair))]
        tied = [tensor for tensor in (x, *tensors[1::3], *tensors[2::3], *dy) if tensor is not None]
        return tuple(
            differentiable_once("lora_linear", value, *tied) if needed and value is not None else None
            for value, needed in zip(found, ctx.needs_input_grad, strict=True)
        )


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
    return _several(x, [LoraLayer(weight, bias, A, B, scale)])[0]


def _several(x: Tensor, layers: Sequence[LoraLayer]) -> list[Tensor]:
    """y (T, O) of each layer."""
    adapters = [tensor for layer in layers for tensor in (layer.A, layer.B)]
    ranks = [layer.A.shape[0] for layer in layers]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (x, *adapters)):
        h = down(x, _joined([layer.A for layer in layers], 0))
        return [
            up(x, part, layer.weight, layer.bias, layer.B, layer.scale)
            for part, layer in zip(h.split(ranks, 1), layers, strict=True)
        ]
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.A, layer.B)]
    h, *carriers = Down.apply(x, tuple(layer.scale for layer in layers), *tensors)  # pyright: ignore[reportGeneralTypeIssues]
    values = x.detach()
    return [
        _Up.apply(carrier, values, part, layer.weight, layer.bias, layer.B.detach(), layer.scale)  # pyright: ignore[reportReturnType]
        for carrier, part, layer in zip(carriers, h.split(ranks, 1), layers, strict=True)
    ]


def _of_lists(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    A: list[Tensor],
    B: list[Tensor],
    scales: list[float],
) -> list[Tensor]:
    return _several(x, [LoraLayer(*layer) for layer in zip(weights, biases, A, B, scales, strict=True)])


# Registered by hand: torch.library.custom_op would make the two nodes one. A graph holds the ops, whose nodes are
# traced below them: Dynamo of PyTorch 2.11 differentiates a node with several outputs wrongly.
_library = torch.library.Library("mdpo_kernels", "FRAGMENT")
_library.define("lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor A, Tensor B, float scale) -> Tensor")
_library.define(
    "lora_linears(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor[] A, Tensor[] B, float[] scales) -> Tensor[]"
)
for _key in ("CompositeExplicitAutograd", "Autograd"):
    _library.impl("lora_linear", _differentiable, _key)
    _library.impl("lora_linears", _of_lists, _key)


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """A frozen linear layer and its LoRA: x Wᵀ + b + s·(x Aᵀ) Bᵀ.

    Kept for the backward: x where A trains, and x Aᵀ where B does.

    Args:
        x: (…, I), floating; under autocast it is cast to the weight's dtype, never the weight.
        weight: (O, I), which does not train.
        bias: (O,), likewise, or None.
        A, B: (r, I) and (O, r), in the weight's dtype or in float32; they train where they want a gradient.
        scale: α/r, or what rank-stabilised LoRA has in its place.

    Returns:
        (…, O) in the weight's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, and a weight or bias that trains.
        NotImplementedError: a second derivative or forward mode; ``mdpo_kernels.reference`` has both.
    """
    x = check_lora_arguments(x, weight, bias, A, B, scale)
    refuse_forward_mode("lora_linear", x, A, B)
    bias = None if bias is None else bias.to(x.dtype)
    # Without a graph, the way through the dispatcher would take as long as the op.
    op = torch.ops.mdpo_kernels.lora_linear if torch.compiler.is_compiling() else _differentiable
    y = op(x.reshape(-1, x.shape[-1]), weight, bias, A, B, float(scale))
    return y.view(*x.shape[:-1], weight.shape[0])


def lora_linears(x: Tensor, layers: Sequence[LoraLayer]) -> tuple[Tensor, ...]:
    """`lora_linear` of several layers that read one x, such as query, key and value.

    x is read once for all of their A, and in the backward once for all dA; dx is added up where it lies.

    Args:
        x: as for `lora_linear`.
        layers: at least one; of one dtype, as each fits x.

    Returns:
        Each layer's (…, O).

    Raises:
        ValueError: as `lora_linear`, and where there is no layer or their weights differ in dtype.
    """
    check_one_dtype(layers)
    values = [check_lora_arguments(x, *layer) for layer in layers][0]  # noqa: RUF015  (all are checked)
    refuse_forward_mode("lora_linears", x, *(tensor for layer in layers for tensor in (layer.A, layer.B)))
    rows = values.reshape(-1, x.shape[-1])
    cast = [layer._replace(bias=None if layer.bias is None else layer.bias.to(rows.dtype)) for layer in layers]
    if torch.compiler.is_compiling():
        weights, biases, A, B, scales = map(list, zip(*cast, strict=True))
        found = torch.ops.mdpo_kernels.lora_linears(rows, weights, biases, A, B, scales)
    else:
        found = _several(rows, cast)
    return tuple(y.view(*x.shape[:-1], y.shape[1]) for y in found)


def check_one_dtype(layers: Sequence[LoraLayer]) -> None:
    """Raises ValueError where there is no layer, or they do not all compute in one dtype."""
    known = isinstance(layers, Sequence) and all(isinstance(layer, LoraLayer) for layer in layers)
    if not known or not layers:
        raise ValueError(f"layers is {type(layers).__name__}; expected at least one LoraLayer, in a list")
    dtypes = [str(layer.weight.dtype).removeprefix("torch.") for layer in layers]
    if len(set(dtypes)) > 1:
        raise ValueError(f"layers have weights of {', '.join(dtypes)}; expected one dtype")
