"""Settings as ``mdpo train`` and its sisters take them, and what they do to a run."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from mdpo.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    return tiny.world(tmp_path_factory.mktemp("world"), count=8)


@pytest.fixture
def config(world, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(tmp_path / "out"),
        "examples_per_step": 4,
        "token_budget": 300,
        "num_train_epochs": 1,
        "lora_r": 2,
        "use_cpu": True,
        "report_to": "none",
    }
    path.write_text(yaml.safe_dump(settings) + "save_strategy: no\n")
    return path


def log(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def error(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_held_out_rows_are_evaluated(config, tmp_path):
    assert main(["train", str(config), "--eval_fraction", "0.5"]) == 0
    assert sum("eval_loss" in entry for entry in log(tmp_path / "out")) == 1
    assert not list((tmp_path / "out").glob("checkpoint-*")), "save_strategy: no, as written in the file"


def test_lora_targets_by_name(config, tmp_path, capsys):
    assert main(["train", str(config), "--lora_target_modules", "[q_proj, v_proj]", "--max_steps", "1"]) == 0
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert names and all("language_model" in name and (".q_proj." in name or ".v_proj." in name) for name in names)
    assert (
        main(["train", str(config), "--lora_target_modules", "q_proj,query", "--output_dir", str(tmp_path / "other")])
        == 2
    )
    assert "lora_target_modules: 'query' matches no layer; the language model has down_proj" in error(capsys)


def test_a_flag_without_a_value(config, tmp_path):
    assert main(["train", str(config), "--logging_first_step", "--max_steps", "2"]) == 0
    assert [entry["step"] for entry in log(tmp_path / "out") if "loss" in entry] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--eval_strategy", "epoch"],
            "eval_strategy: no rows to evaluate on; give eval_data or eval_fraction",
        ),
        (["--eval_steps", "2"], "eval_steps: no rows to evaluate on"),
        (["--fp16"], "fp16: a CPU has no float16 training"),
        (["--eval_data", "x.jsonl", "--metric_for_best_model", "acc"], "metric_for_best_model: 'acc' is not measured"),
        (["--optim_args", " "], "optim_args is ' '; expected name=value, separated by commas"),
        (
            ["--optim_args", "momentum=0.9,"],
            "optim_args is 'momentum=0.9,'; expected name=value, separated by commas",
        ),
        (["--optim", "sgd", "--optim_args", "momentumm=1"], "optim_args: sgd reads no 'momentumm'"),
        (
            ["--optim", "sgd", "--optim_args", "momentum=-1"],
            "optim_args: sgd does not take momentum=-1: Invalid momentum value",
        ),
        (
            ["--lr_scheduler_type", "cosine_with_min_lr"],
            "lr_scheduler_type: 'cosine_with_min_lr' does not work without",
        ),
        (["--lora_target_modules", "(q"], "lora_target_modules: '(q' is neither"),
        (["--per_device_train_batch_size", "8"], "per_device_train_batch_size: micro-batches are counted in tokens"),
    ],
)
def test_what_can_be_said_before_anything_is_read_is_said_then(config, capsys, arguments, message):
    assert main(["train", str(config), "--train_data", "nowhere", "--model_name_or_path", "nowhere", *arguments]) == 2
    assert message in error(capsys)


@pytest.mark.parametrize(("share", "what"), [("0.01", "evaluate"), ("0.99", "train")])
def test_a_share_that_leaves_one_side_empty(config, capsys, share, what):
    assert main(["train", str(config), "--eval_fraction", share]) == 2
    assert f"eval_fraction: {share} of 8 rows" in (line := error(capsys)) and f"nothing to {what} on" in line


def test_dashes_and_underscores_and_short_dtypes_in_every_command(world, tmp_path):
    model, data = map(str, world)
    scores = tmp_path / "scores_of_mine.jsonl"
    assert main(["score", model, data, "--output", str(scores), "--token_budget", "300", "--dtype=bf16"]) == 0
    assert len(scores.read_text().splitlines()) == 8
    answers = str(tmp_path / "answers.jsonl")
    assert main(["generate", model, data, "--max_new_tokens=2", f"--output={answers}"]) == 0
    assert main(["data", "check", data, "--image_dir", str(world[1].parent)]) == 0


def test_a_dtype_that_is_none_is_one_line(world, tmp_path, capsys):
    assert main(["score", *map(str, world), "--output", str(tmp_path / "s"), "--dtype", "int8"]) == 2
    assert "dtype: 'int8' is unknown" in error(capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--token-budget", "0"], "--token-budget is 0; expected a number above 0"),
        (["--negative", "crop"], "negative: 'crop' is unknown"),
    ],
)
def test_what_score_cannot_use_is_said_before_a_model_is_looked_for(words, says, capsys):
    assert main(["score", "nowhere", "nothing.jsonl", "--output", "scores.jsonl", *words]) == 2
    assert says in error(capsys)


@pytest.mark.parametrize("words", [["train"], ["plan"], ["loop"]])
def test_a_yaml_file_that_is_missing(words, capsys):
    assert main([*words, "nowhere.yaml"]) == 2
    assert error(capsys) == "error: config nowhere.yaml does not exist; give a YAML file"


def test_the_help_of_plan_says_where_its_settings_are(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "mdpo train --help lists them" in capsys.readouterr().out


def test_the_help_lists_our_settings(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--token_budget" in text and "frozen projector in full fine-tuning (default: true)" in text
