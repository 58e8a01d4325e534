"""The operation `lora_linear` of the part `kernels`: a frozen linear layer with a LoRA of rank 64 on it.

Floor: the products with the base alone, x Wᵀ and, with the backward, dy W for the input's gradient.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from bench.inputs.problems import CPU_PROJECTIONS, PROJECTIONS, Projection
from bench.suite.group import Bound, Floor, Group, Outputs, Prepared
from bench.suite.implementations.lora import LORA_LINEAR, LORA_LINEAR_BIAS, Layer, LoraProblem, lora_problem
from mdpo_kernels import reference

_ROWS = {"cuda": 8192, "cpu": 2048}  # packed tokens, about what a micro-batch holds


def lora_groups(dtype: torch.dtype, device: torch.device, tiny: bool = False) -> list[Group]:
    """Each layer with its backward and without."""
    layers = PROJECTIONS if device.type == "cuda" else CPU_PROJECTIONS
    rows = 64 if tiny else _ROWS[device.type]
    return [lora_group(layer, rows, dtype, device, backward) for layer in layers for backward in (True, False)]


def lora_group(layer: Projection, rows: int, dtype: torch.dtype, device: torch.device, backward: bool) -> Group:
    """`lora_linear` with what a training forward keeps, and the gradients of x, A and B where backward says so."""

    def prepare() -> Prepared:
        problem = lora_problem(layer, rows, dtype, device)
        truth = _float64(problem, backward)

        def bind(function: Callable[[LoraProblem], Layer]) -> Bound:
            called = function(problem)

            def run() -> Outputs:
                with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                    y = called(problem.x)
                return (y, *torch.autograd.grad(y, _leaves(problem), problem.upstream)) if backward else (y,)

            return Bound(run=run, errors=lambda outputs: _errors(outputs, truth))

        return Prepared(floor=_products(problem, backward), bind=bind)

    implementations = LORA_LINEAR_BIAS if layer.bias else LORA_LINEAR
    times = 1 + backward
    return Group(
        part="kernels",
        op="lora_linear",
        shape={
            "model": layer.model,
            "layer": layer.name,
            "mode": "forward-and-backward" if backward else "forward",
            "T": rows,
        },
        dtype=dtype,
        implementations=implementations,
        prepare=prepare,
        flops=2.0
        * rows
        * (times * layer.inputs * layer.outputs + (1 + 2 * backward) * layer.rank * (layer.inputs + layer.outputs)),
        # A process more only where somebody has what asks for one.
        own_process=any(i.patches and device.type in i.devices for i in implementations)
        and find_spec("unsloth") is not None,
    )


def _leaves(problem: LoraProblem) -> list[torch.Tensor]:
    return [problem.x, problem.A, problem.B]


def _products(problem: LoraProblem, backward: bool) -> Floor:
    x = problem.x.detach()

    def run() -> None:
        F.linear(x, problem.weight, problem.bias)
        if backward:
            torch.mm(problem.upstream, problem.weight)

    return Floor(name="the base's two products" if backward else "the base's product", run=run)


def _float64(problem: LoraProblem, backward: bool) -> Outputs:
    x, A, B = (leaf.detach().double().requires_grad_() for leaf in _leaves(problem))
    bias = None if problem.bias is None else problem.bias.double()
    y = reference.lora_linear(x, problem.weight.double(), bias, A, B, problem.scale)
    return (y.detach(), *torch.autograd.grad(y, [x, A, B], problem.upstream.double())) if backward else (y.detach(),)


def _errors(outputs: Outputs, truth: Outputs) -> dict[str, float]:
    return {
        name: ((got.detach().double() - wanted).norm() / wanted.norm()).item()
        for name, got, wanted in zip(("y", "dx", "dA", "dB"), outputs, truth, strict=False)
    }
