"""What mdpo train chooses by itself on a GPU, from a given amount of free memory."""

import functools
from dataclasses import replace

import pytest
import torch

from mdpo.config import build_config
from mdpo.errors import InputError
from mdpo.memory import SHAPES, Adaptation, Memory, choose, log_normal, memory_of, read_shape
from mdpo.memory import automatic as module
from mdpo.memory.allocator import use_expandable_segments
from mdpo.memory.automatic import Automatic, automatic
from mdpo.memory.choose import Constraints
from mdpo.memory.commands import _print_automatic, planned_settings
from mdpo.memory.constraints import counted, layers_by
from mdpo.memory.footprint import CONTEXT_BYTES, DRIVER_BYTES
from mdpo.memory.lengths import Data
from mdpo.memory.precision import Precision
from mdpo.memory.size import GIB, free_memory
from mdpo.models import LANGUAGE_LINEAR
from tests import tiny

pytestmark = pytest.mark.slow

LENGTHS = log_normal(prompt_tokens=650, response_tokens_median=120, response_tokens_max=400, image_tokens=576).packed
CONFIG = {
    "model_name_or_path": "nowhere",
    "train_data": "nowhere.json",
    "output_dir": "out",
    "dtype": "bfloat16",
    "bf16": True,
    "use_cpu": True,
    "plan_model_shape": "llava-1.5-7b",
    "plan_prompt_tokens": 650,
    "plan_response_tokens_median": 120,
    "plan_response_tokens_max": 400,
    "report_to": "none",
}


@functools.cache
def shape(rank: int):
    return read_shape(SHAPES["llava-1.5-7b"](), Adaptation(rank=rank, pattern=LANGUAGE_LINEAR))


@pytest.fixture(autouse=True)
def one_shape(monkeypatch):
    """Read off the config once; reading it takes a third of a second."""
    monkeypatch.setattr(module, "shape_of", lambda run, args, pattern: shape(run.lora_r if run.use_lora else 0))


def configured(**settings):
    return build_config({**CONFIG, **settings}, source="run.yaml")


def chosen(gib: float, *, processes=1, fault=None, recorded=None, **settings) -> Automatic:
    run, args = configured(**settings)
    found = automatic(
        run,
        args,
        lambda shape: counted(args, shape, Data(LENGTHS)),
        Memory(int(gib * GIB)),
        LANGUAGE_LINEAR,
        processes=processes,
        compiler_fault=fault,
        recorded=recorded,
    )
    assert "\n" not in found.line and "to choose otherwise: --checkpoint_layers" in found.line
    return found


def test_a_large_card_recomputes_nothing_and_compiles():
    found = chosen(78)
    assert found.settings["checkpoint_layers"] == 0 and found.settings["compile_layers"] is True
    assert found.plan.footprint.total <= 78 * GIB
    assert "78.00 GiB free: checkpoint_layers 0 of 32" in found.line and "layers compiled" in found.line


@pytest.mark.parametrize("gib", [18, 24, 40, 78, 140])
def test_precision_and_optimizer_are_never_touched(gib):
    found = chosen(gib)
    assert set(found.settings) == {"checkpoint_layers", "token_budget", "compile_layers"}
    assert not found.plan.quantized and found.plan.optimizer == "adamw_torch_fused"
    assert found.plan.footprint.total <= gib * GIB
    assert found.settings["token_budget"] <= 16384


def test_no_more_layers_are_checkpointed_than_must_be():
    counts = [chosen(gib).plan.checkpoint_layers for gib in (18, 24, 40, 78)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0
    shares = [chosen(gib).plan.work / chosen(gib).plan.work_checkpointed for gib in (18, 24, 40, 78)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({"checkpoint_layers": 7}, {"token_budget", "compile_layers"}),
        ({"gradient_checkpointing": True}, {"token_budget", "compile_layers"}),
        ({"gradient_checkpointing": False}, {"token_budget", "compile_layers"}),
        ({"token_budget": 8000}, {"checkpoint_layers", "compile_layers"}),
        ({"compile_layers": False}, {"token_budget", "checkpoint_layers"}),
        ({"use_liger_kernel": True}, {"token_budget", "checkpoint_layers"}),
        ({"torch_compile": True}, {"token_budget", "checkpoint_layers"}),
        ({"token_budget": 8000, "checkpoint_layers": 9, "compile_layers": True}, set()),
    ],
)
def test_what_the_user_wrote_stays(written, kept):
    found = chosen(78, **written)
    assert set(found.settings) == kept
    _, args = configured(**{**written, **found.settings})  # which go together
    layers = {True: 32, False: 0}.get(written.get("gradient_checkpointing"), found.plan.checkpoint_layers)
    assert found.plan.checkpoint_layers == written.get("checkpoint_layers", layers)
    assert args.token_budget == written.get("token_budget", found.plan.token_budget)


@pytest.mark.parametrize(
    ("written", "layers"),
    [
        ({}, "compiled"),
        ({"compile_layers": False}, "eager"),
        ({"use_liger_kernel": True}, "Liger's"),
        ({"use_liger_kernel": True, "compile_layers": True}, "Liger's"),
        ({"torch_compile": True}, "as torch_compile makes them"),
    ],
)
def test_whose_layers_a_run_has(written, layers):
    assert layers_by(configured(**written)[1]) == layers
    assert f"layers {layers}" in chosen(78, **written).line


def test_a_written_token_budget_is_lowered_only_where_it_cannot_fit():
    assert "token_budget" not in chosen(24, token_budget=6000).settings
    found = chosen(19, token_budget=16000)
    assert found.settings["token_budget"] < 16000 and "because token_budget 16000 would not fit" in found.line


def test_a_written_token_budget_below_the_longest_row_is_left_for_the_error_that_names_the_row():
    assert "token_budget" not in chosen(78, token_budget=500).settings


def test_where_nothing_exact_fits_the_least_is_tried_and_the_way_out_named():
    found = chosen(12)
    assert found.plan.checkpoint_layers == 32 and found.plan.token_budget == max(LENGTHS)
    assert "load_in_4bit" not in found.settings and "--memory auto plans with weights in 4 bits" in found.line


@pytest.mark.parametrize("settings", [{"optim": "adafactor"}, {"use_lora": False, "freeze_vision_tower": False}])
def test_what_is_not_planned_for_checkpoints_every_layer_and_says_why(settings):
    found = chosen(78, **settings)
    assert found.settings.pop("compile_layers") and found.plan is None
    assert configured(**{**settings, **found.settings})[1].gradient_checkpointing
    assert "no memory plan, because" in found.line and next(iter(settings)) in {"optim", "use_lora"}
    assert set(chosen(78, checkpoint_layers=3, **settings).settings) == {"compile_layers"}


def test_sharded_runs_have_no_plan_and_eager_layers(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    found = chosen(78)
    assert configured(**found.settings)[1].gradient_checkpointing and "compile_layers" not in found.settings
    assert "FSDP and DeepSpeed shard what it counts" in found.line and "layers eager (they are sharded)" in found.line


def test_without_a_compiler_layers_run_as_they_are_and_the_reason_is_said():
    found = chosen(78, fault="no gcc")
    assert found.settings["compile_layers"] is False and "layers eager (torch.compile fails here: no gcc)" in found.line


def test_several_processes_keep_their_gradients_twice():
    assert "on each of 2 cards" in chosen(24, processes=2).line
    assert chosen(24, processes=2).plan.footprint.total <= 24 * GIB - 4 * 159_907_840


def test_a_run_that_goes_on_takes_what_its_checkpoint_chose_where_that_fits():
    other = {"token_budget": 5000, "checkpoint_layers": 11, "gradient_checkpointing": True, "layers": "eager"}
    found = chosen(60, recorded=other)
    assert found.settings == {"token_budget": 5000, "checkpoint_layers": 11, "compile_layers": False}
    assert "as in the checkpoint's run" in found.line
    too_large = {**other, "token_budget": 16000, "checkpoint_layers": 0}
    assert chosen(24, recorded=too_large).settings["checkpoint_layers"] > 0
    every = {**other, "checkpoint_layers": None}
    assert chosen(60, recorded=every).settings["checkpoint_layers"] == 32
    assert chosen(60, recorded=other, token_budget=7000).plan.token_budget == 7000


@pytest.mark.parametrize(
    "kind", ["llava", "bunny", "llava_next", "idefics3", "smolvlm", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
)
def test_every_family_has_a_plan(kind):
    shape = read_shape(getattr(tiny, kind)().config, Adaptation(rank=4, pattern=LANGUAGE_LINEAR))
    assert shape.layers and shape.trained and shape.tower_width


def test_mdpo_plan_says_what_mdpo_train_would_choose(capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    run, args = configured()
    _print_automatic(run, args, Memory(24 * GIB), LANGUAGE_LINEAR)
    assert capsys.readouterr().out.splitlines()[-1] == chosen(24).line


def test_a_plan_for_a_size_leaves_what_is_written(capsys):
    run, args = configured(optim="adamw_torch", gradient_checkpointing=True, token_budget=12000, compile_layers=False)
    settings = planned_settings(run, args, Memory(20 * GIB), LANGUAGE_LINEAR, cuda=True)
    assert set(settings) == {"load_in_4bit", "token_budget"} and settings["token_budget"] <= 12000


# A micro-batch has a floor: the host's time


SHORT = log_normal(prompt_tokens=60, response_tokens_median=10, response_tokens_max=20, image_tokens=50)


def planned(budget: int, examples=SHORT, **changes):
    constraints = Constraints(
        precision=Precision(weight_bytes=2, autocast=True),
        quantized=(False,),
        optimizers=("adamw_torch_fused",),
        token_budget=budget,
        examples_per_step=32,
        fixed_budget=True,
    )
    return choose(shape(64), examples, replace(constraints, **changes), 80 * GIB)


def test_micro_batches_too_small_for_a_gpu_cost_their_launches():
    tiny_ones, small, large = (planned(budget) for budget in (250, 500, 8000))
    assert tiny_ones.work > 1.5 * small.work > 1.5 * large.work, "half as many launches"
    assert planned(250, compiled=True).work < 0.7 * tiny_ones.work, "a compiled layer is launched sooner"
    assert planned(8000, compiled=True).work == large.work, "the floor is no addend: full micro-batches don't see it"
    on_a_cpu = {"precision": Precision(weight_bytes=2, autocast=True, cuda=False)}
    assert planned(250, **on_a_cpu).work < 0.5 * tiny_ones.work


# The machine


def test_free_memory_holds_the_context_already():
    assert memory_of("auto", lambda: 5 * GIB) == (5 * GIB, DRIVER_BYTES - CONTEXT_BYTES)
    assert memory_of("24GiB", lambda: 0) == (24 * GIB, DRIVER_BYTES)


def test_there_is_none_to_read_without_a_gpu():
    with pytest.raises(InputError, match="^there is no GPU here .* as in --memory 24GiB"):
        free_memory(torch.device("cpu"))


def test_segments_are_expandable_unless_the_user_has_set_the_allocator_up(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for given in ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, {"PYTORCH_CUDA_ALLOC_CONF": ""}):
        environment = dict(given)
        use_expandable_segments(environment)
        assert environment == given
    use_expandable_segments(environment := {})
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setattr(torch.version, "cuda", None)
    use_expandable_segments(environment := {})
    assert environment == {}
