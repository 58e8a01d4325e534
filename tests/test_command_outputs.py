"""Every command's results: whole or not there on a full disk, never over an input, and never over what was there."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mdpo.cli import main
from mdpo.errors import OutputError
from mdpo.evaluation.files import Journal
from mdpo.evaluation.results import Metric, Response, Result
from tests import tiny

ROOT = Path(__file__).parents[1]


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """A limit on the size of a file fails a write as a full disk does. left: bytes that a file may have."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, rows, a trained adapter, two sides' answers, a sheet's key and votes."""
    folder = tmp_path_factory.mktemp("made")
    model, data = tiny.world(folder, count=4)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for name in ("first", "second"):
        lines = [json.dumps({"id": row["id"], "response": f"{name} {row['chosen']}"}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    drawn = [
        {"id": row["id"], "image": row["img_path"], "prompt": "?", "response": row[side]}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    (folder / "drawn.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in drawn))
    config = folder / "config.yaml"
    settings = {
        "model_name_or_path": str(model),
        "train_data": str(data),
        "output_dir": str(folder / "run"),
        "max_steps": 1,
        "lora_r": 2,
        "examples_per_step": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 1,
    }
    config.write_text(json.dumps(settings))
    assert main(["train", str(config)]) == 0
    votes = {"schema": "mdpo-human-answers-1", "sheet": "s", "answers": {"row0": "left"}}
    key = {
        "schema": "mdpo-human-key-1",
        "sheet": "s",
        "first": "a",
        "second": "b",
        "swapped": {"row0": True},
        "questions": {},
    }
    (folder / "votes.json").write_text(json.dumps(votes))
    (folder / "x.key.json").write_text(json.dumps(key))
    return folder


COMMANDS = {
    "score": "score {made}/model {made}/train.jsonl --no-check-start --output {out}/scores.jsonl",
    "generate": "generate {made}/model {made}/train.jsonl --max-new-tokens 4 --output {out}/answers.jsonl",
    "answers": "sample {made}/model {made}/train.jsonl --n 2 --max-new-tokens 4 --output {out}/answers.jsonl",
    "rank": "rank {made}/drawn.jsonl --by agreement --output {out}/scored.jsonl",
    "sheet": "evaluate human sheet {made}/train.jsonl {made}/first.jsonl {made}/second.jsonl --output {out}/sheet.html",
    "tally": "evaluate human tally {made}/x.key.json {made}/votes.json --output {out}/result.json",
    "report": "report {made}/run --output {out}/report.html",
    "sample": "data sample {made}/train.jsonl --output {out}/rows.jsonl",
    "picture": "data check {made}/train.jsonl --picture {out}/lengths.png",
    "preview": "data preview {made}/train.jsonl --rows 1 --output {out}/preview.png",
    "convert": "convert bunny {root}/tests/golden/bunny-official {out}/bunny",
    "merge": "merge {made}/run {out}/merged",
}
RESUMED = ["generate", "answers"]
REPLACED = ["report", "picture", "preview", "tally"]


def command(name: str, made: Path, out: Path) -> list[str]:
    return COMMANDS[name].format(made=made, out=out, root=ROOT).split()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_the_same_command_ends_when_there_is_room(made, tmp_path, capsys, name):
    out = tmp_path / "new" / "folder"
    with full_disk(20):
        assert main(command(name, made, out)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "the disk is full" in errors[0] and "run the same command again" in errors[0]
    assert not (tmp_path / "new").exists() or name in RESUMED and set(content(out).values()) <= {b""}
    assert main(command(name, made, out)) == 0
    assert content(out) and not [path for path in out.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_there_is_resumed_replaced_if_ours_and_refused_else(made, tmp_path, capsys, name):
    arguments = command(name, made, tmp_path)
    assert main(arguments) == 0
    before = content(tmp_path)
    assert main(arguments) == (0 if name in RESUMED + REPLACED else 2)
    assert content(tmp_path).keys() == before.keys()
    if name not in RESUMED + REPLACED:
        error = capsys.readouterr().err
        assert "exists; give another file, or remove it" in error or "is not empty; give a new folder" in error
        assert content(tmp_path) == before


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"convert", "merge"}))
def test_somebody_elses_file_is_not_replaced(made, tmp_path, capsys, name):
    for target in [word for word in command(name, made, tmp_path) if word.startswith(str(tmp_path))]:
        Path(target).write_text('{"id": "row9", "response": "mine"}\n')
        assert main(command(name, made, tmp_path)) == 2
        assert content(tmp_path) == {Path(target).name: b'{"id": "row9", "response": "mine"}\n'}


@pytest.mark.parametrize("folder", [".", "..", "/", "new"])
@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"convert", "merge"}))
def test_a_folder_is_no_file(made, tmp_path, capsys, monkeypatch, name, folder):
    (tmp_path / "here" / "new").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    words = [folder if word.startswith(str(tmp_path)) else word for word in command(name, made, tmp_path)]
    assert main(words) == 2
    assert (
        f"error: --{'picture' if name == 'picture' else 'output'}: {folder} is a folder; give a file"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("score {made}/model {in}/train.jsonl --output {in}/./train.jsonl", "data"),
        ("score {made}/model {in}/train.jsonl --output {in}/link.jsonl", "data"),
        ("score {made}/model {in} --output {in}/new.jsonl", "data"),
        ("generate {made}/model {in}/train.jsonl --output {in}/link.jsonl", "data"),
        ("generate {made}/model {in} --output {in}/deeper/new.jsonl", "data"),
        ("data sample {in}/train.jsonl --output {in}/hard.jsonl", "data"),
        ("data sample {in} --output {in}/new.jsonl", "data"),
        ("rank {in}/drawn.jsonl --by agreement --output {in}/./drawn.jsonl", "answers"),
        ("rank {in}/drawn.jsonl --by chair --objects {in}/first.jsonl --output {in}/first.jsonl", "objects"),
        ("evaluate human tally {in}/x.key.json {in}/votes.json --output {in}/votes.json", "answers"),
        ("evaluate human sheet {in}/train.jsonl {in}/first.jsonl {in}/first.jsonl --output {in}/first.jsonl", "first"),
        ("merge {in}/run {in}/run", "adapter"),
        ("merge {in}/run {in}/model --base {in}/model", "base"),
        ("convert bunny {in}/model {in}/model/.", "source"),
    ],
)
def test_no_command_writes_over_what_it_reads(made, tmp_path, capsys, line, what):
    (tmp_path / "in").mkdir()
    for path in made.iterdir():
        if path.suffix in (".jsonl", ".json"):
            (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
        elif path.is_dir():
            (tmp_path / "in" / path.name).symlink_to(path)
    (tmp_path / "in" / "link.jsonl").symlink_to("train.jsonl")
    os.link(tmp_path / "in" / "train.jsonl", tmp_path / "in" / "hard.jsonl")
    before = content(tmp_path)
    assert main(line.format(**{"in": tmp_path / "in", "made": made}).split()) == 2
    error = capsys.readouterr().err
    assert f"is read as {what}" in error and len(error.splitlines()) == 1
    assert content(tmp_path) == before


def test_another_benchmarks_result_is_not_replaced(made, tmp_path):
    metric = Metric.of("m", 1.0, "lower", "a/b", "d")
    Result("AMBER", "v", [metric], [Response("1", "t", {"a": 1.0, "b": 1.0})], {}).write(tmp_path / "result.json")
    assert main(command("tally", made, tmp_path)) == 2


def test_answers_that_were_there_before_the_disk_was_full_are_kept(made, tmp_path, capsys):
    arguments = [*command("generate", made, tmp_path), "--batch-size", "1"]
    assert main(arguments) == 0
    whole = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(whole[: whole.index(b"\n") + 1])
    with full_disk(len(whole) - 5):  # the sidecar fits no more: the last answer neither
        assert main(arguments) == 1
    assert whole.startswith((tmp_path / "answers.jsonl").read_bytes()) and (tmp_path / "answers.jsonl").stat().st_size
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"id": "row3", "resp')  # torn by a kill
    assert main(arguments) == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == whole


def test_a_journal_ends_with_its_last_whole_line(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append({"id": "a"})
        with (
            full_disk(20),
            pytest.raises(OutputError, match="j.jsonl could not be written: the disk is full; the 1 lines"),
        ):
            journal.append({"id": "b" * 40})
        assert (tmp_path / "j.jsonl").read_bytes() == b'{"id": "a"}\n'
        journal.append({"id": "c"})
    assert (tmp_path / "j.jsonl").read_bytes() == b'{"id": "a"}\n{"id": "c"}\n'
