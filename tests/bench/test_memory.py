"""The search under a cap, and the part's groups."""

import gc
from dataclasses import replace

import pytest
import torch

from bench.inputs.models import TINY
from bench.render.targets import RATIOS
from bench.suite.implementations.budget import BudgetProblem, budget, largest, planned, searched
from bench.suite.implementations.train_step import ours
from bench.suite.parts import PARTS
from bench.suite.record import Record

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.mark.parametrize("most", [1, 2, 7, 8, 100])
@pytest.mark.parametrize("truth", [0, 1, 2, 3, 5, 8, 64, 99])
def test_the_most_that_fit_are_found(most, truth):
    asked = []

    def fits(pairs: int) -> bool:
        asked.append(pairs)
        return pairs <= truth

    assert largest(fits, most) == min(most, truth)
    assert all(1 <= pairs <= most for pairs in asked)
    assert len(asked) == len(set(asked))  # a trial builds a model: none is made twice


def problem(cap: float) -> BudgetProblem:
    return BudgetProblem(shape=TINY, image_tokens=16, cap=int(cap * 2**20), device=CPU, most=3, step_pairs=2, shrink=8)


def make(train_problem):
    return ours(train_problem, cached=True)


def test_a_cap_between_one_pair_and_three_is_kept():
    most = searched(make, problem(1000), checkpointing=True)
    assert most.pairs == 3 and "the most that was tried" in most.remark
    assert torch.isfinite(most.step.run())
    with pytest.raises(torch.OutOfMemoryError, match="one pair does not fit"):
        searched(make, problem(1), checkpointing=True)
    gc.collect()


def test_the_plans_settings_are_taken():
    budget = planned(problem(1000))
    assert "0 layers checkpointed" in budget.remark and budget.step.examples == 2
    assert torch.isfinite(budget.step.run())
    with pytest.raises(torch.OutOfMemoryError, match="the plan has nothing"):
        planned(problem(1))


def test_trl_is_skipped_by_name_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    monkeypatch.delitem(__import__("sys").modules, "bench.suite.implementations.trl_step", raising=False)
    (implementation, _) = [each for each in budget(problem(1)) if each.name.startswith("TRL")]
    with pytest.raises(ImportError, match="trl"):
        implementation.load()


def test_without_bitsandbytes_a_plan_in_4_bits_is_skipped_by_name_and_no_other(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    loaded = {}
    for group in PARTS["memory"].groups(torch.device("cuda")):
        try:
            loaded[group.shape["model"], group.shape["cap"]] = group.implementations[0].load()
        except ImportError as error:
            assert "bitsandbytes" in str(error)
    assert set(loaded) == {(model, cap) for model in ("llava-1.5-7b", "bunny-3b") for cap in ("24GiB", "80GiB")}


def test_one_trainer_serves_all_probes():
    made = []

    def make_counted(train_problem):
        made.append(train_problem)
        return make(train_problem)

    most = searched(make_counted, problem(1000), checkpointing=False)
    assert len(made) == 1 and most.pairs == most.step.examples == 3 and most.step.micro_batches == 1
    assert most.step.tokens > made[0].examples[0].packed_length


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parts_list_their_groups_without_a_device(name, device):
    listed = PARTS[name].groups(torch.device(device))
    cases = [(group.op, group.case) for group in listed]
    assert cases and len(set(cases)) == len(cases)


def test_one_size_varies_in_each_line():
    by_op: dict[str, list[dict]] = {}
    for group in PARTS["scaling"].groups(CPU):
        by_op.setdefault(group.op, []).append(group.shape)
    assert set(by_op) == {"over P", "over R", "over V", "over B"}
    for op, shapes in by_op.items():
        varying = {key for key in shapes[0] if len({shape[key] for shape in shapes}) > 1}
        assert varying == {op.removeprefix("over ")}


def test_ratios_of_rates_are_ours_over_theirs():
    def record(name: str, pairs_per_second: float) -> Record:
        return Record(
            part="memory",
            op="budget",
            shape={"model": "m", "cap": "24GiB"},
            dtype="bfloat16",
            implementation=name,
            role="ours",
            status="ok",
            rates={"examples/s": pairs_per_second},
        )

    records = [record("ours, as planned", 3.0), record("TRL, checkpointing on", 2.0)]
    (ratio,) = [
        each
        for each in RATIOS
        if each.op == "budget"
        and each.measure == "examples/s"
        and each.other == records[1].implementation
        and ("cap", "24GiB") in each.shape
    ]
    assert ratio.of(records) == {"m": 1.5}
    assert ratio.met(1.5) and not ratio.met(0.9)
    assert ratio.of([records[0], replace(records[1], rates={})]) == {}
