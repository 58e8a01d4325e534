"""The head with its exponentials in the product's epilogue: as exact as the one in use, at any p."""

import json
import os
import subprocess
import sys

import pytest
import torch

from mdpo_kernels import backend
from mdpo_kernels.linear_token_logps_epilogue import linear_token_logps_epilogue
from tests.kernels.linear_cases import CASES, Case, eager, make, value_and_grads
from tests.kernels.machine_code import MACHINE_CODE
from tests.numerics import assert_as_exact_as_torch, relative_error

FROZEN = [case for case in CASES if not case.train]


@pytest.mark.parametrize("case", FROZEN, ids=lambda case: case.why)
def test_as_exact_as_torch(case: Case, device: torch.device) -> None:
    tensors, targets, grad = make(case, device)
    doubled = {name: value.double() for name, value in tensors.items()}
    truth = value_and_grads(eager, doubled, targets, grad, False, **case.options)
    same_dtype = value_and_grads(eager, tensors, targets, grad, False, **case.options)
    found = value_and_grads(linear_token_logps_epilogue, tensors, targets, grad, False, **case.options)
    for part, value in found.items():
        assert_as_exact_as_torch(value, truth=truth[part], torch_value=same_dtype[part], what=part)


@pytest.mark.parametrize("lead", [0.0, 3.0, 11.0, 15.0], ids=["p .01", "p .3", "p .9993", "p .99998"])
def test_bf16_hidden_gradient_is_within_half_a_percent_at_any_p(lead: float, device: torch.device) -> None:
    case = Case("any p", rows=8, hidden_size=64, vocabulary=96, dtype=torch.bfloat16, lead=lead)
    tensors, targets, grad = make(case, device)
    doubled = {name: value.double() for name, value in tensors.items()}
    truth = value_and_grads(eager, doubled, targets, grad, False)["hidden"]
    found = value_and_grads(linear_token_logps_epilogue, tensors, targets, grad, False)["hidden"]
    assert relative_error(found[:-1], truth[:-1]) < 5e-3


@pytest.mark.parametrize("size", [3.0, 1e3, 1048570.0, 1048576.0, 1.1e6, 8e6, -1.1e6, -8e6])
def test_large_logits_in_different_tiles(size: float, device: torch.device) -> None:
    """Three of 40 tokens, at size, size + 1 and size + 2, the others far below; a GPU's tiles hold all 40."""
    bias = torch.full((40,), -3e7)
    bias[[2, 20, 38]] = torch.tensor([size, size + 1, size + 2])
    hidden, weight = torch.ones(3, 8), torch.zeros(40, 8)
    targets = torch.tensor([2, 20, 38], device=device)
    inputs = [tensor.to(device) for tensor in (hidden, weight, bias)]
    found = linear_token_logps_epilogue(inputs[0], inputs[1], targets, bias=inputs[2])
    truth = bias.double().log_softmax(0)[targets.cpu()]
    # In the interpreter a product and its sum round apart, so that k is off by the rounding of log₂e · maximum.
    apart = 2e-7 * abs(size) if backend.INTERPRETED and abs(size) < 1048576.0 else 0.0
    assert (found.double().cpu() - truth).abs().max() < 1e-6 + apart


# Bytes of shared memory that a program may have, by compute capability, as NVIDIA's programming guide lists them.
SHARED = {"80": 166912, "86": 101376, "90": 232448, "100": 232448, "120": 101376}
VARIANTS = {
    "plain": {},
    "bias": {"has_bias": True},
    "softcap": {"has_softcap": True},
    "softcap and bias": {"has_softcap": True, "has_bias": True},
    "without a gradient": {"with_powers": False},
    "softcap, without a gradient": {"has_softcap": True, "with_powers": False},
    "float32": {"itemsize": 4},
}
INSPECT = (
    MACHINE_CODE
    + """
from mdpo_kernels.linear_token_logps_epilogue import launch_on
capability, shared = map(int, sys.argv[1:3])
for name, changes in json.loads(sys.argv[3]).items():
    variant = {"itemsize": 2, "has_bias": False, "has_softcap": False, "with_powers": True} | changes
    launch = launch_on(capability // 10, shared, **variant)
    half = {"hidden", "weight", "powers", "bias"} if variant["itemsize"] == 2 else set()
    aligned = {"hidden_row_stride", "weight_row_stride", "row_stride"}
    block = {"HIDDEN_SIZE": 4096, "weight_column_stride": 1, **launch.options}
    options = {"num_warps": block.pop("num_warps"), "num_stages": block.pop("num_stages")}
    first = {"hidden_column_stride": 1, "HAS_BIAS": variant["has_bias"], "HAS_SOFTCAP": variant["has_softcap"],
             "WITH_POWERS": variant["with_powers"], **({} if variant["has_bias"] else {"bias": None})}
    kernels = [("powers_kernel", first), ("weighted_kernel", {"TILE": launch.columns})]
    for kernel, constants in kernels[:1 + variant["with_powers"]]:
        code, used = machine_code(
            "linear_token_logps_epilogue", kernel, block | constants, half, aligned, capability, **options
        )
        count = lambda pattern: len(re.findall(pattern, code))
        print(json.dumps({"variant": name, "kernel": kernel, "spills": count(r"\\b(?:LDL|STL)\\b"), "shared": used,
                          "products": count(r"\\w*MMA\\b"), "copies": count(r"LDGSTS\\S*\\.128")}))
"""
)
ALSO = [pytest.param(capability, list(VARIANTS), marks=pytest.mark.long) for capability in SHARED]


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "variants"), [("90", ["plain"]), *ALSO])
def test_its_products_run_on_the_matrix_units_and_nothing_spills(capability: str, variants: list[str]) -> None:
    """With the blocks that a card of this capability gets: an A100, an RTX 3090, an H100, a B200 and an RTX 5090."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    asked = json.dumps({variant: VARIANTS[variant] for variant in variants})
    command = [sys.executable, "-c", INSPECT, capability, str(SHARED[capability]), asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == sum(1 + ("without" not in variant) for variant in variants)
    for kernel in found:
        assert kernel["spills"] == 0 and kernel["copies"] > 0 and kernel["shared"] <= SHARED[capability], kernel
        assert kernel["products"] > 0 or kernel["variant"] == "float32", kernel  # which the matrix units would round
