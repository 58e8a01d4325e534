"""Fused LoRA layers in a run: on unless switched off, said in one line, and the same run to rounding."""

import logging
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo import MDPOTrainer
from mdpo.cli import main
from mdpo.config import MDPOConfig
from mdpo.data import read_rows
from mdpo.models import LANGUAGE_LINEAR, fuse_lora, load, load_processor
from mdpo.models.fused_lora import FusedLora
from mdpo.models.reference_cache import fingerprint
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=6)


def trainer(world, output_dir, *, model=None, peft_config: LoraConfig | None, **settings) -> MDPOTrainer:
    path, data = world
    defaults = {
        "learning_rate": 1e-3,
        "examples_per_step": 3,
        "token_budget": 200,
        "max_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    return MDPOTrainer(
        model=load(path) if model is None else model,
        args=MDPOConfig(output_dir=str(output_dir), **{**defaults, **settings}),
        train_dataset=read_rows(data),
        processing_class=load_processor(path),
        peft_config=peft_config,
    )


def config(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": LANGUAGE_LINEAR, **changes})


def fused(run: MDPOTrainer) -> int:
    return sum(isinstance(module, FusedLora) for module in run.model.modules())


def said(caplog) -> str:
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("LoRA: "))
    return line


def test_on_by_default_said_in_one_line_and_the_same_run(world, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    own = trainer(world, tmp_path / "own", peft_config=config())
    assert said(caplog) == f"LoRA: {fused(own)} of {fused(own)} layers fused" and fused(own) > 10
    caplog.clear()
    plain = trainer(world, tmp_path / "plain", peft_config=config(), fused_lora=False)
    assert re.match(r"LoRA: 0 of \d+ layers fused; .* made without mdpo.models.fuse_lora", said(caplog)) and not fused(
        plain
    )
    for run in (own, plain):
        run.train()
    theirs = dict(plain.model.named_parameters())
    for name, parameter in own.model.named_parameters():
        torch.testing.assert_close(
            parameter, theirs[name], rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"use_dora": True}, {}, "its adapter is more than A and B"),
        ({"lora_dropout": 0.1}, {"disable_dropout": False}, "it has dropout"),
        ({}, {"bf16": True}, "peft computes the adapter in another dtype than the base"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_peft_s_is_said_with_the_reason(world, tmp_path, caplog, changes, settings, reason):
    caplog.set_level(logging.INFO)
    run = trainer(world, tmp_path, peft_config=config(**changes), **settings)
    assert said(caplog).endswith(f": {reason})") and said(caplog).startswith(f"LoRA: 0 of {fused(run)} layers fused")


def test_a_model_with_an_adapter_and_a_config_with_modules_of_its_own_stay_as_they_are(world, tmp_path):
    model = get_peft_model(load(world[0]), config())
    assert not fused(trainer(world, tmp_path / "peft", model=model, peft_config=None))
    model = get_peft_model(load(world[0]), fuse_lora(config()))
    assert fused(trainer(world, tmp_path / "fused", model=model, peft_config=None))
    given = config()
    made = []
    given._register_custom_module({torch.nn.Linear: lambda *args, **kwargs: made.append(args)})
    assert not fused(trainer(world, tmp_path / "own", peft_config=given)) and made


def test_a_run_that_goes_on_from_an_adapter_is_fused_too(world, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path, data = world
    yaml = tmp_path / "run.yaml"
    yaml.write_text(
        f"model_name_or_path: {path}\ntrain_data: {data}\nmax_steps: 1\nexamples_per_step: 3\ntoken_budget: 200\n"
        "use_cpu: true\nreport_to: none\nlora_r: 4\n"
    )
    assert main(["train", str(yaml), "--output_dir", str(tmp_path / "first")]) == 0
    first = said(caplog)
    assert re.fullmatch(r"LoRA: (\d+) of \1 layers fused", first)
    caplog.clear()
    further = ["train", str(yaml), "--adapter_name_or_path", str(tmp_path / "first")]
    assert main([*further, "--output_dir", str(tmp_path / "second")]) == 0
    assert said(caplog) == first
    caplog.clear()
    assert main([*further, "--fused_lora", "false", "--output_dir", str(tmp_path / "third")]) == 0
    assert said(caplog).startswith("LoRA: 0 of")
    saved = Path(tmp_path / "second" / "adapter_config.json").read_text()
    assert "inference_mode" in saved and "custom" not in saved


def test_a_reference_with_an_adapter_is_another_one_where_its_layers_are_fused(world):
    from mdpo.models import establish_reference

    digests = []
    for make in (lambda given: given, fuse_lora):
        torch.manual_seed(0)
        model = get_peft_model(load(world[0]), make(config(init_lora_weights=False)))
        reference = establish_reference(model, "start", fresh=False, examples=list, whole=True)
        assert reference.adapter
        digests.append((fingerprint(model), fingerprint(model, reference=reference)))
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]
