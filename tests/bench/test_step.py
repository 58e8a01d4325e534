"""The step part at a tiny shape: every layout computes the same, as far as it computes the same thing."""

import pytest
import torch

from bench.inputs.models import TINY, build
from bench.inputs.preference_rows import even_rows
from bench.suite.implementations.separate import GEMMA_TINY, SEPARATE, SeparateProblem, build_gemma
from bench.suite.implementations.step import OBJECTIVE, STEP, StepProblem, separate_passes
from bench.suite.parts.step import OBJECTIVES
from mdpo.memory.live import LiveMemory
from mdpo.models import branch_logps
from mdpo.objectives import PRESETS


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
        for ours, theirs in zip(outputs, separate_passes(problem)(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_other_objectives_are_the_same_packed_and_in_separate_passes(problem, name):
    objective = PRESETS[name]
    examples = even_rows(
        TINY, 80, 12, 2, image_tokens=64, negatives=objective.negatives, contrast=objective.reads_contrast
    )
    found = [each.load()(StepProblem(problem.model, examples, objective))() for each in OBJECTIVE]
    assert found[0][0].shape == (len(objective.branches), 2) and not found[0][0].isnan().any()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_what_a_packed_forward_keeps_is_the_token_ratios_share(problem):
    """Activation memory: what is alive between forward and backward, against a pass for each branch."""
    branches = problem.objective.branches
    rows = [[problem.row(branches)], [problem.row([branch]) for branch in branches]]
    kept = []
    for layout in rows:
        with LiveMemory() as memory:
            policy = [branch_logps(problem.model, row) for row in layout]
        kept.append(memory.live)
        del policy
    packed, apart = (sum(row.num_tokens for row in layout) for layout in rows)
    assert kept[0] / kept[1] <= 1.05 * packed / apart


def test_branches_read_separately_are_plain_padded_passes():
    model = build_gemma(GEMMA_TINY, 16, torch.device("cpu"), lora_r=4)
    problem = SeparateProblem(model, even_rows(GEMMA_TINY, 40, 12, 2, image_tokens=16))
    ours, plain = (each.load()(problem)() for each in SEPARATE)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
