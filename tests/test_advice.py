"""Every command line that a message of ours prints is one that works: options exist where they are said to, and the way
on that a stopped run names is taken."""

import ast
import errno
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mdpo import MDPOTrainer, cli, training
from mdpo.commands import program
from mdpo.config import build_config, parse_overrides
from mdpo.errors import OutputError
from mdpo.trainer import keeps_checkpoints
from tests import tiny
from tests.command_line import parsers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"(?<![\w(-])--[a-z][\w-]*|\b(mdpo|pip|hf|accelerate) [a-z]+ ?(?=[\w'\"{-]|$)")


def messages() -> Iterator[tuple[str, str]]:
    """(file, text) of every string in the package that names an option or a command, {} for what is put in later.

    Docstrings, the parsers' own strings and style sheets are not messages.
    """
    for path in sorted((ROOT / "mdpo").rglob("*.py")):
        tree = ast.parse(path.read_text())
        quiet = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                quiet.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "add_argument",
                "add_parser",
                "compile",
                "_setting",  # a setting with its help
            ):
                quiet.update(ast.walk(node))
            if isinstance(node, ast.JoinedStr):  # its parts are not strings of their own
                quiet.update(part for value in node.values for part in [value] if isinstance(value, ast.Constant))
            if isinstance(node, ast.keyword) and node.arg in ("help", "description", "metadata"):
                quiet.update(ast.walk(node.value))
        for node in ast.walk(tree):
            text = _text(node)
            if text is not None and node not in quiet and COMMAND.search(text) and "var(--" not in text:
                yield str(path.relative_to(ROOT)), text


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


# Who says the messages of a file: an option in one of them has to be an option of one of these commands.
SAID_BY = {
    "mdpo/answers/pairing.py": ["pairs"],
    "mdpo/answers/pairs_command.py": ["pairs"],
    "mdpo/answers/rank_command.py": ["rank"],
    "mdpo/answers/ranking/confirm.py": ["rank"],
    "mdpo/answers/ranking/function.py": ["rank"],
    "mdpo/answers/ranking/judge.py": ["rank"],
    "mdpo/answers/records.py": ["rank"],
    "mdpo/answers/sample_command.py": ["sample"],
    "mdpo/answers/vllm_engine.py": ["sample"],
    "mdpo/cli.py": [""],
    "mdpo/commands/rows.py": ["report"],
    "mdpo/commands/train.py": ["train"],
    "mdpo/config.py": ["train", "plan"],
    "mdpo/settings/arguments.py": ["train", "score"],
    "mdpo/settings/own.py": ["train"],
    "mdpo/settings/peers.py": ["train", "data sample", "report"],
    "mdpo/settings/values.py": ["train"],
    "mdpo/trainer/arguments.py": ["train"],
    "mdpo/data/check_report.py": ["data check"],
    "mdpo/data/image_sources.py": ["train", "sample", "rank", "pairs", "data check"],
    "mdpo/data/commands.py": ["data check", "data preview", "data sample"],
    "mdpo/data/picture_size.py": ["score", "generate", "sample", "data check"],
    "mdpo/data/preview.py": ["data preview"],
    "mdpo/data/sample.py": ["data sample"],
    "mdpo/data/tables.py": ["train"],
    "mdpo/data/text_options.py": ["score", "generate", "sample", "data check"],
    "mdpo/evaluation/answer_options.py": ["generate", "sample"],
    "mdpo/evaluation/answering.py": ["generate", "sample"],
    "mdpo/evaluation/chair/files.py": ["evaluate object-halbench"],
    "mdpo/evaluation/chair/run.py": ["evaluate object-halbench"],
    "mdpo/evaluation/generate_command.py": ["generate"],
    "mdpo/evaluation/finish.py": ["evaluate mmhal", "evaluate object-halbench"],
    "mdpo/evaluation/human/run.py": ["evaluate human sheet"],
    "mdpo/evaluation/judge.py": ["evaluate mmhal", "evaluate object-halbench", "rank"],
    "mdpo/evaluation/language.py": ["evaluate amber", "evaluate object-halbench"],
    "mdpo/evaluation/mmhal/files.py": ["evaluate mmhal"],
    "mdpo/evaluation/questions.py": ["generate"],
    "mdpo/evaluation/results.py": ["report"],
    "mdpo/evaluation/score_command.py": ["score"],
    "mdpo/hub/names.py": ["train"],
    "mdpo/hub/refusals.py": ["train"],
    "mdpo/hub/uploads.py": ["train"],
    "mdpo/launch.py": ["train"],
    "mdpo/loop/run.py": ["loop", "train", "sample", "rank"],
    "mdpo/loop/stages.py": ["sample", "rank", "pairs", "train"],
    "mdpo/memory/automatic.py": ["train"],
    "mdpo/memory/size.py": ["train", "plan"],
    "mdpo/models/commands.py": ["convert"],
    "mdpo/models/llava.py": ["convert"],
    "mdpo/models/load.py": ["score", "generate", "sample"],
    "mdpo/models/merge.py": ["merge"],
    "mdpo/models/quantize.py": ["train"],
    "mdpo/reports/charts.py": ["report"],
    "mdpo/reports/commands.py": ["report"],
    "mdpo/reports/markdown.py": ["report"],
    "mdpo/reports/page.py": ["report"],
    "mdpo/reports/runs.py": ["report"],
    "mdpo/reports/write.py": ["report"],
    "mdpo/running.py": ["train", "score"],
    "mdpo/run_folder.py": ["train"],
    "mdpo/run_lock.py": ["train"],
    "mdpo/run_source.py": ["train"],
    "mdpo/training.py": ["train"],
    "mdpo/stops.py": ["train"],
    "mdpo/trainer/keeps_weights.py": ["train"],
    "mdpo/trainer/layers.py": ["train"],
    "mdpo/trainer/preflight.py": ["train"],
    "mdpo/trainer/samples.py": ["generate"],
    "mdpo/trainer/stoppable.py": ["train"],
    "mdpo/trainer/way_on.py": ["train"],
}


def options(command: str) -> set[str]:
    if command == "":  # the program itself
        return {option for action in program()._actions for option in action.option_strings}
    found = {option for action in parsers()[command]._actions for option in action.option_strings}
    if command in ("train", "plan"):  # any setting, and KEY stands for one
        from dataclasses import fields

        from mdpo.config import MDPOConfig, RunConfig

        names = [field.name for kind in (MDPOConfig, RunConfig) for field in fields(kind)] + ["key"]
        found |= {f"--{name}" for name in names} | {f"--{name.replace('_', '-')}" for name in names}
    return found


@pytest.mark.parametrize(("file", "text"), sorted(set(messages())))
def test_a_message_names_options_and_commands_that_exist(file, text):
    assert file in SAID_BY, f"{file} says {text!r}: enter the file in SAID_BY, with the commands that say it"
    known = set().union(*(options(command) for command in SAID_BY[file]))
    own = re.sub(r"accelerate launch \S+ \S+|hf (upload|download|auth) .*", "", text)  # without other programs' options
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", own):
        assert option in known, f"{option} is no option of {SAID_BY[file]}"
    for command in re.findall(r"\bmdpo ([a-z]+)", text):
        assert command in parsers(), f"there is no command mdpo {command}"
    extras = (ROOT / "pyproject.toml").read_text()
    assert "multimodal-dpo[" not in text, 'the package is on no index: pip install -e ".[EXTRA]" in the clone'
    for extra in re.findall(r'pip install -e "\.\[(\w+)\]"', text):
        assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), f"there is no extra {extra}"


@pytest.mark.parametrize("page", ["README.md", "mdpo/README.md"])
def test_the_pages_name_options_and_commands_that_exist(page):
    lines = re.findall(r"^ {4}mdpo (.+?)(?: +#.*)?$", (ROOT / page).read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        command = max((name for name in parsers() if line.startswith(name)), key=len)
        unknown = {word.split("=")[0] for word in shlex.split(line) if word.startswith("--")} - options(command)
        assert not unknown, f"mdpo {line}"


def test_files_that_messages_name_are_there():
    named = {
        name for path in (ROOT / "mdpo").rglob("*.py") for name in re.findall(r"configs/[\w./-]+", path.read_text())
    }
    assert named and all((ROOT / name).is_file() for name in named)


def test_every_entry_is_needed():
    assert set(SAID_BY) == {file for file, _ in messages()}


# The lines with a value, as they stand in the messages


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=6)


def config(world, tmp_path, **changes) -> Path:
    path = tmp_path / "config.yaml"
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(tmp_path / "out"),
        "examples_per_step": 2,
        "num_train_epochs": 2,
        "lora_r": 2,
        "use_cpu": True,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def stop_after(monkeypatch):
    """Sends SIGTERM to this process in the step after so many; returns how to set and unset it."""
    original, at = MDPOTrainer.training_step, []

    def training_step(self, *arguments, **keywords):
        if at and self.state.global_step == at[0]:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(MDPOTrainer, "training_step", training_step)
    return at


@pytest.mark.parametrize("use_lora", [True, False])
def test_the_way_on_that_a_stopped_run_names_leads_to_the_end(world, tmp_path, capsys, stop_after, use_lora):
    path = config(world, tmp_path, use_lora=use_lora)
    name = "adapter_model.safetensors" if use_lora else "model.safetensors"
    cli.main(["train", str(path), "--output_dir", str(tmp_path / "whole")])
    stop_after.append(2)
    assert cli.main(["train", str(path)]) == 128 + signal.SIGTERM
    said = re.search(r"go on with: mdpo (.*)", capsys.readouterr().out)
    assert said and not (tmp_path / "out" / name).exists()
    stop_after.clear()
    assert cli.main(shlex.split(said[1])) == 0
    whole, resumed = (load_file(tmp_path / folder / name) for folder in ("whole", "out"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_run_that_keeps_weights_alone_is_not_told_to_resume(world, tmp_path, capsys, stop_after):
    stop_after.append(1)
    cli.main(["train", str(config(world, tmp_path, save_only_model=True))])
    said = capsys.readouterr().out
    assert "stopped by SIGTERM" in said and "save_only_model leaves nothing to resume from" in said
    assert "--resume_from_checkpoint" not in said


@pytest.mark.parametrize("full_at", [1, 2])
def test_the_way_on_after_a_full_disk_leads_to_the_end(world, tmp_path, capsys, monkeypatch, full_at):
    path = str(config(world, tmp_path, save_strategy="steps", save_steps=1))
    real = keeps_checkpoints.put_in_place

    def full(staged, folder):
        if folder.name == f"checkpoint-{full_at}":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(staged, folder)

    with monkeypatch.context() as patch:
        patch.setattr(keeps_checkpoints, "put_in_place", full)
        assert cli.main(["train", path]) == 1
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    again = [] if full_at == 1 else ["--resume_from_checkpoint", "true"]
    ways = [
        "there is no checkpoint: make room, and run again",
        "checkpoint-1: make room, and go on with --resume_from_checkpoint",
    ]
    assert ways[full_at - 1] in said and f"step {full_at} could not be written: the disk is full" in said
    assert cli.main(["train", path, *again]) == 0


def test_checkpoints_without_an_optimizer_are_named_as_what_they_are(world, tmp_path, capsys, monkeypatch):
    def full(self, folder):
        raise OutputError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MDPOTrainer, "_save_whole", full)
    path = config(world, tmp_path, save_strategy="steps", save_steps=3, save_only_model=True)
    assert cli.main(["train", str(path)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "its weights are in the checkpoint" in said and "--resume_from_checkpoint" not in said


@pytest.mark.parametrize(
    ("written", "meant"), [("true", True), ("'true'", True), ("True", True), ("out/checkpoint-2", "out/checkpoint-2")]
)
def test_resume_from_checkpoint_is_a_folder_or_true(world, tmp_path, written, meant):
    values = yaml.safe_load(config(world, tmp_path).read_text())
    _, args = build_config(values | parse_overrides(["--resume_from_checkpoint", written]), source="here")
    assert training._resume_from(args.resume_from_checkpoint) == meant


@pytest.mark.parametrize("written", ["false", "'false'", "null"])
def test_resume_from_checkpoint_false_starts_afresh(world, tmp_path, written):
    path = config(world, tmp_path)
    assert cli.main(["train", str(path), "--max_steps", "1", "--resume_from_checkpoint", written]) == 0


def test_nothing_to_resume_from_is_one_line(world, tmp_path, capsys):
    assert cli.main(["train", str(config(world, tmp_path)), "--resume_from_checkpoint", "true"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "contains no whole checkpoint" in errors[0]


def test_the_judges_advice_parses():
    required = ["answers", "--instances", "i", "--captions", "c", "--synonyms", "s"]
    _, rest = program().parse_known_args(
        ["evaluate", "object-halbench", *required, "--judge", "m", *"--variant rlhfv --script FILE".split()]
    )
    assert not rest


def test_the_size_that_a_message_shows_is_one():
    from mdpo.memory.size import parse_size

    assert parse_size("24GiB") == 24 * 2**30
