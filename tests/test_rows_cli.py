"""Rows as commands and the trainer meet them: images that are missing, columns to ignore, what Python hands over."""

import json
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig

from mdpo import InputError, MDPOConfig, MDPOTrainer
from mdpo.cli import main
from mdpo.data import read_rows
from mdpo.models import load, load_processor
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    return tiny.world(tmp_path_factory.mktemp("world"), count=6)


@pytest.fixture
def config(world, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(tmp_path / "out"),
        "examples_per_step": 3,
        "token_budget": 300,
        "max_steps": 1,
        "lora_r": 2,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "image_dir": str(world[1].parent),
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def changed(world: tuple[Path, Path], folder: Path, change) -> Path:
    rows = [change(json.loads(line)) for line in world[1].read_text().splitlines()]
    path = folder / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_image(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "img_path"}


def error_of(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_training_on_text_alone_has_to_be_asked_for(world, config, tmp_path, capsys):
    data = changed(world, tmp_path, without_image)
    assert main(["train", str(config), "--train_data", str(data)]) == 2
    assert "none of the 6 rows has an image (the first is changed.jsonl, row 0" in error_of(capsys)
    for asked in (["--conditional", "false"], ["--conditional", "false", "--drop_images", "true"]):
        assert main(["train", str(config), "--train_data", str(data), "--overwrite_output_dir", "true", *asked]) == 0


def test_a_misnamed_image_column_stops_every_command(world, config, tmp_path, capsys):
    data = changed(world, tmp_path, lambda row: {"image_path": row["img_path"], **without_image(row)})
    model, output = str(world[0]), str(tmp_path / "out.jsonl")
    for arguments in (
        ["train", str(config), "--train_data", str(data)],
        ["score", model, str(data), "--output", output],
        ["generate", model, str(data), "--output", output],
        ["data", "sample", str(data), "--output", output],
    ):
        assert main(arguments) == 2
        assert "row 0 (line 1): image_path: is not read" in error_of(capsys)


def test_every_command_ignores_the_columns_it_is_told_to(world, config, tmp_path):
    data = changed(world, tmp_path, lambda row: row | {"videos": ["a.mp4"], "margin": 1.0})
    images = ["--image-dir", str(world[1].parent), "--ignore-columns", "videos,margin"]
    model = str(world[0])
    assert main(["train", str(config), "--train_data", str(data), "--ignore_columns", "[videos, margin]"]) == 0
    assert main(["score", model, str(data), "--output", str(tmp_path / "scores.jsonl"), *images]) == 0
    answers = str(tmp_path / "answers.jsonl")
    assert main(["generate", model, str(data), "--output", answers, "--max-new-tokens", "2", *images]) == 0
    assert main(["data", "check", str(data), *images]) == 0


def test_columns_of_a_benchmark_cannot_be_ignored(world, tmp_path, capsys):
    (tmp_path / "q.json").write_text(json.dumps([{"id": 1, "image": "0.png", "query": "what?"}]))
    arguments = ["generate", str(world[0]), str(tmp_path / "q.json"), "--benchmark", "amber", "--ignore-columns", "id"]
    assert main([*arguments, "--output", str(tmp_path / "out.json")]) == 2
    assert "--ignore-columns: a benchmark's file is read by its own columns" in error_of(capsys)


def test_scores_of_text_say_that_no_image_was_there(world, tmp_path, caplog):
    data, output = changed(world, tmp_path, without_image), tmp_path / "scores.jsonl"
    assert main(["score", str(world[0]), str(data), "--output", str(output)]) == 0
    assert "has an image: branches with another image are null in every record" in caplog.text
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert {record["rewards"]["image_rejected"] for record in records} == {None}


def test_questions_of_a_pattern_of_files_are_answered_once(world, tmp_path):
    lines = world[1].read_text().splitlines(keepends=True)
    for index in range(2):
        (tmp_path / f"part{index}.jsonl").write_text("".join(lines[3 * index : 3 * index + 3]))
    arguments = ["generate", str(world[0]), str(tmp_path / "part*.jsonl"), "--image-dir", str(world[1].parent)]
    arguments += ["--output", str(tmp_path / "answers.out"), "--max-new-tokens", "2"]
    assert main(arguments) == 0
    first = (tmp_path / "answers.out").read_text()
    assert main(arguments) == 0 and (tmp_path / "answers.out").read_text() == first
    (tmp_path / "part1.jsonl").write_text("".join(lines[3:5]))
    assert main(arguments) == 2, "other questions"


def make(world, folder: Path, rows, **options) -> MDPOTrainer:
    args = MDPOConfig(
        output_dir=str(folder),
        examples_per_step=3,
        token_budget=300,
        num_train_epochs=1,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        **options.pop("settings", {}),
    )
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj")
    processor = load_processor(world[0])
    return MDPOTrainer(load(world[0]), args, rows, processing_class=processor, peft_config=lora, **options)


def test_the_trainer_takes_a_data_set_a_stream_and_a_generator_alike(world, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in world[1].read_text().splitlines()]
    cells = [{**row, "img_path": {"bytes": (world[1].parent / row["img_path"]).read_bytes()}} for row in rows]
    features = {name: datasets.Value("string") for name in rows[0]} | {"img_path": datasets.Image()}
    table = datasets.Dataset.from_list(cells, features=datasets.Features(features))
    losses = []
    for given in (read_rows(world[1]), table, table.to_iterable_dataset(), iter(cells), (row for row in cells)):
        run = make(world, tmp_path, given)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] and losses == [losses[0]] * 5


@pytest.mark.parametrize("given", [[], iter(()), {"a": []}, 3])
def test_what_is_no_rows_is_one_line(world, tmp_path, given):
    with pytest.raises(InputError, match="^train_dataset (contains no rows|is a (dict|int)); give"):
        make(world, tmp_path, given)


def test_held_out_rows_may_be_text_where_training_has_images(world, tmp_path):
    rows = read_rows(world[1])
    text = [{"prompt": "what?", "chosen": "a cat", "rejected": "a dog"}]
    run = make(world, tmp_path, rows, eval_dataset=text)
    assert run.evaluate()["eval_loss"] > 0
    with pytest.raises(InputError, match="none of the 1 rows has an image"):
        make(world, tmp_path, text)


def test_columns_of_dicts_can_be_ignored_too(world, tmp_path):
    text = [{"prompt": "what?", "chosen": "a cat", "rejected": "a dog", "weight": 2}]
    with pytest.raises(InputError, match="train_dataset, row 0: weight"):
        make(world, tmp_path, text, settings={"conditional": False})
    make(world, tmp_path, text, settings={"conditional": False, "ignore_columns": ["weight"]})


def test_training_says_once_how_many_responses_it_cuts(config, caplog):
    assert main(["train", str(config), "--max_length", "30"]) == 0
    said = [message for message in caplog.messages if "max_length" in message]
    assert len(said) == 1 and said[0].startswith("max_length 30 cuts ")
