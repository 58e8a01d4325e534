"""Derivatives that the ops with a backward of their own do not have: asked for one, they say so instead of giving 0."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

_REMEDY = "the functions of mdpo_kernels.reference are plain PyTorch and have it"


class _DifferentiableOnce(torch.autograd.Function):
    """The identity on a gradient, tied to what the gradient depends on; its own backward raises."""

    generate_vmap_rule = True  # torch.func.grad builds a graph of every backward, also of one it never differentiates

    @staticmethod
    def forward(op: str, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise NotImplementedError(
            f"mdpo_kernels.{ctx.op} was differentiated twice; expected once: here it has no second derivative, "
            f"{_REMEDY}"
        )


def differentiable_once(op: str, gradient: Tensor, *inputs: Tensor) -> Tensor:
    """`gradient`, computed without a graph: NotImplementedError naming `op` once it is differentiated in its turn.

    inputs: what the gradient depends on. Without that tie autograd would take it for a constant, and a second
    derivative would be 0 without a word. A tensor without entries will do, if its graph is the input's.
    """
    # Gradients are enabled in a backward only under create_graph=True.
    return _DifferentiableOnce.apply(op, gradient, *inputs) if torch.is_grad_enabled() else gradient  # pyright: ignore[reportReturnType]


def gradients(ctx: Any, *of_the_first: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of an op's first inputs, and None for the rest of them."""
    return *of_the_first, *(None,) * (len(ctx.needs_input_grad) - len(of_the_first))


def refuse_forward_mode(op: str, *inputs: Tensor | None) -> None:
    """Raises NotImplementedError naming `op` if an input carries a tangent, which a registered op drops in silence."""
    if torch.compiler.is_compiling():  # which does not trace forward mode at all
        return
    if any(tensor is not None and unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise NotImplementedError(
            f"mdpo_kernels.{op} was given a tangent; expected none: here it has no forward-mode derivative, {_REMEDY}"
        )
