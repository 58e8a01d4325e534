"""Settings of our own: those that contradict each other, those that do nothing, none, and values that Python gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from mdpo import MDPOConfig
from mdpo.config import RunConfig, build_config, load_config, parse_overrides
from mdpo.errors import InputError
from mdpo.settings import ADAPTER, OBJECTIVE, idle_settings
from mdpo.trainer.arguments import check_run

REQUIRED = {"model_name_or_path": "m", "train_data": "d", "use_cpu": True}


def build(tmp_path: Path, **settings) -> tuple[RunConfig, MDPOConfig]:
    return build_config({**REQUIRED, "output_dir": str(tmp_path), **settings}, source="run.yaml")


def config(tmp_path: Path, **settings) -> MDPOConfig:
    return MDPOConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_vision_tower": False}, "freeze_vision_tower: false, but LoRA .* the vision tower would not train"),
        ({"freeze_multi_modal_projector": False}, "freeze_multi_modal_projector: .* the projector would not train"),
        ({"drop_images": True}, "drop_images: .* set --conditional false"),
        ({"drop_images": True, "conditional": True}, "drop_images: .* set --conditional false"),
        (
            {"drop_images": True, "conditional": False, "anchors": ["chosen", "image_rejected"]},
            "drop_images: .* take image_rejected out of anchors",
        ),
        ({"anchors": [], "anchor": 0.5}, "anchor: 0.5, but anchors is empty"),
        (
            {"objective": "svco", "drop_images": True},
            r"drop_images: the objective compares images \(chosen@none, image_rej",
        ),
        ({"objective": "dpo", "conditional": True}, "conditional: a parameter of objective mdpo, and objective is dpo"),
        ({"cache_reference": False, "reference_cache_dir": "cache"}, "reference_cache_dir: cache_reference is false"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        build(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_lora": False, "freeze_vision_tower": False, "freeze_multi_modal_projector": False},
        {"freeze_vision_tower": True, "lora_r": 8},
        {"drop_images": True, "conditional": False, "anchors": ["chosen", "rejected"]},
        {"anchors": [], "anchor": 0.0},
        {"reference_cache_dir": "cache", "negative": "random_image"},
        {"negative_per_epoch": True, "cache_reference": False},
        {"conditional": False, "anchors": ["image_rejected"], "negative": "random_image", "negative_per_epoch": True},
        {"conditional": False, "negative_per_epoch": False},
        {"objective": "misp", "negative": "random_image", "negative_per_epoch": True},
        {"objective": "dpo", "drop_images": True},
        {"objective": [{"name": "sft", "rows": {"chosen": 1}, "link": "linear"}]},
    ],
)
def test_settings_that_go_together_say_nothing(tmp_path, settings):
    run, args = build(tmp_path, **settings)
    assert idle_settings(run, ADAPTER) + idle_settings(args, OBJECTIVE) == []


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"use_lora": False, "lora_r": 64, "lora_alpha": 8}, ["lora_r", "lora_alpha"]),
        (
            {"use_lora": False, "lora_dropout": 0.1, "lora_target_modules": "q_proj"},
            ["lora_dropout", "lora_target_modules"],
        ),
        ({"conditional": False, "negative": "crop_0_20"}, ["negative"]),
        ({"conditional": False, "negative_per_epoch": True}, ["negative_per_epoch"]),
        ({"objective": "dpo", "negative": "crop_0_20"}, ["negative"]),
        ({"objective": "mpo", "negative_per_epoch": True}, ["negative_per_epoch"]),
        ({"objective": [{"name": "a", "rows": {"chosen": 1, "chosen@none": -1}}], "negative": "black"}, ["negative"]),
        ({"negative_per_epoch": True, "cache_reference": True}, ["cache_reference"]),
        ({"negative_per_epoch": True, "reference_cache_dir": "cache"}, ["reference_cache_dir"]),
    ],
)
def test_a_setting_that_does_nothing_is_named_where_it_was_given(tmp_path, settings, idle):
    run, args = build(tmp_path, **settings)
    lines = idle_settings(run, ADAPTER) + idle_settings(args, OBJECTIVE)
    assert [line.partition(": no effect, ")[0] for line in lines] == idle


def test_from_python_a_default_was_not_given(tmp_path):
    assert idle_settings(config(tmp_path, conditional=False, negative="crop_0_20"), OBJECTIVE) == []
    assert len(idle_settings(config(tmp_path, conditional=False, negative="random_image"), OBJECTIVE)) == 1


@pytest.mark.parametrize("word", ["none", "None", "null", "'none'", "~"])
@pytest.mark.parametrize(
    "name",
    [
        "system_prompt",
        "chat_template",
        "reference_cache_dir",
        "eval_data",
        "image_dir",
        "adapter_name_or_path",
        "lora_target_modules",
        "resume_from_checkpoint",
        "plan_model_shape",
        "max_length",
    ],
)
def test_none_is_none_as_the_help_prints_it(tmp_path, name, word):
    path = tmp_path / "run.yaml"
    required = f"model_name_or_path: m\ntrain_data: d\nuse_cpu: true\noutput_dir: {tmp_path}\n"
    path.write_text(f"{required}{name}: {word}\n")
    run, args = load_config(path)
    assert {**vars(args), **vars(run)}[name] is None
    if word in ("none", "null"):
        path.write_text(required)
        run, args = load_config(path, parse_overrides([f"--{name}", word]))
        assert {**vars(args), **vars(run)}[name] is None


def test_none_stays_a_word_where_transformers_knows_it(tmp_path):
    assert build(tmp_path, report_to="none")[1].report_to == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("system_prompt", 3, "system_prompt is 3; expected text or none"),
        ("max_steps", "x", "max_steps is 'x'; expected a whole number"),
        ("max_steps", [2], r"max_steps is \[2\]; expected a whole number"),
        ("learning_rate", "fast", "learning_rate is 'fast'; expected a number"),
        ("beta", True, "beta is True; expected a number"),
        ("examples_per_step", 2.5, "examples_per_step is 2.5; expected a whole number"),
        ("ignore_columns", {"a": 1}, "ignore_columns is {'a': 1}; expected a list of words"),
        ("anchors", "chosn", "anchors: 'chosn' is not a branch"),
        ("weight_decay", {}, "weight_decay is {}; expected a number"),
        ("optim_args", 3, "optim_args is 3; expected text or none"),
    ],
)
def test_a_value_of_another_type_from_python_is_named(tmp_path, name, value, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("max_steps", "2", 2),
        ("learning_rate", "1e-3", 1e-3),
        ("ignore_columns", "abc", ["abc"]),
        ("anchors", "chosen", ["chosen"]),
        ("anchors", ("chosen", "rejected"), ["chosen", "rejected"]),
        ("beta", np.float32(0.5), 0.5),
        ("seed", np.int64(3), 3),
        ("reference_cache_dir", Path("cache"), "cache"),
        ("system_prompt", "none", None),
        ("beta", 1, 1),
    ],
)
def test_a_value_from_python_that_can_be_meant_is_taken(tmp_path, name, value, taken):
    found = getattr(config(tmp_path, **{name: value}), name)
    assert found == taken and type(found) is type(taken)


def test_an_empty_value_is_called_empty(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: m\ntrain_data: d\nanchors:\n")
    with pytest.raises(InputError, match="anchors is empty; expected a list of words$"):
        load_config(path)
    for name in ("anchors", "beta", "max_steps", "max_length", "compile_layers", "conditional"):
        with pytest.raises(InputError, match=f"{name} is empty; expected .*$"):
            build_config({**REQUIRED, **parse_overrides([f"--{name}="])}, source="run.yaml")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "load_best_model_at_end"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type"),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, "save_strategy"),
        ({"eval_steps": 3}, "eval_steps"),
        ({"eval_strategy": "epoch"}, "eval_strategy"),
    ],
)
def test_the_setting_that_asks_for_an_evaluation_is_the_one_that_was_given(tmp_path, settings, name):
    with pytest.raises(InputError, match=f"^{name}: no rows to evaluate on.* leave {name} out$"):
        check_run(config(tmp_path, **settings), ())


@pytest.mark.parametrize(("given", "device"), [("cpu:1", "cpu"), ("cpu", "cpu"), ("cuda:1", "cuda:1")])
def test_a_cpu_has_no_number(given, device, monkeypatch, tmp_path):
    """accelerate gives each process's CPU one, and PyTorch loads nothing onto it."""
    monkeypatch.setattr(TrainingArguments, "device", property(lambda self: torch.device(given)))
    assert config(tmp_path).device == torch.device(device)
