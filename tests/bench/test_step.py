"""The step part at a tiny shape: every layout computes the same, as far as it computes the same thing."""

import pytest
import torch

from bench.implementations.step import STEP, StepProblem, load_trl, three_unpadded
from bench.models import TINY, build
from bench.parts.step import _examples


@pytest.fixture(scope="module")
def problem() -> StepProblem:
    model = build(TINY, 64, torch.device("cpu"), lora_r=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return StepProblem(model, _examples(TINY, 80, 12, 2, 64))


@pytest.mark.parametrize("implementation", [i for i in STEP if i.role != "peer"], ids=lambda i: i.name)
def test_every_layout_runs_and_comparable_ones_agree(problem, implementation):
    outputs = implementation.load()(problem)()
    if implementation.comparable:
        for ours, theirs in zip(outputs, three_unpadded(problem)(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_trl_runs_where_it_is_installed(problem):
    pytest.importorskip("trl", reason="the peer is optional")
    (gradient,) = load_trl()(problem)()
    assert gradient.isfinite().all()
