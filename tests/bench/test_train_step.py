"""Whole optimizer steps at a tiny shape: the trainers take the same step where they compute the same thing."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import Linear, LoraLayer
from torch.utils.flop_counter import FlopCounterMode

from bench.inputs.models import BUNNY_3B, LLAVA_7B, TINY, build
from bench.inputs.preference_rows import preference_rows
from bench.suite import flops
from bench.suite.implementations.train_problem import TrainProblem
from bench.suite.implementations.train_step import (
    PEFT_LORA,
    TRAIN_STEP,
    TRAIN_STEP_COMPILED,
    TRAIN_STEP_LIGER,
    token_budget,
)
from bench.suite.parts.step import groups
from mdpo.models.fused_lora import FusedLoraLinear
from mdpo.packing import plan
from mdpo.trainer import trainer

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NAMED = {implementation.name: implementation for implementation in TRAIN_STEP}


@pytest.fixture(scope="module")
def problem() -> TrainProblem:
    examples = preference_rows(TINY, 5, image_tokens=64, shrink=4)
    return TrainProblem(
        shape=TINY,
        image_tokens=64,
        examples=examples,
        batch=2,
        checkpointing=False,
        device=CPU,
        lora_r=4,
        learning_rate=1e-2,
    )


def losses(name: str, problem: TrainProblem, count: int) -> list[float]:
    step = NAMED[name].load()(problem)
    return [step.run().item() for _ in range(count)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_ours_and_the_authors_take_the_same_steps(problem, checkpointing):
    problem = replace(problem, checkpointing=checkpointing)
    cached = losses("ours, reference cached", problem, 3)
    # Preparing ours took one step already.
    theirs = losses("authors' way", problem, 4)[1:]
    assert cached[0] > cached[1] > cached[2]
    assert losses("ours, reference each step", problem, 3) == pytest.approx(cached, rel=2e-2)
    assert theirs == pytest.approx(cached, rel=2e-2)


def test_peft_s_lora_layers_take_the_same_steps(problem):
    steps = [implementation.load()(problem) for implementation in (TRAIN_STEP[0], PEFT_LORA)]
    fused = [[type(m) for m in step.model.modules() if isinstance(m, LoraLayer)] for step in steps]
    assert set(fused[0]) == {FusedLoraLinear} and set(fused[1]) == {Linear} and len(fused[0]) == len(fused[1])
    ours, peft = ([step.run().item() for _ in range(3)] for step in steps)
    assert ours == pytest.approx(peft, rel=1e-3)


def test_trl_takes_the_step_of_two_branches(problem):
    pytest.importorskip("trl", reason="the peer is optional")
    first, second, third = losses("TRL DPOTrainer", problem, 3)
    assert 0 < third < second < first < 0.6932  # log 2 before the step that preparing took


def test_random_weights_are_not_read_to_know_them(problem, monkeypatch):
    """13 GB of them take longer than the step that is measured."""
    monkeypatch.setattr(trainer, "reference_weights", lambda *arguments: pytest.fail("the weights were read"))
    assert NAMED["ours, reference cached"].load()(problem).micro_batches == 3


def test_compiled_layers_are_ours_and_trls(problem, monkeypatch):
    """Each trainer compiles its own decoder's layers; what they compute is held elsewhere."""
    compiled = []

    def compile_nothing(module: torch.nn.Module, **options) -> None:
        compiled.append(type(module).__name__)
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compile_nothing)
    for implementation in TRAIN_STEP_COMPILED:
        try:
            step = implementation.load()
        except ImportError:
            continue  # the peer is optional
        compiled.clear()
        step(replace(problem, layers="compiled"))
        assert compiled == ["LlamaDecoderLayer"] * TINY.text.num_hidden_layers, implementation.name
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: None)
    with pytest.raises(RuntimeError, match="did not compile the layers"):  # and are not taken for compiled ones
        TRAIN_STEP_COMPILED[0].load()(replace(problem, layers="compiled"))
    assert {"torch.compile" in implementation.note for implementation in TRAIN_STEP_COMPILED} == {True}


def test_liger_on_a_cpu_is_skipped_by_name():
    assert all(implementation.devices == ("cuda",) for implementation in TRAIN_STEP_LIGER)


def test_the_budget_makes_the_asked_number_of_micro_batches(problem):
    lengths = [example.packed_length for example in problem.examples]
    for count in (1, 2, 3, 5):
        budget = token_budget(problem.examples, count)
        assert len(plan(lengths, budget, examples_per_step=len(lengths))[0]) == count


def test_rows_have_the_lengths_of_real_preference_data():
    rows = preference_rows(LLAVA_7B, 400, image_tokens=4)
    responses = sorted(len(ids) for row in rows for ids in (row.chosen_ids, row.rejected_ids))
    assert all(len(row.prompt_ids) == 64 for row in rows)
    assert 110 <= responses[len(responses) // 2] <= 130 and responses[-1] <= 400
    assert responses[len(responses) // 4] < 90 < 160 < responses[3 * len(responses) // 4]


def flops_of_a_sum(total, left, right, **options) -> int:
    """Of shapes."""
    return 2 * left[0] * left[1] * right[1]


def test_flops_are_those_of_the_matrix_products(problem):
    """Against PyTorch's own counter on a padded forward and backward of one row; attention there is not causal."""
    model = build(TINY, 64, CPU, lora_r=4)
    model.get_base_model().set_attn_implementation("eager")
    tokens = torch.full((1, 80), 3)
    # PyTorch counts a sum into a new tensor, and none in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: flops_of_a_sum}) as counter:
        hidden = model.get_base_model().model(input_ids=tokens, use_cache=False).last_hidden_state
        model.get_base_model().lm_head(hidden).sum().backward()
    rows = flops.Rows(tokens=80, pairs=80 * 80, scored=80, images=0)
    # The first layer's input needs no gradient: of one of two layers, query, key and value's products.
    missing = 3 * 2 * 80 * 64 * (64 + 4)
    # Some versions of transformers count the rotary angles as a matrix product.
    assert flops.policy_flops(model, rows) - missing == pytest.approx(counter.get_total_flops(), rel=1e-4)

    image = problem.examples[0].images["pixel_values"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.get_base_model().model.get_image_features(pixel_values=image)
    assert flops.image_flops(model, 1) == pytest.approx(counter.get_total_flops(), rel=0.05)  # the class token's row


def test_a_cpu_has_no_utilisation():
    assert flops.peak_flops(CPU) is None


def test_a_gpu_trains_real_shapes_with_and_without_checkpointing():
    listed = [group for group in groups(torch.device("cuda")) if group.op == "train_step"]
    plain = {(g.shape["model"], g.shape["checkpointing"]) for g in listed if g.shape["layers"] == "transformers"}
    assert plain == {(shape.name, on) for shape in (LLAVA_7B, BUNNY_3B) for on in ("on", "off")}
    assert plain == {(g.shape["model"], g.shape["checkpointing"]) for g in listed if g.shape["layers"] == "compiled"}
    # What the first minutes of a session are for.
    assert [(g.shape["model"], g.shape["layers"]) for g in listed[:4]] == [
        *[(LLAVA_7B.name, "transformers")] * 2,
        *[(LLAVA_7B.name, "compiled")] * 2,
    ]
    assert all(group.own_process == (group.shape["layers"] == "liger") for group in listed)


@pytest.mark.parametrize("name", list(NAMED))
def test_nothing_keeps_a_trainers_model(problem, name):
    """On a GPU the next trainer's model needs its room."""
    try:
        step = NAMED[name].load()(problem)
    except ImportError as error:
        pytest.skip(f"the peer is optional: {error}")
    step.run()
    model = weakref.ref(step.model)
    del step
    gc.collect()
    assert model() is None
