"""What a run does before its first step: dropout off, a reference that is said, a check that can refuse."""

import json
import logging
import math
import shutil

import pytest
import torch
import transformers
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from mdpo import InputError, MDPOConfig, MDPOTrainer
from mdpo.cli import main
from mdpo.data import read_rows
from mdpo.models import load, load_processor
from mdpo.models.adapters import load_adapter
from mdpo.models.base_digest import weights_digest
from tests import tiny
from tests.models.adapters import LANGUAGE, nudge

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=8)


@pytest.fixture(scope="module")
def sft(world, tmp_path_factory):
    """A trained adapter, as supervised fine-tuning leaves it."""
    folder = tmp_path_factory.mktemp("sft") / "adapter"
    model = get_peft_model(load(world[0]), LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE))
    nudge(model, 0.2)
    model.save_pretrained(folder)
    return folder


def run(model, world, output_dir, *, peft_config=None, **settings) -> MDPOTrainer:
    defaults = {
        "learning_rate": 1e-2,
        "examples_per_step": 4,
        "token_budget": 2000,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    return MDPOTrainer(
        model=model,
        args=MDPOConfig(output_dir=str(output_dir), **{**defaults, **settings}),
        train_dataset=read_rows(world[1]),
        processing_class=load_processor(world[0]),
        peft_config=peft_config,
    )


def lora(**options) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE, **options})


def first(trained: MDPOTrainer) -> dict:
    return trained.state.log_history[0]


@pytest.mark.parametrize(
    "where", ["phi resid_pdrop", "phi embd_pdrop", "llama attention_dropout", "clip attention_dropout", "lora"]
)
@pytest.mark.parametrize("peft", [True, False], ids=["lora", "full"])
def test_no_dropout_is_left_in_the_policy(world, tmp_path, caplog, where, peft):
    family, _, name = where.partition(" ")
    config = tiny.llava("phi" if family == "phi" else "llama").config
    if name:
        setattr(config.vision_config if family == "clip" else config.text_config, name, 0.5)
    model = tiny._build(transformers.LlavaForConditionalGeneration, config, 0).train()
    dropout = {"lora_dropout": 0.5} if where == "lora" else {}
    trained = run(
        model, world, tmp_path, peft_config=lora(**dropout) if peft else None, max_steps=2, learning_rate=1e-9
    )
    trained.train()
    assert [entry["loss"] for entry in trained.state.log_history[:2]] == pytest.approx([3 * math.log(2)] * 2, abs=1e-5)
    if peft or where != "lora":
        assert "disable_dropout: off while preferences are trained" in caplog.text and "=0.5" in caplog.text
        assert getattr(config.text_config, name, 0.5) == 0.5 or family == "clip", "the config is saved as it was"


def test_dropout_that_stays_on_by_wish(world, tmp_path):
    trained = run(load(world[0]), world, tmp_path, peft_config=lora(lora_dropout=0.5), disable_dropout=False)
    trained.train()
    assert first(trained)["loss"] == pytest.approx(3 * math.log(2), abs=1e-5), "a fresh adapter adds nothing either way"
    config = tiny.llava().config
    config.text_config.attention_dropout = 0.1
    model = tiny._build(transformers.LlavaForConditionalGeneration, config, 0)
    with pytest.raises(InputError, match="disable_dropout is false, .*attention_dropout=0.1"):
        run(model, world, tmp_path, peft_config=lora(), disable_dropout=False)


def test_an_sft_adapter_is_start_and_reference(world, sft, tmp_path, caplog):
    model = PeftModel.from_pretrained(load(world[0]), sft, is_trainable=True)
    with caplog.at_level(logging.INFO, "mdpo"):
        trained = run(model, world, tmp_path)
        trained.train()
    assert first(trained)["loss"] == pytest.approx(3 * math.log(2), abs=1e-5)
    assert first(trained)["rewards/chosen"] == pytest.approx(0, abs=1e-6)
    assert trained.state.log_history[2]["rewards/chosen"] != 0
    assert "reference   the adapter as it starts, frozen" in caplog.text
    lines = [record.message for record in caplog.records if record.message.startswith("start check:")]
    assert len(lines) == 1 and "policy and reference by 0.0e+00" in lines[0]


def test_the_base_is_the_reference_of_an_sft_adapter_where_asked_for(world, sft, tmp_path, caplog):
    model = PeftModel.from_pretrained(load(world[0]), sft, is_trainable=True)
    with caplog.at_level(logging.INFO, "mdpo"):
        trained = run(model, world, tmp_path, reference="base")
        trained.train()
    assert first(trained)["loss"] != pytest.approx(3 * math.log(2), abs=1e-3)
    assert "reference   the model with its adapter off" in caplog.text


@pytest.mark.parametrize("options", [{"bias": "all"}, {"init_lora_weights": "pissa"}, {"use_dora": True}], ids=str)
def test_the_reference_stands_still_while_everything_trains(world, tmp_path, options):
    """Held to the loss of a run whose reference was computed once, before training, and kept on disk."""
    history = []
    for cached in (True, False):
        model = tiny.llava("qwen2")
        trained = run(
            model, world, tmp_path / str(cached), peft_config=lora(**options), cache_reference=cached, max_steps=6
        )
        trained.train()
        history.append([entry["loss"] for entry in trained.state.log_history if "loss" in entry])
    assert history[0] == pytest.approx(history[1], abs=1e-5)
    assert history[0][0] == pytest.approx(3 * math.log(2), abs=1e-5)


def test_a_cache_of_wrong_numbers_is_refused(world, tmp_path):
    run(load(world[0]), world, tmp_path / "a", peft_config=lora(), reference_cache_dir=str(tmp_path / "cache")).train()
    (path,) = (tmp_path / "cache").iterdir()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "logp": r["logp"] + 1}) + "\n" for r in records))
    poisoned = run(
        load(world[0]), world, tmp_path / "b", peft_config=lora(), reference_cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(InputError, match="policy and reference differ before the first step"):
        poisoned.train()
    unchecked = run(
        load(world[0]),
        world,
        tmp_path / "c",
        peft_config=lora(),
        reference_cache_dir=str(tmp_path / "cache"),
        check_start=False,
    )
    unchecked.train()


def test_the_cache_says_what_it_found(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mdpo"):
        for _ in range(2):
            run(load(world[0]), world, tmp_path, peft_config=lora(), max_steps=2).train()
    lines = [record.message for record in caplog.records if record.message.startswith("reference cache")]
    assert [line.split(": ")[-1] for line in lines] == [
        "0 branches found, 24 computed",
        "24 branches found, 0 computed",
    ]


def test_another_reference_does_not_find_the_numbers_of_the_first(world, sft, tmp_path):
    cache = str(tmp_path / "cache")
    for name, peft_config, model in (
        ("base", lora(), load(world[0])),
        ("sft", None, PeftModel.from_pretrained(load(world[0]), sft, is_trainable=True)),
    ):
        trained = run(model, world, tmp_path / name, peft_config=peft_config, reference_cache_dir=cache, max_steps=2)
        assert len(trained._cache) == 0
        trained.train()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def settings(world, output_dir) -> dict:
    return {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(output_dir),
        "examples_per_step": 4,
        "token_budget": 2000,
        "max_steps": 2,
        "use_cpu": True,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "warmup_steps": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


@pytest.fixture
def config(world, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(world, tmp_path / "out")))
    return path


def test_the_command_line_goes_on_from_an_adapter(world, sft, config, tmp_path, capsys, caplog):
    with caplog.at_level(logging.INFO, "mdpo"):
        assert main(["train", str(config), "--adapter_name_or_path", str(sft)]) == 0
    assert "reference   the adapter as it starts" in caplog.text
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["loss"] == pytest.approx(3 * math.log(2), abs=1e-5)
    trained, before = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", sft))
    assert trained.keys() == before.keys() and any(not torch.equal(trained[name], before[name]) for name in before)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The folder of a run that `mdpo train` finished."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(world, folder / "out")))
    assert main(["train", str(folder / "config.yaml")]) == 0
    return folder / "out"


def other_model(kind: str, folder):
    model = {
        "other weights": lambda: tiny.llava(seed=5),
        "another family": tiny.bunny,
        "another width": lambda: tiny.llava("llama-gqa"),
    }
    model[kind]().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["other weights", "another family", "another width"])
@pytest.mark.parametrize("command", ["score", "generate", "merge", "train"])
def test_an_adapter_is_refused_on_another_base(world, config, finished, tmp_path, capsys, kind, command):
    shutil.copytree(finished, tmp_path / "out")
    adapter, base = str(tmp_path / "out"), str(other_model(kind, tmp_path / "other"))
    data, output = str(world[1]), str(tmp_path / "output.jsonl")
    capsys.readouterr()
    arguments = {
        "score": ["score", base, data, "--adapter", adapter, "--output", output],
        "generate": ["generate", base, data, "--adapter", adapter, "--output", output],
        "merge": ["merge", adapter, str(tmp_path / "merged"), "--base", base],
        "train": [
            "train",
            str(config),
            "--adapter_name_or_path",
            adapter,
            "--model_name_or_path",
            base,
            "--output_dir",
            str(tmp_path / "again"),
        ],
    }[command]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: adapter ") and "give it its own base" in error
    # An adapter from elsewhere has no record of its base; what does not fit is found all the same.
    (tmp_path / "out" / "mdpo_run.json").unlink()
    if kind != "other weights":
        assert main(arguments) == 2
        assert "adapter " in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_digest_of_a_base_outlives_sharding_dtype_and_names(tmp_path):
    model = tiny.llava()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    tiny.llava().bfloat16().save_pretrained(tmp_path / "bf16")
    tiny.llava(seed=1).save_pretrained(tmp_path / "other")
    digests = {name: weights_digest(tmp_path / name) for name in ("whole", "sharded", "bf16", "other")}
    assert digests["whole"] == digests["sharded"] == digests["bf16"] != digests["other"]
    assert weights_digest(tmp_path) is None
    (tmp_path / "whole" / "model.safetensors").write_bytes(b"\x10" * 30)
    with pytest.raises(InputError, match="model.safetensors is damaged"):
        weights_digest(tmp_path / "whole")


def test_a_damaged_adapter_is_one_line(world, sft, tmp_path):
    for name, content, message in (
        ("adapter_config.json", b"{", "adapter_config.json is damaged"),
        ("adapter_model.safetensors", b"\x10" * 40, "is damaged or was not copied completely"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for path in sft.iterdir():
            (folder / path.name).write_bytes(content if path.name == name else path.read_bytes())
        with pytest.raises(InputError, match=message):
            load_adapter(load(world[0]), folder)


def test_scores_of_an_adapter_that_changes_the_base_are_against_the_base(world, tmp_path, capsys):
    """With PiSSA, the model without its adapter is a residual, not the base."""
    model = get_peft_model(load(world[0]), lora(init_lora_weights="pissa"))
    nudge(model, 0.05)
    model.save_pretrained(tmp_path / "pissa")
    outputs = []
    for name, adapter in (("base", []), ("pissa", ["--adapter", str(tmp_path / "pissa")])):
        outputs.append(tmp_path / f"{name}.jsonl")
        assert main(["score", *map(str, world), *adapter, "--output", str(outputs[-1])]) == 0
    base, scored = ([json.loads(line) for line in path.read_text().splitlines()] for path in outputs)
    for one, other in zip(base, scored, strict=True):
        assert other["reference_logps"] == pytest.approx(one["policy_logps"], abs=1e-4)
        assert other["policy_logps"]["chosen"] != pytest.approx(one["policy_logps"]["chosen"], abs=1e-3)


def test_an_adapter_that_is_asked_in_another_form_than_it_was_trained_is_said(world, config, tmp_path, caplog):
    assert main(["train", str(config), "--system_prompt", "Be brief."]) == 0
    adapter, output = str(tmp_path / "out"), str(tmp_path / "output.jsonl")
    for command, more in (("score", []), ("generate", ["--max-new-tokens", "1"])):
        arguments = [command, *map(str, world), "--adapter", adapter, "--output", output + command, *more]
        caplog.clear()
        assert main(arguments) == 0
        assert "trained with another system_prompt: give --system-prompt as in training" in caplog.text
        caplog.clear()
        assert main([*arguments, "--system-prompt", "Be brief.", "--output", f"{output}2{command}"]) == 0
        assert "trained with another" not in caplog.text


def test_lora_settings_that_contradict_the_adapter_are_refused(sft, config, capsys):
    for setting, message in (
        (["--lora_r", "16"], "lora_r: 16, but the adapter at"),
        (["--use_lora", "false"], "adapter_name_or_path: an adapter is trained further as an adapter"),
    ):
        assert main(["train", str(config), "--adapter_name_or_path", str(sft), *setting]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", str(config), "--adapter_name_or_path", str(sft), "--lora_r", "4"]) == 0


def test_a_lora_without_targets_goes_to_the_language_model(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mdpo"):
        trained = run(load(world[0]), world, tmp_path, peft_config=LoraConfig(r=4))
        trained.train()
    names = [name for name, parameter in trained.model.named_parameters() if parameter.requires_grad]
    assert names and all("language_model" in name for name in names)
    assert "target_modules is not set" in caplog.text
    total = sum(parameter.numel() for parameter in trained.model.parameters() if parameter.requires_grad)
    assert f"trained     {total:,} of" in caplog.text and f"{total:,} in the language model" in caplog.text


def test_a_branch_that_outgrows_the_models_positions_is_named_before_training(world, tmp_path):
    model = tiny.llava()
    model.config.text_config.max_position_embeddings = 20
    model.config.text_config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(
        InputError, match=r"row \d+ \(line \d+\): its longest branch has \d+ tokens, more than the 20 from which"
    ):
        run(model, world, tmp_path, peft_config=lora())


def test_an_adapter_of_transformers_own_is_refused_with_the_way_out(world, tmp_path):
    model = tiny.llava()
    try:
        model.add_adapter(lora())
    except ValueError as error:  # transformers 5.24 asks for a peft that was not released with it
        assert "PEFT" in str(error)
        pytest.skip(f"transformers {transformers.__version__} takes no adapter of peft's: {error}")
    with pytest.raises(InputError, match="wrap the bare model with peft.get_peft_model"):
        run(model, world, tmp_path)


def test_evaluation_rows_without_images_are_said(world, tmp_path, caplog):
    text = [{"prompt": "what is this?", "chosen": "a cat", "rejected": "a dog"}]
    MDPOTrainer(
        model=load(world[0]),
        args=MDPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=read_rows(world[1]),
        eval_dataset=text,
        processing_class=load_processor(world[0]),
        peft_config=lora(),
    )
    assert "eval_dataset: no row has an image, so its loss is without the image preference" in caplog.text


@pytest.mark.parametrize("option", [["--beta", "0"], ["--beta", "-1"], ["--beta", "inf"], ["--seed", "-1"]])
def test_scores_of_a_beta_that_is_none_are_refused(world, tmp_path, capsys, option):
    assert main(["score", *map(str, world), "--output", str(tmp_path / "s.jsonl"), *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option[0]}") and option[1] in line and "expected a number" in line


def test_a_schedule_that_divides_by_nothing_is_refused_before_a_step(world, tmp_path):
    peft_config = lora()
    trainer = run(
        load(world[0]), world, tmp_path, peft_config=peft_config, lr_scheduler_type="polynomial", warmup_steps=3
    )
    with pytest.raises(InputError, match="lr_scheduler_type: polynomial .* all of the 3 steps; lower warmup_steps"):
        trainer.train()
    assert trainer.state.global_step == 0
    run(
        load(world[0]), world, tmp_path, peft_config=peft_config, lr_scheduler_type="polynomial", warmup_steps=2
    ).train()
