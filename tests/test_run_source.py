"""``mdpo train MODEL DATA``, and ``mdpo train CONFIG.yaml``: which run is meant, and what to type where none is."""

import argparse
from pathlib import Path

import pytest

from mdpo.cli import main
from mdpo.errors import InputError
from mdpo.run_source import RunSource, default_folder
from tests import tiny


def source(*words: str) -> RunSource:
    first, *rest = words
    return RunSource.of(argparse.Namespace(words=["train", *words], config=Path(first), overrides=rest))


def test_a_model_and_its_data_are_a_run(tmp_path, monkeypatch, capsys):
    model, data = tiny.world(tmp_path / "tuned", count=4)
    monkeypatch.chdir(tmp_path)
    words = ["--beta", "0.2", "--max_steps", "1", "--use_cpu", "--lora_r", "2", "--report_to", "none"]
    assert main(["train", str(model), str(data), *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "output_dir: runs/model-train (set --output_dir for another)"
    assert (tmp_path / "runs/model-train/adapter_model.safetensors").is_file()
    (record,) = (tmp_path / "runs/model-train").glob("mdpo_run.json")
    assert str(data) in record.read_text()
    # The same command once more: its folder is taken, and the line says what to do.
    assert main(["train", str(model), str(data), *words]) == 2
    assert "--output_dir" in capsys.readouterr().err


def test_options_may_stand_between_and_win(tmp_path):
    run, args = source("owner/m", "d.jsonl", "--beta", "0.2", "--output_dir", "x", "--use_cpu").load()
    assert (run.model_name_or_path, run.train_data, args.output_dir, args.beta) == ("owner/m", "d.jsonl", "x", 0.2)
    run, args = source("owner/m", "--train_data", "a.jsonl", "b.jsonl", "--use_cpu").load({"beta": 0.3})
    assert run.train_data == ["a.jsonl", "b.jsonl"] and args.beta == 0.3 and args.output_dir == "runs/m-a"
    config = tmp_path / "c.yaml"
    config.write_text("model_name_or_path: m\ntrain_data: d.jsonl\noutput_dir: y\nuse_cpu: true\n")
    chosen = source(str(config), "--beta", "0.2")
    assert not chosen.names_folder and chosen.load()[1].output_dir == "y"


@pytest.mark.parametrize(
    ("model", "data", "folder"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", "openbmb/RLAIF-V-Dataset", "runs/Qwen2.5-VL-3B-Instruct-RLAIF-V-Dataset"),
        ("owner/m@v1", "owner/d@v2:test", "runs/m-d"),
        ("models/tuned/", "my data.jsonl", "runs/tuned-my-data"),
        ("/", "/", "runs"),
    ],
)
def test_the_folder_is_named_after_model_and_data(model, data, folder):
    assert default_folder(model, data) == folder


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["m"], "DATA is missing; type mdpo train m DATA, or mdpo train CONFIG.yaml"),
        (["a.yaml", "b.yaml"], "b.yaml: a second YAML file, and a run has one; type mdpo train a.yaml"),
        (["a.yaml", "d.jsonl"], "type mdpo train a.yaml --train_data d.jsonl, or mdpo train MODEL d.jsonl"),
        (["d.jsonl", "m"], "d.jsonl: a data file, where the model stands; type mdpo train m d.jsonl"),
        (["d.jsonl"], "type mdpo train MODEL d.jsonl"),
        (["m", "a.yaml"], "type mdpo train a.yaml --model_name_or_path m"),
        (["m", "a.jsonl", "b.jsonl"], "typed as mdpo train m --train_data a.jsonl b.jsonl"),
        (["m", "d.jsonl", "--train_data", "e.jsonl"], "train_data: given twice, as a word and as --train_data"),
        (["m", "d.jsonl", "--model_name_or_path=n"], "model_name_or_path: given twice"),
        (["m", "--beta", "1", "d.jsonl"], "unexpected argument 'd.jsonl'; model and data come first"),
        (["nothing.yaml"], "config nothing.yaml does not exist; give a YAML file"),
    ],
)
def test_a_mistake_says_what_to_type(words, says):
    with pytest.raises(InputError) as caught:
        source(*words).load()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_plan_takes_the_same(tmp_path, capsys):
    assert main(["plan", "nowhere", "d.jsonl", "--memory", "24GiB"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["plan", "nowhere"]) == 2
    assert "type mdpo plan nowhere DATA" in capsys.readouterr().err
