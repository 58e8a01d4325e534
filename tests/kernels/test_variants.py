"""How many kernels a run compiles, and what becomes of their loads: neither may depend on the batch or the vocabulary.

A compilation takes some 0.3 s while the GPU waits; one for each size of a micro-batch would be minutes of every epoch.
"""

import importlib
import inspect
import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mdpo_kernels import backend, fused_mdpo_loss, linear_token_logps
from mdpo_kernels.backend import tl
from mdpo_kernels.linear_token_logps_backward import trainable_head_backward
from tests.kernels.machine_code import MACHINE_CODE

MODULES = ("linear_token_logps", "linear_token_logps_backward", "token_logps", "fused_loss")
# Vocabulary and the most rows a micro-batch of the token budget scores: LLaVA, Bunny, Qwen2.5-VL, InternVL.
CASES = [
    (32064, 12288),
    (32064, 8192),
    (51200, 12288),
    (151936, 12288),
    (151936, 4096),
    (151936, 2600),
    (92553, 4096),
]


class Recorder:
    """Stands in for a kernel: keeps what a launch would be compiled for, by Triton's rules, and runs nothing.

    Those are a tensor's dtype and whether it lies at a multiple of 16 bytes; a constexpr's value; of an integer that is
    specialised whether it is 1 and whether it is a multiple of 16.
    """

    def __init__(self, kernel: Any) -> None:
        self.variants: set[tuple] = set()
        self._parameters = inspect.signature(kernel.fn).parameters
        self._plain = (
            set(kernel.kwargs["do_not_specialize"] or ())
            if backend.INTERPRETED
            else {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
        )

    def __getitem__(self, grid: Any) -> Any:
        return self._launch

    def _launch(self, *args: Any, **options: Any) -> None:
        given = dict(zip(self._parameters, args, strict=False)) | options
        self.variants.add(tuple((name, self._key(name, value)) for name, value in given.items()))

    def _key(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.data_ptr() % 16 == 0
        constant = name not in self._parameters or self._parameters[name].annotation is tl.constexpr
        if constant or value is None:
            return value
        if isinstance(value, int) and name not in self._plain:
            return value == 1, value % 16 == 0
        return type(value)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Of every kernel; the products are not computed either, so that real sizes cost nothing."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"mdpo_kernels.{name}")
        for kernel in [attribute for attribute in vars(module) if attribute.endswith("_kernel")]:
            found[kernel] = Recorder(getattr(module, kernel))
            monkeypatch.setattr(module, kernel, found[kernel])
        if hasattr(module, "float32_product"):
            monkeypatch.setattr(module, "float32_product", uncomputed)
    return found


def uncomputed(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    return a.new_empty((len(a), b.shape[1]), dtype=torch.float32) if out is None else out


def numbers_of_rows(budget: int) -> list[int]:
    numbers = random.Random(budget)
    return [numbers.randint(budget // 40, budget // 2) for _ in range(200)]


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(("vocabulary", "budget"), CASES)
def test_a_handful_of_kernels_whatever_the_number_of_rows(vocabulary, budget, trained, recorders) -> None:
    where = "cpu" if backend.INTERPRETED else "cuda"
    weight = torch.zeros(vocabulary, 8, dtype=torch.bfloat16, device=where)
    for rows in numbers_of_rows(budget):
        hidden = torch.zeros(rows, 8, dtype=torch.bfloat16, device=where, requires_grad=not trained)
        targets = torch.zeros(rows, dtype=torch.int64, device=where)
        linear_token_logps(hidden, weight, targets)
        with torch.no_grad():
            linear_token_logps(hidden, weight, targets)
        if trained:
            stats = torch.zeros(3, rows, device=where)
            needed = (False, False, False)  # the products and sums, which are no kernels of ours
            trainable_head_backward(stats[0], hidden, weight, targets, None, stats, None, 1.0, 2**28, *needed)
    assert 0 < sum(len(recorder.variants) for recorder in recorders.values()) <= 12


def test_a_handful_of_kernels_for_logits_and_losses(recorders) -> None:
    where = "cpu" if backend.INTERPRETED else "cuda"
    for rows in numbers_of_rows(400):
        examples = rows // 3
        logits = torch.zeros(3 * examples, 100, device=where, requires_grad=True)
        targets, ends = (torch.arange(3 * examples + more, device=where) for more in (0, 1))
        fused_mdpo_loss(logits, targets % 100, ends, torch.zeros(3, examples, device=where)).loss.backward()
    assert all(0 < len(recorders[name].variants) <= 3 for name in recorders if "linear" not in name)


INSPECT = (
    MACHINE_CODE
    + """
logits = {"HAS_SOFTCAP": False, "BLOCK": 4096}
head = logits | {"HAS_BIAS": False, "bias": None}
biased = logits | {"HAS_BIAS": True}
LAUNCHES = [
    *(("linear_token_logps", "linear_token_logps_fwd_kernel",
       {**options, "FIRST": first, "WITH_COEFFICIENTS": gradient}, HALF, ALIGNED)
      for options in (head, biased) for first in (True, False) for gradient in (True, False)),
    *(("linear_token_logps_backward", "linear_token_logps_bwd_kernel", options, HALF, ALIGNED)
      for options in (head, biased)),
    *(("linear_token_logps", "linear_token_logps_finish_kernel",
       {"HIDDEN_SIZE": size, "WITH_UNIT": True, "weight_column_stride": 1, "BLOCK": 4096}, HALF, ALIGNED)
      for size in (4096, 3584, 2560, 896)),
    # V = 92553: rows of logits begin anywhere
    ("token_logps", "token_logps_fwd_kernel", logits, {"logits"}, set()),
    ("token_logps", "token_logps_bwd_kernel", {**logits, "SAME_STRIDE": True}, {"logits", "grad_logits"}, set()),
]
for capability in map(int, sys.argv[1:]):
    for module, name, constants, half, aligned in LAUNCHES:
        code, _ = machine_code(module, name, constants, half, aligned, capability)
        count = lambda pattern: len(re.findall(pattern, code))
        print(json.dumps({"kernel": name, "capability": capability, "spills": count(r"\\b(?:LDL|STL)\\b"),
                          "wide loads": count(r"LDG\\.E\\S*\\.128"), "loads": count(r"\\bLDG\\b"),
                          "stores": count(r"\\bSTG\\b"), "wide stores": count(r"STG\\.E\\S*\\.128")}))
"""
)


ALSO = [pytest.param(capability, marks=pytest.mark.long) for capability in ("80", "86", "100")]


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["90", "120", *ALSO])
def test_loads_are_128_bits_wide_and_nothing_spills(capability: str) -> None:
    """The signatures of LLaVA, Bunny (a bias), Qwen2.5-VL and InternVL; the vocabulary's size is no constant in any."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", INSPECT, capability]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 16
    for kernel in found:
        assert kernel["spills"] == 0, kernel
        # What is left is a row's own few numbers: its target, its statistics, the target's logit, the edges.
        assert kernel["wide loads"] >= 2 and kernel["loads"] - kernel["wide loads"] <= 8, kernel
        assert kernel["stores"] - kernel["wide stores"] <= 5, kernel
