"""Running a loop: each stage once, whatever ended the loop in between."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from mdpo.data.problem import names
from mdpo.errors import InputError
from mdpo.evaluation.answering import data_fingerprint
from mdpo.evaluation.files import InUse, Journal, read_text
from mdpo.output_checks import check_output_folder
from mdpo.outputs import whole_file
from mdpo.run_folder import held_run
from mdpo.settings.yaml_text import plain, read_yaml
from mdpo.shown import say

from .config import LoopConfig
from .report import write_rounds
from .stages import Stage, stages, training_config, training_settings

JOURNAL = "loop.jsonl"
_PATIENCE_S = 60  # in which a stage ends that an earlier loop, killed, has left: a training saves a checkpoint first
_POLL_S = 1.0
# Options that say how something is done, not what: they may change where memory or an endpoint asks for it.
_FREE = ("--batch-size=", "--concurrency=", "--attempts=", "--timeout=", "--key-variable=")

Runner = Callable[[Sequence[str], Journal], int]
"""Runs one command, given as its words, and returns its exit code. It holds the journal open while the command runs."""


def run_loop(config: LoopConfig, check: Callable[[Sequence[str]], None], run_stage: Runner) -> int:
    """Runs what is left of the loop. Returns 0, or the exit code of the stage at which it ended.

    Args:
        check: Raises InputError where a command's words are not right; called for all of them before the first runs.
        run_stage: Runs a stage.

    Raises InputError where the folder holds a loop of other settings, or one that is running, and where a file that an
    earlier round read has changed since.
    """
    todo = planned(config, check)
    folder = Path(config.output_dir)
    with _journal(folder / JOURNAL) as journal:
        done = _done(journal, todo)
        if not isinstance(config.train, str):
            with whole_file(training_config(config)) as part:
                part.write_text(yaml.safe_dump(plain(config.train), sort_keys=False), encoding="utf-8")
        if any(stage.name == "train" for stage in todo[done:]):
            _say_other_training(journal, _training(config))
        for stage in todo[done:]:  # before hours of sampling, and again when each has come
            _unchanged(stage, journal)
        for stage in todo[done:]:
            say("")
            say(f"== {_title(stage, config)}")
            say(f"mdpo {shlex.join(stage.words)}")
            sys.stdout.flush()
            read = _unchanged(stage, journal)
            code = run_stage(_prepared(stage), journal)
            if code:
                say(
                    f"the loop ended in {_title(stage, config)}; what is done is kept: fix what is said above, "
                    "and the same command goes on"
                )
                return code
            trained = {"settings": _training(config)} if stage.name == "train" else {}
            words = list(stage.words)
            journal.append({"round": stage.round, "stage": stage.name, "words": words, "read": read, **trained})
            if stage.name == "measure" or stage.name == "rank" and config.evaluate is None:
                write_rounds(config, stage.round, folder / "report.html")
    say(f"wrote {folder / 'report.html'}, .md and .png: the rounds side by side")
    return 0


def planned(config: LoopConfig, check: Callable[[Sequence[str]], None]) -> list[Stage]:
    """The loop's stages, their words checked. Raises InputError that names the stage, or an output_dir that cannot be
    one.
    """
    check_output_folder(config.output_dir, "output_dir")
    run, args = training_settings(config)
    found = list(stages(config, run, args))
    for stage in found:
        try:
            check(stage.words)
        except InputError as error:
            raise InputError(f"{_title(stage, config)}: {error}") from error
    return found


def command_lines(todo: Sequence[Stage]) -> list[str]:
    """The loop's commands as they could be typed."""
    return [f"mdpo {shlex.join(stage.words)}" for stage in todo]


def in_process(words: Sequence[str], journal: Journal) -> int:
    """A ``Runner``: the command in a process of its own, to which a signal that stops the loop is handed on."""
    command = [sys.executable, "-m", "mdpo.loop.stage", str(os.getpid()), *words]
    # In a session of its own: a Ctrl-C in the terminal reaches it once, through this process.
    process = subprocess.Popen(command, start_new_session=True, pass_fds=(journal.fileno(),))
    try:
        return _code(process.wait())
    except BaseException as error:
        process.send_signal(getattr(error, "number", signal.SIGTERM))
        process.wait()
        raise


def _code(returned: int) -> int:
    return 128 - returned if returned < 0 else returned


def _journal(path: Path) -> Journal:
    """The loop's journal. Raises InUse where another loop, or a stage that it has left, goes on holding it."""
    until, waiting = time.monotonic() + _PATIENCE_S, False
    while True:
        try:
            return Journal(path)
        except InUse as error:
            if time.monotonic() > until:
                raise InUse(
                    f"output_dir: {path.parent} is in use by another loop; wait until it has finished, or give another "
                    "output_dir"
                ) from error
            if not waiting:
                say(
                    f"{path.parent} is in use: waiting up to {_PATIENCE_S:g} seconds for a stage that an earlier "
                    "loop has left"
                )
            waiting = True
            time.sleep(_POLL_S)


def _done(journal: Journal, todo: Sequence[Stage]) -> int:
    """How many of the stages have been done. Raises InputError where they were others."""
    if len(journal.records) > len(todo):
        raise InputError(f"{journal.path} has more rounds than {todo[-1].round}; give --rounds, or another output_dir")
    for number, (record, stage) in enumerate(zip(journal.records, todo, strict=False), start=1):
        before = record.get("words")
        if not isinstance(before, list) or not all(isinstance(word, str) for word in before):
            raise InputError(f"{journal.path}, line {number}: not a stage of a loop; give another output_dir")
        old, new = _deciding(before), _deciding(stage.words)
        if old != new:
            changed = [word for word in [*old, *new] if (word in old) != (word in new)]
            raise InputError(
                f"{journal.path}: round {stage.round}'s {stage.name} ran with other options "
                f"({', '.join(changed[:4])}); use the old ones, or give another output_dir"
            )
    return len(journal.records)


def _unchanged(stage: Stage, journal: Journal) -> dict[str, str]:
    """The fingerprints of the files that the stage reads, by their paths.

    Raises InputError where one of them is not what it was in an earlier round: rounds on other questions, or scored by
    other annotations, do not compare.
    """
    now = {str(path): data_fingerprint(path) for path in stage.reads}
    for record in journal.records:
        then = record.get("read")
        changed = [path for path in now if isinstance(then, dict) and then.get(path, now[path]) != now[path]]
        if changed:
            raise InputError(
                f"{changed[0]} has changed since round {record.get('round')}'s {record.get('stage')}, so that the "
                "rounds would not compare; put back what it was, or give another output_dir"
            )
    return now


def _training(config: LoopConfig) -> dict[str, Any]:
    """The settings of training as they stand now, as JSON has them."""
    given = config.train
    if isinstance(given, str):
        given = read_yaml(read_text(given), f"config {given}")
    return json.loads(json.dumps(plain(given), default=str))


def _say_other_training(journal: Journal, now: dict[str, Any]) -> None:
    """They may change from round to round, as memory asks for it; but not unseen, as a loop's rounds are compared."""
    before = next((record for record in reversed(journal.records) if isinstance(record.get("settings"), dict)), None)
    if before is None:
        return
    then = before["settings"]
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if changed:
        say(f"round {before['round']} was trained with other settings than now: {names(changed, 6)}")


def _deciding(words: Sequence[str]) -> list[str]:
    """Sorted: in which order the options stand in the configuration is nothing to a command."""
    return sorted(word for word in words if not word.startswith(_FREE))


def _prepared(stage: Stage) -> list[str]:
    """The stage's words, and its place made ready where an earlier process ended within it."""
    words = list(stage.words)
    if stage.name == "train":
        found = held_run(stage.makes[0])
        if found is not None and found.startswith("checkpoint-"):
            words += ["--resume_from_checkpoint", "true"]
        elif found is not None:  # saved, and ended before that was written down
            words += ["--overwrite_output_dir", "true"]
    elif stage.name not in ("sample", "answer"):  # written whole, from what costs nothing a second time
        for path in stage.makes:
            path.unlink(missing_ok=True)
    return words


def _title(stage: Stage, config: LoopConfig) -> str:
    if stage.round == 0:
        return f"before the first round: {stage.name}"
    return f"round {stage.round} of {config.rounds}: {stage.name}"
