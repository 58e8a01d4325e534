"""The step part at a tiny shape: every layout computes the same, as far as it computes the same thing."""

import pytest
import torch

from bench.implementations.step import STEP, StepProblem, _branch_row, three_unpadded
from bench.live_memory import LiveMemory
from bench.models import TINY, build
from bench.preference_rows import even_rows
from mdpo.models import sequence_logps
from mdpo.packing import pack


@pytest.fixture(scope="module")
def problem() -> StepProblem:
    model = build(TINY, 64, torch.device("cpu"), lora_r=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return StepProblem(model, even_rows(TINY, 80, 12, 2, image_tokens=64))


@pytest.mark.parametrize("implementation", STEP, ids=lambda i: i.name)
def test_every_layout_runs_and_comparable_ones_agree(problem, implementation):
    outputs = implementation.load()(problem)()
    if implementation.comparable:
        for ours, theirs in zip(outputs, three_unpadded(problem)(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_what_a_packed_forward_keeps_is_the_token_ratios_share(problem):
    """Activation memory: what is alive between forward and backward, against three unpadded passes."""
    rows = [[pack(problem.examples, problem.model)], [_branch_row(problem, branch) for branch in range(3)]]
    kept = []
    for layout in rows:
        with LiveMemory() as memory:
            policy = [sequence_logps(problem.model, row) for row in layout]
        kept.append(memory.live)
        del policy
    packed, three = (sum(row.num_tokens for row in layout) for layout in rows)
    assert kept[0] / kept[1] <= 1.05 * packed / three
