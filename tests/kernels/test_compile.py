"""torch.compile without a graph break, torch.library.opcheck, and compilation for a GPU that is not there."""

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import mdpo_kernels
from mdpo_kernels import backend, reference

OPS = torch.ops.mdpo_kernels


def tensors(device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        "hidden": torch.randn(6, 8, generator=generator),
        "weight": torch.randn(12, 8, generator=generator),
        "logits": torch.randn(6, 12, generator=generator),
        "bias": torch.randn(12, generator=generator),
        "targets": torch.tensor([0, 11, 5, -100, 2, 3]),
        "cu_seqlens": torch.tensor([0, 2, 3, 4, 5, 6, 6]),
        "reference": -torch.rand(3, 2, generator=generator),
    }
    return {name: value.to(device) for name, value in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("module", [mdpo_kernels, reference], ids=["kernels", "reference"])
def test_one_graph_and_the_same_numbers(module: Any, device: torch.device) -> None:
    """fullgraph=True raises at a graph break. aot_eager traces forward and backward and needs no C compiler."""
    t = tensors(device)

    def step(hidden: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
        frozen = module.fused_linear_mdpo_loss(hidden, weight.detach(), t["targets"], t["cu_seqlens"], t["reference"])
        trained = module.linear_token_logps(hidden, weight, t["targets"], bias=t["bias"], softcap=3.0)
        from_logits = module.fused_mdpo_loss(logits * 1.0, t["targets"], t["cu_seqlens"], t["reference"])
        in_place = module.token_logps(logits * 2.0, t["targets"], inplace_backward=True)
        return frozen.loss + trained.sum() + from_logits.loss + in_place.sum()

    leaves = [t[name].requires_grad_() for name in ("hidden", "weight", "logits")]
    expected = step(*leaves)
    found = torch.compile(step, backend="aot_eager", fullgraph=True)(*leaves)
    torch.testing.assert_close(found, expected)
    for compiled, eager in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
@pytest.mark.parametrize("module", [mdpo_kernels, reference], ids=["kernels", "reference"])
def test_dynamic_shapes_compile_once(module: Any, device: torch.device) -> None:
    """Batches differ in their number of rows: sizes are symbols, which no message and no tile plan may choke on."""
    weight = torch.randn(12, 8, device=device)
    frozen = torch.zeros(3, 1, device=device)

    def step(hidden: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
        return module.fused_linear_mdpo_loss(hidden, weight, targets, cu_seqlens, frozen).loss

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (6, 9, 12):
        hidden = torch.randn(rows, 8, device=device, requires_grad=True)
        batch = torch.arange(rows, device=device), torch.arange(4, device=device) * (rows // 3)
        found, expected = compiled(hidden, *batch), step(hidden, *batch)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, hidden), torch.autograd.grad(expected, hidden))


@pytest.mark.slow
def test_opcheck(device: torch.device) -> None:
    """Schema, fake implementation, autograd registration and AOT dispatch of every op."""
    if not backend.use_triton(torch.zeros(1, device=device)):
        pytest.fail("the ops wrap the kernels, which do not run here")
    t = tensors(device)
    hidden, weight, logits, bias = (t[name].requires_grad_() for name in ("hidden", "weight", "logits", "bias"))
    targets, frozen = t["targets"], t["reference"]
    cu_seqlens = torch.arange(7, device=device)  # no absent branch: opcheck takes NaN for a difference
    plain = {name: value.detach() for name, value in t.items()}
    stats, grad = torch.ones(3, 6, device=device), torch.ones(6, device=device)
    options = (-100, 3.0, 0.5, 2**20)
    opcheck = torch.library.opcheck
    opcheck(OPS.token_logps, (logits, targets, -100, None, 1.0, False))
    opcheck(OPS.token_logps_backward, (grad, plain["logits"], targets, stats, None, 1.0))
    opcheck(OPS.token_logps_backward_, (grad, plain["logits"].clone(), targets, stats, None, 1.0))
    graph = hidden[:0].clone()
    opcheck(OPS.linear_token_logps, (hidden, plain["weight"], targets, None, graph, *options, True))
    opcheck(OPS.linear_token_logps, (hidden, weight, targets, bias, graph, *options, False))
    backward = (grad, plain["hidden"], plain["weight"], targets, plain["bias"], stats, 3.0, 0.5, 2**20)
    opcheck(OPS.linear_token_logps_backward, (*backward, True, True, True))
    opcheck(OPS.linear_token_logps_backward, (*backward, False, False, True))
    logps = torch.zeros(6, device=device, requires_grad=True)
    matrix = (3, [0, 0], [1, 2], [1.0, -1.0, 0.0, 1.0, 0.0, -1.0, 1.0, -1.0, 0.0], [1.0, 0.5], [0.0, 0.1])
    for given, betas in ((frozen, None), (None, torch.ones(2, device=device))):
        opcheck(OPS.preference_loss, (logps, cu_seqlens, given, betas, 0.1, *matrix))
    opcheck(
        OPS.preference_loss_backward, (torch.ones(2, device=device), torch.ones(3, 2, device=device), cu_seqlens, 6)
    )


COMPILE = """
import importlib
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FLAGS = {"HAS_BIAS": True, "HAS_SOFTCAP": True, "WITH_COEFFICIENTS": True, "FIRST": False, "WITH_UNIT": True,
         "BRANCHES": 5, "LANES": 8, "TERMS": 4, "LINKS": (0, 1, 2, 0), "SIZES": (1, 1, 1, 3), "STARTS": (0, 1, 2, 3),
         "REFERENCE": True, "ITS_OWN_BETA": True,
         "SAME_STRIDE": False, "HIDDEN_SIZE": 300, "COPIES": 3, "BLOCK": 256}
INTEGERS = {"row_stride", "grad_row_stride", "rows", "columns", "tile_rows", "ignore_index", "first_column",
            "weight_row_stride", "weight_column_stride", "examples", "width"}
NUMBERS = {"scale", "softcap", "beta"}
TUPLES = {"matrix": 6 * 5, "term_weights": 4, "term_offsets": 4}
HALF = {"weight", "bias", "unit", "coefficients", "grad_logits", "gathered_ptr", "out_ptr"}

def kind(name):
    if name in FLAGS: return "constexpr"
    if name in INTEGERS: return "i32"
    if name in NUMBERS: return "fp32"
    if name in TUPLES: return ("fp32",) * TUPLES[name]
    if name in ("targets", "cu_seqlens", "copies_ptr"): return "*i64"
    return "*bf16" if name in HALF else "*fp32"

for module in ("token_logps", "linear_token_logps", "linear_token_logps_backward", "fused_loss", "attention_gather"):
    for name, kernel in vars(importlib.import_module("mdpo_kernels." + module)).items():
        if name.endswith("_kernel"):
            signature = {argument: kind(argument) for argument in kernel.arg_names}
            constants = {(i,): FLAGS[argument] for i, argument in enumerate(kernel.arg_names) if argument in FLAGS}
            for capability in map(int, sys.argv[1:]):
                triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
                print(name, capability)
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_ampere_hopper_and_blackwell() -> None:
    """The interpreter accepts what the compiler does not, and the compiler needs no GPU, only a process of its own."""
    capabilities = ("80", "90", "120")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", COMPILE, *capabilities]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 8 * len(capabilities)


def test_the_reference_has_every_function_with_the_same_parameters() -> None:
    for name in mdpo_kernels.__all__:
        function = getattr(mdpo_kernels, name)
        if inspect.isfunction(function) and name != "varlen_attention":  # whose backend and determinism it has not
            twin = getattr(reference, name)
            assert inspect.signature(twin) == inspect.signature(function), name
