"""An empty path, such as an unset variable of a shell leaves, is never the working directory, and never as good as
none; and a home directory that nobody has is one line."""

import os
from pathlib import Path

import pytest

from mdpo import InputError, MDPOConfig, cli
from mdpo.config import build_config, load_config, parse_overrides
from mdpo.data.text_options import read_template
from mdpo.settings import PATHS
from tests.command_line import parsers

REQUIRED = {"model_name_or_path": "m", "train_data": "d", "output_dir": "out", "use_cpu": True}


@pytest.mark.parametrize("empty", ["", " ", "\t"])
@pytest.mark.parametrize("name", PATHS)
def test_an_empty_path_is_refused_in_a_file_and_on_the_command_line(tmp_path, name, empty):
    with pytest.raises(InputError, match=f"^run.yaml: {name}: the path is empty; give one"):
        build_config({**REQUIRED, name: empty}, source="run.yaml")
    path = tmp_path / "run.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in REQUIRED.items()))
    for words in ([f"--{name}", empty], [f"--{name.replace('_', '-')}={empty}"]):
        with pytest.raises(InputError, match="the path is empty; give one"):
            load_config(path, parse_overrides(words))


def test_an_empty_path_is_refused_from_python():
    with pytest.raises(InputError, match="^output_dir: the path is empty"):
        MDPOConfig(output_dir="", use_cpu=True)


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"chat_template"}))
def test_a_home_directory_that_is_not_known_is_one_line(name):
    with pytest.raises(
        InputError, match=f"^run.yaml: {name}: the home directory that '~nobody-here/x' begins with is not known"
    ):
        build_config({**REQUIRED, name: "~nobody-here/x"}, source="run.yaml")
    with pytest.raises(InputError, match="neither a Jinja template nor a file"):
        read_template("~nobody-here/x")


def test_a_path_that_is_none_is_none():
    run, args = build_config(REQUIRED | parse_overrides(["--eval_data", "none", "--image_dir=null"]), source="here")
    assert run.eval_data is None and run.image_dir is None and args.reference_cache_dir is None


def test_every_path_of_every_command_is_refused_when_it_is_empty(capsys):
    tried = 0
    for command, parser in parsers().items():
        for action in parser._actions:
            if action.type is Path and action.option_strings:
                with pytest.raises(SystemExit):
                    cli.main([*command.split(), action.option_strings[0], ""])
                said = capsys.readouterr().err
                assert f"argument {action.option_strings[0]}: the path is empty; give one" in said, command
                tried += 1
    assert tried > 20


@pytest.mark.parametrize("path", ["", "~nobody-here/x"])
@pytest.mark.parametrize("words", [["train"], ["merge", "run"], ["score", "m", "--output", "o"], ["report", "run"]])
def test_such_a_path_that_no_option_names(words, path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main([*words[:2], path, *words[2:]])
    said = "the path is empty; give one" if not path else "the home directory that '~nobody-here/x' begins with"
    assert said in capsys.readouterr().err and not os.listdir()
