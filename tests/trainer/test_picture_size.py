"""max_pixels in every command that loads a processor, and what a run leaves of it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoProcessor

from mdpo import cli
from mdpo.config import load_config, parse_overrides
from mdpo.memory.constraints import examples_of, shape_of
from mdpo.models import LANGUAGE_LINEAR
from tests import tiny

pytestmark = pytest.mark.slow

SIZED = ["--max_pixels", "4096"]
FAMILIES = {"idefics3": tiny.idefics3_processor, "llava": tiny.processor}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny.records(folder, 4)))
    return path


@pytest.fixture(scope="module", params=list(FAMILIES))
def any_model(request, tmp_path_factory) -> Path:
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved("idefics3", tmp_path_factory.mktemp("model"))


def saved(family: str, folder: Path) -> Path:
    getattr(tiny, family)().save_pretrained(folder)
    FAMILIES[family]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_torchvision():
    """Some versions of transformers read no Idefics3 processor from a folder without torchvision."""

    def read(folder, **_):
        kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
        return FAMILIES[kind]()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AutoProcessor, "from_pretrained", read)
        yield


@pytest.fixture(scope="module")
def sized_run(model, data, tmp_path_factory) -> Path:
    """The config of a run at 4096 pixels, which has been trained."""
    path = config(model, data, tmp_path_factory.mktemp("run"))
    assert cli.main(["train", str(path), *SIZED]) == 0
    return path


def config(model: Path, data: Path, folder: Path) -> Path:
    path = folder / "config.yaml"
    settings = {
        "model_name_or_path": str(model),
        "train_data": str(data),
        "output_dir": str(folder / "out"),
        "examples_per_step": 2,
        "max_steps": 2,
        "save_steps": 1,
        "check_start": False,
        "lora_r": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def last_error(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def size_beside(folder: Path) -> dict:
    path = folder / "processor_config.json"
    content = json.loads((path if path.is_file() else folder / "preprocessor_config.json").read_text())
    return content.get("image_processor", content)["size"]


def test_a_plan_counts_the_tokens_of_sized_pictures_and_a_run_proposes_them(model, data, tmp_path, capsys):
    path = config(model, data, tmp_path)

    def longest(*overrides: str) -> int:
        run, args = load_config(path, parse_overrides(list(overrides)))
        return examples_of(run, args, shape_of(run, args, LANGUAGE_LINEAR))[1].longest

    whole, small = longest(), longest(*SIZED)
    assert small < whole / 2
    assert longest("--image_processor_kwargs", "{size: {longest_edge: 64}}") == small
    assert cli.main(["train", str(path), "--token_budget", str(small)]) == 2
    error = last_error(capsys)
    assert f"more than token_budget {small}; " in error and "set max_pixels: 4096, with which they fit" in error
    assert cli.main(["plan", str(path), "--memory", "4GiB", "--token_budget", str(small)]) == 2
    assert last_error(capsys) == error


def test_a_run_leaves_its_size_beside_the_adapter_and_goes_on_at_no_other(sized_run, capsys):
    out = sized_run.parent / "out"
    assert size_beside(out) == size_beside(out / "checkpoint-1") == {"longest_edge": 64}
    again = ["train", str(sized_run), "--resume_from_checkpoint", str(out / "checkpoint-1")]
    assert cli.main(again) == 2
    error = last_error(capsys)
    assert re.search(
        r"checkpoint-1: max_pixels, min_pixels, image_processor_kwargs was .*: 64}.* and is .*: 128}", error
    )
    assert cli.main([*again, *SIZED]) == 0


def test_score_and_generate_say_that_an_adapter_was_trained_with_another_size(sized_run, model, data, tmp_path, caplog):
    files = [str(model), str(data), "--adapter", str(sized_run.parent / "out")]
    commands = [["score", *files, "--no-check-start"], ["generate", *files, "--max-new-tokens", "1"]]
    for number, command in enumerate(commands):
        for said, sized in ((True, []), (False, SIZED)):
            caplog.clear()
            assert cli.main([*command, "--output", str(tmp_path / f"{number}{said}.jsonl"), *sized]) == 0
            assert ("trained with another max_pixels: give --max-pixels as in training" in caplog.text) == said


def test_answers_are_not_gone_on_with_at_another_size(model, data, tmp_path, capsys):
    command = ["generate", str(model), str(data), "--output", str(tmp_path / "a.jsonl"), "--max-new-tokens", "1"]
    assert cli.main([*command, *SIZED]) == 0
    assert cli.main(command) == 2
    assert "pictures: {'max_pixels': 4096} then, None now" in last_error(capsys)
    assert cli.main([*command, *SIZED]) == 0


def test_data_check_counts_what_training_will(model, data, capsys):
    command = ["data", "check", str(data), "--model", str(model)]
    longest = []
    for sized in ([], ["--max-pixels", "1024"]):
        assert cli.main([*command, *sized]) == 0
        out = capsys.readouterr().out
        longest.append(int(re.search(r"^ +packed +\d+ +\d+ +\d+ +(\d+)", out, re.MULTILINE)[1]))
    assert longest[1] < longest[0] / 4
    assert cli.main(["data", "check", str(data), "--max-pixels", "1024"]) == 2
    assert "--max-pixels and the like belong to a processor; give --model too" in last_error(capsys)


def test_every_command_refuses_what_the_processor_cannot_do(any_model, data, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out.jsonl")]
    commands = [
        ["train", str(config(any_model, data, tmp_path))],
        ["score", str(any_model), str(data), *output],
        ["generate", str(any_model), str(data), *output],
        ["data", "check", str(data), "--model", str(any_model)],
    ]
    for command in commands:
        assert cli.main([*command, "--max_pixels", "100"]) == 2
        assert "error: max_pixels: " in last_error(capsys)
