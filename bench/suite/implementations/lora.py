"""A frozen linear layer with a LoRA on it. Each implementation is a function of a `LoraProblem` that returns the layer:
(T, I) → (T, O), differentiable in x, A and B; on a GPU it is called under bf16 autocast, as trainers call it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from bench.inputs.problems import Projection
from bench.suite.group import Implementation
from bench.suite.implementations.logps import compiled
from mdpo_kernels import lora_linear

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LoraProblem:
    """The base in x's dtype, the adapter in float32. A and B are trained, and B is not zero."""

    x: Tensor  # (T, I)
    weight: Tensor  # (O, I)
    bias: Tensor | None  # (O,)
    A: nn.Parameter  # (r, I)
    B: nn.Parameter  # (O, r)
    scale: float
    upstream: Tensor  # (T, O)


def lora_problem(layer: Projection, rows: int, dtype: torch.dtype, device: torch.device) -> LoraProblem:
    """Random, of the sizes that trained layers have."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator, device=device)

    return LoraProblem(
        x=random(rows, layer.inputs).to(dtype).requires_grad_(),
        weight=random(layer.outputs, layer.inputs, scale=layer.inputs**-0.5).to(dtype),
        bias=random(layer.outputs).to(dtype) if layer.bias else None,
        A=nn.Parameter(random(layer.rank, layer.inputs, scale=layer.inputs**-0.5)),
        B=nn.Parameter(random(layer.outputs, layer.rank, scale=0.1 * layer.rank**-0.5)),
        scale=2.0,
        upstream=random(rows, layer.outputs).to(dtype),
    )


def ours(problem: LoraProblem) -> Layer:
    """The op itself."""
    return lambda x: lora_linear(x, problem.weight, problem.bias, problem.A, problem.B, problem.scale)


def addmm(problem: LoraProblem) -> Layer:
    """PyTorch's operators, differentiated by PyTorch."""

    def layer(x: Tensor) -> Tensor:
        base = F.linear(x, problem.weight, problem.bias)
        return torch.addmm(base, x @ problem.A.to(x.dtype).t(), problem.B.to(x.dtype).t(), alpha=problem.scale)

    return layer


def peft(problem: LoraProblem, *, cast_inputs: bool) -> nn.Module:
    """peft's layer. cast_inputs: to the adapter's float32, as it comes."""
    outputs, inputs = problem.weight.shape
    base = nn.Sequential(nn.Linear(inputs, outputs, problem.bias is not None, device="meta"))
    config = LoraConfig(
        r=problem.A.shape[0], lora_alpha=round(problem.scale * problem.A.shape[0]), target_modules=["0"]
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    layer: Any = model.get_submodule("base_model.model.0")
    base_layer, down, up = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
    base_layer.weight = nn.Parameter(problem.weight, requires_grad=False)
    if problem.bias is not None:
        base_layer.bias = nn.Parameter(problem.bias, requires_grad=False)
    down.weight, up.weight = problem.A, problem.B
    layer.cast_input_dtype_enabled = cast_inputs
    return layer


def _unsloth() -> Callable[[LoraProblem], Layer]:
    if find_spec("unsloth") is None:
        raise ImportError("No module named 'unsloth'")
    return unsloth


def unsloth(problem: LoraProblem) -> Layer:
    """`LoRA_W`, which its text models run on each layer that shares its input with none."""
    # Here, not when it is listed: it changes peft and transformers for the rest of the process.
    function = import_module("unsloth.kernels.fast_lora").LoRA_W
    weight, A, B, scale = problem.weight, problem.A, problem.B, problem.scale
    return lambda x: function.apply(x.unsqueeze(0), weight, None, A, B, scale).squeeze(0)


def _no_bias() -> Callable[[LoraProblem], Layer]:
    raise ImportError("its kernel takes no bias, and this layer has one")


_UNSLOTH = Implementation(
    name="unsloth",
    role="peer",
    load=_unsloth,
    devices=("cuda",),
    countable=False,
    patches=True,
    note="LoRA_W, as its text models run; the gradients of A and B are bf16",
)

LORA_LINEAR = (
    Implementation(name="ours", role="ours", load=lambda: ours),
    Implementation(
        name="torch addmm", role="torch", load=lambda: addmm,
        note="the product, and torch.addmm of it: what Unsloth makes of peft's layer in vision-language models",
    ),
    Implementation(
        name="peft", role="peer", load=lambda: lambda problem: peft(problem, cast_inputs=False),
        note="its cast of the input to float32 off, as the trainer has it",
    ),
    Implementation(
        name="peft, as it comes", role="peer", load=lambda: lambda problem: peft(problem, cast_inputs=True),
        devices=("cuda",), note="in float32 there is nothing to cast",
    ),
    Implementation(
        name="peft, compiled", role="peer", load=lambda: lambda problem: compiled(peft(problem, cast_inputs=False)),
        compiles=True, countable=False, note="its cast off",
    ),
    _UNSLOTH,
)  # fmt: skip
LORA_LINEAR_BIAS = (*LORA_LINEAR[:-1], replace(_UNSLOTH, load=_no_bias))
