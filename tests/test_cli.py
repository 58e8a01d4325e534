"""The command line as a user types it: what works, and one line for what does not."""

import json
from pathlib import Path

import pytest
import torch
import yaml

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
        "learning_rate": "1e-3",
        "save_strategy": "no",
        "report_to": "none",
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_then_score_then_generate(world, config, tmp_path, capsys):
    model, data = map(str, world)
    assert main(["train", str(config), "--eval_fraction", "0.25", "--eval-strategy=epoch"]) == 0
    adapter = tmp_path / "out"
    assert (adapter / "adapter_model.safetensors").is_file() and (adapter / "processor_config.json").is_file()
    log = json.loads((adapter / "trainer_state.json").read_text())["log_history"]
    assert any("eval_rewards/imageless_margins" in entry for entry in log)

    scores = tmp_path / "scores.jsonl"
    cache = tmp_path / "cache"
    assert (
        main(["score", model, data, "--adapter", str(adapter), "--output", str(scores), "--reference", str(cache)]) == 0
    )
    records = lines(scores)
    assert [record["id"] for record in records] == [f"row{index}" for index in range(8)]
    for record in records:
        for branch, reward in record["rewards"].items():
            difference = record["policy_logps"][branch] - record["reference_logps"][branch]
            assert reward == pytest.approx(0.1 * difference, abs=1e-6)

    # The cache that score filled is the one that training finds.
    arguments = ["train", str(config), "--reference_cache_dir", str(cache), "--output_dir", str(tmp_path / "again")]
    size = sum(path.stat().st_size for path in cache.iterdir())
    assert main(arguments) == 0
    assert sum(path.stat().st_size for path in cache.iterdir()) == size

    answers = tmp_path / "answers.jsonl"
    assert main(["generate", model, data, "--max-new-tokens", "3", "--output", str(answers)]) == 0
    assert len(answers.read_text().splitlines()) >= 8


def test_overrides_win_over_the_file(config, tmp_path):
    arguments = [
        "--use_lora",
        "false",
        "--conditional=false",
        "--anchors",
        "[chosen, rejected]",
        "--anchor",
        "[0, 0.5]",
    ]
    assert main(["train", str(config), *arguments, "--max-steps", "1"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def bad_data(world: tuple[Path, Path], folder: Path, **changes) -> Path:
    rows = lines(world[1])
    rows[2] = {key: value for key, value in {**rows[2], **changes}.items() if value is not None}
    path = folder / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1e-4"], "unknown key 'learning_rat'; the nearest valid key is 'learning_rate'"),
        (["--beta", "strong"], "beta is 'strong'; expected a number"),
        (["--conditional", "maybe"], "conditional is 'maybe'; expected true or false"),
        (["--beta"], "--beta has no value"),
        (["beta", "1"], "unexpected argument 'beta'"),
        (["--train_data", "nowhere.json"], "nowhere.json does not exist"),
        (["--model_name_or_path", "nowhere"], "nowhere does not exist"),
        (["--gradient_accumulation_steps", "4"], "gradient_accumulation_steps: a step is planned whole"),
        (["--token_budget", "20"], "20"),
        (["--max_length", "20"], "max_length"),
    ],
)
def test_bad_settings_are_one_line(config, capsys, arguments, message):
    assert main(["train", str(config), *arguments]) == 2
    captured = capsys.readouterr().err.splitlines()
    (error,) = [line for line in captured if line.startswith("error: ")]
    assert message in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_path": "missing.png"}, "missing.png"),
        ({"img_path": "text.png"}, "text.png"),
        ({"img_path": "../outside.png"}, "outside"),
        ({"chosen": " "}, "chosen"),
        ({"rejected": None}, "rejected"),
        ({"prompt": "<image> and <image>?"}, "<image>"),
    ],
)
def test_bad_rows_are_one_line_that_names_the_row(world, config, tmp_path, capsys, changes, message):
    (world[1].parent / "text.png").write_text("no picture")
    data = bad_data(world, tmp_path, **changes)
    assert main(["train", str(config), "--train_data", str(data), "--image_dir", str(world[1].parent)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "bad.jsonl" in error and "row" in error and message in error


def test_a_missing_key_and_a_broken_file(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("output_dir: out\n")
    assert main(["train", str(path)]) == 2
    path.write_text("a: [1,\n")
    assert main(["train", str(path)]) == 2
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    errors = capsys.readouterr().err
    assert "'model_name_or_path' is missing" in errors and "is not YAML" in errors and "does not exist" in errors


def test_an_adapter_alone_is_no_model(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["generate", str(tmp_path), "x.json", "--output", str(tmp_path / "o")]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    from mdpo.config import load_config

    load_config(path, {"use_cpu": True, "bf16": False})


def test_images_outside_the_image_folder_take_a_word_from_the_user(world, config, tmp_path, capsys):
    data = tmp_path / "elsewhere" / "train.jsonl"
    data.parent.mkdir()
    rows = [row | {"img_path": str(world[1].parent / row["img_path"])} for row in lines(world[1])]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, output = str(world[0]), str(tmp_path / "out.jsonl")
    commands = {
        "--allow_outside": ["train", str(config), "--train_data", str(data), "--max_steps", "1"],
        "--allow-outside": ["generate", model, str(data), "--max-new-tokens", "2", "--output", output],
    }
    for flag, command in commands.items():
        assert main(command) == 2
        assert "outside" in capsys.readouterr().err
        assert main([*command, flag, *(["true"] if command[0] == "train" else [])]) == 0
    assert main(["score", model, str(data), "--output", output + "2", "--allow-outside"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU whose memory can be read")
@pytest.mark.parametrize("words", [[], ["--memory", "auto"]])
def test_a_plan_without_a_gpu_says_which_option_to_give(config, capsys, words):
    assert main(["plan", str(config), *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: there is no GPU here") and said.endswith("as in --memory 24GiB")


@pytest.mark.parametrize("command", [["train"], ["plan", "--memory", "24GiB"]])
@pytest.mark.parametrize(
    ("option", "value"),
    [("--max_steps", "2"), ("--chat-template", "CONFIG"), ("--conditional", "false"), ("--lr", "1")],
)
def test_options_before_the_config_file(config, capsys, command, option, value):
    value = value.replace("CONFIG", str(config))
    assert main([*command, option, value, str(config)]) == 2
    assert capsys.readouterr().err == (
        f"error: config: {value} is the value of {option}; the config file, or model and data, come first, then --key "
        "value\n"
    )


def test_options_before_the_config_file_that_say_no_more_than_themselves(config, tmp_path):
    assert main(["train", "--max_steps=1", "--conditional", str(config), "--seed", "2"]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_settings_that_do_nothing_are_said_once(config, tmp_path, caplog):
    arguments = ["--use_lora", "false", "--lora_r", "64", "--conditional", "false", "--negative", "crop_0_20"]
    assert main(["train", str(config), "--max_steps", "1", *arguments]) == 0
    for line in ("lora_r: no effect, use_lora is false", "negative: no effect, there is no rejected image"):
        assert caplog.text.count(line) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "x" * 5000, "--output", "a.html"],
        ["merge", "run", "merged", "--base", "x" * 5000],
        ["score", "x" * 5000, "rows.jsonl", "--output", "a.jsonl"],
        ["train", "x" * 5000],
        ["data", "check", "x" * 5000],
    ],
)
def test_a_name_too_long_for_a_file_is_one_short_line(arguments, capsys):
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(line) < 2100


def test_no_value_written_as_one(capsys):
    with pytest.raises(SystemExit):
        main(["report", "run", "--output=--"])
    assert "argument --output: '--' is not a value" in capsys.readouterr().err
