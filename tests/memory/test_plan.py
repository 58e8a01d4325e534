"""mdpo plan: the parts add up, the plan fits and is the most exact that does, and a budget too small says by
how much.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mdpo import InputError
from mdpo.cli import main
from mdpo.config import build_config
from mdpo.memory import SHAPES, Adaptation, choose, footprint, log_normal, parse_size, read_shape, smallest
from mdpo.memory.choose import Constraints, setup_of, wished_optimizers
from mdpo.memory.constraints import counted, examples_of
from mdpo.memory.footprint import ADAM_BYTES, NF4_BYTES
from mdpo.memory.lengths import Data
from mdpo.memory.precision import Precision
from mdpo.memory.size import GIB
from mdpo.models import LANGUAGE_LINEAR
from tests import tiny, wide

LLAVA = read_shape(SHAPES["llava-1.5-7b"](), Adaptation(rank=64, pattern=LANGUAGE_LINEAR))
BUNNY = read_shape(SHAPES["bunny-v1.0-3b"](), Adaptation(rank=64, pattern=LANGUAGE_LINEAR))
CONSTRAINTS = Constraints(
    precision=Precision(weight_bytes=2, autocast=True),
    quantized=(False, True),
    optimizers=wished_optimizers("adamw_torch_fused"),
    token_budget=12288,
    examples_per_step=32,
)


def examples(shape, prompt_tokens: int):
    return log_normal(
        prompt_tokens=prompt_tokens,
        response_tokens_median=120,
        response_tokens_max=400,
        image_tokens=shape.image_tokens,
    )


def test_parameters_are_the_models():
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(SHAPES["llava-1.5-7b"]())
    assert LLAVA.language_linear + LLAVA.other == sum(p.numel() for p in model.parameters())
    assert LLAVA.trained == 32 * 64 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert LLAVA.language_linear == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert (LLAVA.image_tokens, BUNNY.image_tokens) == (576, 729)


def test_a_weight_in_4_bits_takes_what_bitsandbytes_says():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = torch.randn(1024, 1024)
    data, state = bitsandbytes.functional.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=True, blocksize=64
    )
    held = data.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held / weight.numel() == pytest.approx(NF4_BYTES, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_8bit"])
def test_an_optimizers_states_take_what_they_say(name):
    parameter = torch.nn.Parameter(torch.randn(512, 512))
    if name == "adamw_8bit":
        optimizer = pytest.importorskip("bitsandbytes").optim.AdamW8bit([parameter])
    else:
        optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = optimizer.state[parameter].values()
    held = sum(value.nbytes for value in states if torch.is_tensor(value))
    assert held / parameter.numel() == pytest.approx(ADAM_BYTES[name], rel=0.01)


@pytest.mark.parametrize(
    ("shape", "prompt_tokens", "quantized", "cap"),
    [(LLAVA, 650, False, 18.0), (LLAVA, 650, True, 8.0), (LLAVA, 650, True, 7.25), (BUNNY, 803, True, 5.25)],
    ids=["llava-bf16", "llava-nf4", "llava-8GB-card", "bunny-nf4"],
)
def test_the_caps_are_within_reach(shape, prompt_tokens, quantized, cap):
    """Computed; bench/scripts/memory_caps.py shows it on a GPU. Nothing paged."""
    constraints = replace(
        CONSTRAINTS, quantized=(quantized,), driver_bytes=0, optimizers=("adamw_torch_fused", "adamw_8bit")
    )
    plan = choose(shape, examples(shape, prompt_tokens), constraints, int(cap * GIB))
    assert plan is not None and plan.footprint.total <= cap * GIB


def test_exact_before_approximate_and_fewer_layers_with_more_memory():
    lengths = examples(LLAVA, 650)
    plans = {gib: choose(LLAVA, lengths, CONSTRAINTS, gib * GIB) for gib in (8, 18, 24, 32, 48, 80)}
    assert plans[8].quantized and not any(plans[gib].quantized for gib in (18, 24, 32, 48, 80))
    assert all(plans[gib].optimizer == "adamw_torch_fused" for gib in (24, 32, 48, 80))
    shares = [plans[gib].work / plans[gib].work_checkpointed for gib in (18, 24, 32, 48, 80)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(2 / 3), "nothing is recomputed"
    for gib, plan in plans.items():
        assert plan.footprint.total <= gib * GIB
        assert plan.token_budget >= lengths.longest


def test_within_24_gib_a_step_is_a_seventh_faster_than_with_every_layer_checkpointed():
    plan = choose(LLAVA, examples(LLAVA, 650), replace(CONSTRAINTS, driver_bytes=0), 24 * GIB)
    assert plan.work_checkpointed / plan.work >= 1.15


@pytest.mark.parametrize("gib", [10, 17, 24, 40])
def test_one_layer_fewer_would_not_fit(gib):
    lengths = examples(LLAVA, 650)
    plan = choose(LLAVA, lengths, CONSTRAINTS, gib * GIB)
    if plan.checkpoint_layers:
        setup = setup_of(
            lengths,
            CONSTRAINTS,
            quantized=plan.quantized,
            optimizer=plan.optimizer,
            checkpointed=plan.checkpoint_layers - 1,
            tokens=plan.token_budget,
        )
        assert footprint(LLAVA, setup).total > gib * GIB


def test_the_smallest_is_the_smallest_that_fits():
    lengths = examples(LLAVA, 650)
    least = smallest(LLAVA, lengths, CONSTRAINTS).footprint.total
    assert choose(LLAVA, lengths, CONSTRAINTS, int(least) + 1) is not None
    assert choose(LLAVA, lengths, CONSTRAINTS, int(least) - 1) is None


def test_lengths_of_a_log_normal():
    lengths = examples(LLAVA, 650)
    assert lengths.longest == 2 * (650 + 400) + 400
    assert 2 * 650 + 3 * 120 < sum(lengths.packed) / len(lengths.packed) < 2 * 650 + 3 * 160


@pytest.mark.parametrize(
    ("text", "count"), [("24GiB", 24 * GIB), ("7.25 gib", 7.25 * GIB), ("8GB", 8e9), ("512MiB", GIB / 2)]
)
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "24",
        "lots",
        "0GiB",
        "-1GiB",
        "24 GiB more",
        "",
        "0.000000001b",
        "0.9b",
        "9" * 400 + "gib",
        "1" + "0" * 30 + "GiB",
        "1\nb\n2",
    ],
)
def test_bad_sizes(text):
    with pytest.raises(InputError, match="24GiB"):
        parse_size(text)


def write(path: Path, **values) -> Path:
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return path


ELSEWHERE = {
    "model_name_or_path": "nowhere",
    "train_data": "nowhere.json",
    "output_dir": "out",
    "dtype": "bfloat16",
    "bf16": "true",
    "plan_model_shape": "llava-1.5-7b",
    "plan_prompt_tokens": 650,
    "plan_response_tokens_median": 120,
    "plan_response_tokens_max": 400,
}


def test_plan_from_the_yaml_alone(tmp_path, capsys):
    assert main(["plan", str(write(tmp_path / "c.yaml", **ELSEWHERE)), "--memory", "24GiB"]) == 0
    text = capsys.readouterr().out
    for part in ("language weights", "gradients", "optimizer", "boundaries", "workspace", "allocator slack", "4-bit"):
        assert part in text
    assert "plan: --load_in_4bit false --optim adamw_torch_fused --checkpoint_layers" in text


@pytest.mark.parametrize(
    ("changes", "memory", "message"),
    [
        ({}, "6GiB", r"nothing fits in 6.00 GiB: the smallest needs 7"),
        ({"plan_model_shape": "gpt"}, "24GiB", "plan_model_shape: 'gpt' is unknown"),
        ({"plan_model_shape": "null"}, "24GiB", "set plan_model_shape to one of"),
        ({"plan_prompt_tokens": "null"}, "24GiB", "set plan_prompt_tokens"),
        ({"max_length": 600}, "24GiB", "max_length leaves room"),
        ({"optim": "sgd"}, "24GiB", "'sgd'"),
        ({"dtype": "float7"}, "24GiB", "'float7' is unknown"),
        ({"lora_target_modules": "nothing"}, "24GiB", "matches no linear layer"),
        ({}, "24", "expected a size of at least a byte with its unit"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, changes, memory, message):
    import re

    path = write(tmp_path / "c.yaml", **{**ELSEWHERE, **changes})
    assert main(["plan", str(path), "--memory", memory]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error)
    if memory == "6GiB":
        assert "max_length" in error and "lora_r 32" in error


def test_train_takes_the_plan(tmp_path, capsys):
    """The tiny model and its data are here: the plan comes from both, and the run from the plan."""
    import json

    model, data = tiny.world(tmp_path, count=6)
    wide.model("llava-llama").save_pretrained(model)
    path = write(
        tmp_path / "c.yaml",
        model_name_or_path=model,
        train_data=data,
        output_dir=tmp_path / "out",
        use_cpu="true",
        examples_per_step=3,
        num_train_epochs=1,
        max_steps=1,
        lora_r=4,
        report_to="none",
        save_strategy="steps",
        save_steps=1,
    )
    assert main(["train", str(path), "--memory", "2GiB"]) == 0
    assert "plan: --load_in_4bit" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "mdpo_run.json").read_text())["run"]["train_data"] == str(data)
    assert main(["train", str(path), "--memory", "768MiB"]) == 2
    assert "nothing fits in 0.75 GiB" in capsys.readouterr().err


def test_an_adapter_that_is_its_own_reference_is_there_twice():
    kept = read_shape(SHAPES["llava-1.5-7b"](), Adaptation(rank=64, pattern=LANGUAGE_LINEAR, is_reference=True))
    assert (LLAVA.kept, kept.kept) == (0, LLAVA.trained)
    setup = setup_of(
        examples(LLAVA, 650), CONSTRAINTS, quantized=False, optimizer="adamw_torch_fused", checkpointed=32, tokens=12288
    )
    more = footprint(kept, setup).allocated - footprint(LLAVA, setup).allocated
    assert more == 4 * LLAVA.trained


@pytest.mark.parametrize(
    ("objective", "prompts", "responses", "images"),
    [
        ("dpo", 650, 2, 1),
        ("mdpo", 2 * 650, 3, 2),
        ("symmpo", 2 * 650, 5, 2),
        ("misp", 4 * 650, 5, 4),
        ("svco", 2 * 650 + 74, 6, 2),
    ],
)
def test_lengths_and_images_follow_the_objectives_branches(objective, prompts, responses, images):
    """74 tokens are a prompt without its 576 of the image."""
    run, args = build_config({**ELSEWHERE, "bf16": True, "use_cpu": True, "objective": objective}, source="c.yaml")
    _, found = examples_of(run, args, LLAVA)
    assert found.longest == prompts + responses * 400 and found.images == images
    assert min(found.packed) > prompts and found.packed[0] < found.longest
    assert counted(args, LLAVA, Data([5000]))[1].images == images


def test_without_images_none_are_counted():
    settings = {**ELSEWHERE, "bf16": True, "use_cpu": True, "objective": "dpo", "drop_images": True}
    assert examples_of(*build_config(settings, source="c.yaml"), LLAVA)[1].images == 0
