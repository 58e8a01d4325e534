"""The program before its command line is there."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mdpo.answers import rank_command, vllm_engine
from mdpo.commands import choices, program
from mdpo.commands.later import Later
from mdpo.data import NEGATIVES
from mdpo.evaluation import chair, generate_command, questions
from mdpo.launch import PROFILES
from mdpo.objectives import rows
from mdpo.own_settings import OWN

ROOT = Path(__file__).parent.parent


def test_a_torchvision_of_another_pytorch_is_one_line(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    info = tmp_path / "torchvision-0.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels")))
    ran = subprocess.run(
        [sys.executable, "-m", "mdpo", "train", "model", "data.jsonl"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1 and not ran.stdout
    assert ran.stderr.splitlines() == [
        "error: torchvision does not go with the PyTorch that is installed (operator torchvision::nms does not "
        "exist); install both in one command from one index, or remove it: pip uninstall torchvision"
    ]


def parsers(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every parser by the words that lead to it, the program's own by none."""
    found = {words: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                found |= parsers(inner, (*words, word))
    return found


def test_no_help_and_no_mistyped_option_needs_pytorch():
    lines = [[*words, "--help"] for words in parsers(program())] + [["--version"], ["score"], ["report", "--nothing"]]
    code = (
        "import contextlib, io, json, sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'transformers', 'numpy', 'PIL', 'peft'): raise AssertionError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from mdpo.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "        try: main(words)\n"
        "        except SystemExit as left: print(left.code, file=sys.__stdout__)\n"
        "    assert out.getvalue().startswith(('usage: mdpo', 'mdpo ')), words\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["0"] * (len(lines) - 2) + ["2"] * 2 and len(lines) > 20


@pytest.mark.parametrize("words", [words for words in parsers(program()) if words])
def test_a_command_runs_what_is_there(words):
    for later in parsers(program())[words]._defaults.values():
        if isinstance(later, Later):
            later.load()


def test_options_take_the_words_that_their_modules_know():
    assert set(choices.NEGATIVES) == set(NEGATIVES)
    assert tuple(PROFILES) == choices.LAUNCHERS
    assert choices.ENGINES == vllm_engine.ENGINES
    assert choices.BENCHMARKS == questions.BENCHMARKS
    assert choices.CHAIR_VARIANTS == chair.VARIANTS
    assert tuple(generate_command.PRESETS) == choices.BEAMS
    assert tuple(rank_command._WAYS) == choices.RANKINGS
    assert [row[:3] for row in choices.OBJECTIVES] == [(row.name, row.packed, row.unshared) for row in rows()]


def test_help_texts_name_the_thing_and_then_its_default():
    for words, parser in parsers(program()).items():
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):  # its commands have theirs
                continue
            text = (action.help or "").replace("%(default)s", str(action.default))
            assert text, f"{words}: {action.dest} has no help"
            assert not text.startswith(("of ", "as ", "per ", "where ", "what ")) and "without it" not in text, text
            assert "picture" not in text and not text.endswith("."), text
            if action.default not in (None, False, argparse.SUPPRESS, []) and action.option_strings:
                assert "(default: " in text, f"{words}: {action.dest}: {text}"
    for field in OWN:
        text = field.metadata["help"]
        assert not text.startswith(("of ", "as ")) and "picture" not in text and not text.endswith("."), text
