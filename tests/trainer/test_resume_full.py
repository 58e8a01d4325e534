"""Full fine-tuning goes on from a checkpoint with the checkpoint's weights, in every family, and ends with the best."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from mdpo import InputError, MDPOConfig, MDPOTrainer, TrainingError, cli
from tests import tiny
from tests.trainer.resigned import resign
from tests.trainer.runs import ROWS, lora, trainer

pytestmark = pytest.mark.slow

FAMILIES = {
    "llava": tiny.llava,
    "bunny": tiny.bunny,
    "llava_next": tiny.llava_next,
    "qwen2_vl": tiny.qwen2_vl,
    "qwen2_5_vl": tiny.qwen2_5_vl,
    "qwen3_vl": tiny.qwen3_vl,
    "idefics3": tiny.idefics3,
    "smolvlm": tiny.smolvlm,
    "internvl": tiny.internvl,
}


def full(model, output, **settings) -> MDPOTrainer:
    defaults = {
        "learning_rate": 1e-2,
        "examples_per_step": 2,
        "num_train_epochs": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "conditional": False,
        "anchors": [],
    }
    args = MDPOConfig(output_dir=str(output), **{**defaults, **settings})
    return MDPOTrainer(model, args, ROWS, ROWS[:2], processing_class=tiny.processor())


def frozen_tower(model):
    for name, parameter in model.named_parameters():
        if any(part in name for part in (".vision_tower.", ".visual.", ".vision_model.")):
            parameter.requires_grad_(False)
    return model


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def shard(folder: Path) -> None:
    """The checkpoint's weights in several files with an index, as large models are saved."""
    model = tiny.llava()
    model.load_state_dict(type(model).from_pretrained(folder).state_dict())
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_fine_tuning_resumes_to_the_same_weights(family, tmp_path):
    base = FAMILIES[family]().state_dict()
    whole = full(frozen_tower(FAMILIES[family]()), tmp_path)
    whole.train()
    assert not torch.equal(*(state["lm_head.weight"] for state in (whole.model.state_dict(), base))), "nothing trained"
    resumed = full(frozen_tower(FAMILIES[family]()), tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    assert_same(resumed.policy.reference.frozen.state_dict(), base)


def test_with_images_a_trained_tower_and_a_fresh_negative_in_every_epoch(tmp_path):
    world = tiny.world(tmp_path / "world", count=6)
    settings = {"peft": False, "negative_per_epoch": True, "save_steps": 1}

    whole = trainer(world, tmp_path / "out", **settings)
    whole.train()
    resumed = trainer(world, tmp_path / "out", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert_same(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("changed", [shard, lambda folder: None], ids=["sharded", "whole"])
def test_sharded_weights_and_bf16_ones(changed, tmp_path):
    def model():
        return tiny.llava().to(torch.bfloat16)

    whole = full(model(), tmp_path)
    whole.train()
    changed(tmp_path / "checkpoint-2")
    resign(tmp_path / "checkpoint-2")
    resumed = full(model(), tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed.model.state_dict(), whole.model.state_dict())


def test_weights_of_two_dtypes(tmp_path):
    def model():
        mixed = tiny.llava().to(torch.bfloat16)
        mixed.lm_head.float()
        return mixed

    saved = full(model(), tmp_path)
    saved.save_model(str(tmp_path / "saved"))
    with torch.no_grad():
        expected = {name: tensor.clone() for name, tensor in saved.model.state_dict().items()}
        for parameter in saved.model.parameters():
            parameter.zero_()
    saved._load_from_checkpoint(str(tmp_path / "saved"))
    assert_same(saved.model.state_dict(), expected)


def drop(folder: Path, pattern: str) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if pattern in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def add(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def other_tower(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "vision_tower" in name and "q_proj.weight" in name)
    weights[name] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: drop(folder, "layers.1.mlp.up_proj"), r"lacks 1 .*layers\.1\.mlp\.up_proj\.weight"),
        (lambda folder: add(folder, "language_model.model.layers.9.up.weight"), r"does not read: .*layers\.9\.up"),
        (other_tower, r"vision_tower.*q_proj.* does not train, is not what it is in the base"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
            "damaged or was not copied",
        ),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda folder: cut(folder / "optimizer.pt"), "optimizer.pt was not written completely"),
        (lambda folder: cut(folder / "scheduler.pt"), "scheduler.pt was not written completely"),
        (lambda folder: cut(folder / "rng_state.pth"), "rng_state.pth was not written completely"),
        (
            lambda folder: [(folder / name).unlink() for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")],
            "saved with save_only_model",
        ),
    ],
)
def test_what_a_checkpoint_lacks_is_named(full_run, tmp_path, damage, message):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(full_run / "checkpoint-2", folder)
    damage(folder)
    resign(folder)
    with pytest.raises(InputError, match=message):
        full(frozen_tower(tiny.llava()), tmp_path).train(resume_from_checkpoint=str(folder))


@pytest.fixture(scope="module")
def full_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    full(frozen_tower(tiny.llava()), folder).train()
    return folder


def test_a_checkpoint_of_weights_alone_is_no_place_to_resume_from(tmp_path):
    full(tiny.llava(), tmp_path, save_only_model=True).train()
    with pytest.raises(InputError, match="save_only_model.*start a new run from its weights"):
        full(tiny.llava(), tmp_path, save_only_model=True).train(resume_from_checkpoint=True)


def test_an_adapter_that_lacks_a_tensor_is_named(tmp_path):
    world = tiny.world(tmp_path / "world", count=4)
    trainer(world, tmp_path / "out", save_steps=1, max_steps=1).train()
    path = tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({key: tensor for key, tensor in weights.items() if key != name}, path, {"format": "pt"})
    resign(path.parent)
    with pytest.raises(InputError, match=f"lacks 1 tensors: {name}"):
        trainer(world, tmp_path / "out", max_steps=1).train(resume_from_checkpoint=True)
    save_file({**weights, name: torch.zeros(1, 3)}, path, {"format": "pt"})
    resign(path.parent)
    with pytest.raises(InputError, match=r"has the shape \(1, 3\) instead of"):
        trainer(world, tmp_path / "out", max_steps=1).train(resume_from_checkpoint=True)


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "load_best_model_at_end": True,
    "num_train_epochs": 3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "metric_for_best_model": "rewards/margins",
    "greater_is_better": False,  # so that the best is not the last
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm", "internvl"])
def test_the_best_model_is_what_a_full_fine_tuning_leaves(family, tmp_path):
    run = full(FAMILIES[family](), tmp_path, **BEST)
    run.train()
    run.save_model()
    best = Path(run.state.best_model_checkpoint)
    assert best.name != f"checkpoint-{run.state.global_step}", "the best is the last: nothing to tell apart"
    assert_same(load_file(tmp_path / "model.safetensors"), load_file(best / "model.safetensors"))
    last = load_file(tmp_path / f"checkpoint-{run.state.global_step}" / "model.safetensors")
    assert any(not torch.equal(tensor, last[name]) for name, tensor in load_file(best / "model.safetensors").items())
    history = [entry["eval_rewards/margins"] for entry in run.state.log_history if "eval_rewards/margins" in entry]
    assert run.evaluate()["eval_rewards/margins"] == pytest.approx(min(history), abs=1e-6)


@pytest.mark.parametrize("name", ["default", "policy"])
def test_the_best_model_is_what_a_lora_run_leaves(tmp_path, name):
    def start():
        model = get_peft_model(tiny.llava(), lora(), adapter_name=name)
        for key, parameter in model.named_parameters():  # LoRA starts from random numbers
            if "lora_A" in key:
                torch.nn.init.constant_(parameter, 0.01)
        return full(model, tmp_path, **BEST)

    run = start()
    run.train()
    run.save_model()
    best = Path(run.state.best_model_checkpoint)
    assert best.name != f"checkpoint-{run.state.global_step}"
    file = Path("" if name == "default" else name, "adapter_model.safetensors")
    assert_same(load_file(tmp_path / file), load_file(best / file))
    last = load_file(tmp_path / f"checkpoint-{run.state.global_step}" / file)
    assert any(not torch.equal(tensor, last[key]) for key, tensor in load_file(best / file).items())
    resumed = start()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed.model.state_dict(), run.model.state_dict())


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path):
    full(tiny.llava(), tmp_path, **BEST).train()
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    shutil.rmtree(state["best_model_checkpoint"])
    with pytest.raises(InputError, match=r"best checkpoint so far, checkpoint-\d, which is not there any more"):
        full(tiny.llava(), tmp_path, **BEST).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize(("signed", "reason"), [(True, "lacks 1"), (False, "model.safetensors has")])
def test_a_best_checkpoint_that_is_damaged_does_not_lose_the_run(tmp_path, signed, reason):
    run = full(tiny.llava(), tmp_path, **BEST)
    load = run._load_best_model

    def damaged():
        drop(Path(run.state.best_model_checkpoint), "layers.1.mlp.up_proj")
        if signed:
            resign(Path(run.state.best_model_checkpoint))
        load()

    run._load_best_model = damaged
    with pytest.raises(
        TrainingError, match=f"best checkpoint cannot be loaded: .*{reason}.*last weights are in .*checkpoint-6"
    ):
        run.train()


@pytest.mark.parametrize(
    ("first", "then", "difference"),
    [
        ({}, {"model_name_or_path": "other"}, "weights of the reference"),
        ({"use_lora": True}, {"use_lora": True, "model_name_or_path": "other"}, "weights of the reference"),
        ({}, {"freeze_vision_tower": False}, "trained parameters"),
        ({"freeze_vision_tower": False}, {}, "trained parameters"),
        ({"use_lora": True}, {"use_lora": True, "disable_dropout": False}, "disable_dropout"),
        ({}, {"system_prompt": "Be brief."}, "system_prompt, chat_template"),
        ({"use_lora": True}, {}, "trained parameters"),
    ],
)
def test_a_run_does_not_go_on_as_another(tmp_path, capsys, first, then, difference):
    model, data = tiny.world(tmp_path / "world", 6)
    tiny.llava(seed=5).save_pretrained(tmp_path / "other")
    tiny.processor().save_pretrained(tmp_path / "other")

    def train(**settings) -> int:
        values = {
            "model_name_or_path": str(model),
            "train_data": str(data),
            "output_dir": str(tmp_path / "out"),
            "examples_per_step": 3,
            "max_steps": 2,
            "save_steps": 1,
            "use_cpu": True,
            "use_lora": False,
            "report_to": "none",
            "disable_tqdm": True,
            **settings,
        }
        if values["model_name_or_path"] == "other":
            values["model_name_or_path"] = str(tmp_path / "other")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        return cli.main(["train", str(tmp_path / "config.yaml")])

    assert train(**first) == 0
    capsys.readouterr()
    assert train(**then, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cannot resume from") and re.search(difference, error)
