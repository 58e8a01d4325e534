"""A checkpoint's small files, read before anything is built on them: the trainer's state, the schedule, the random
states.

Pickles are read with ``weights_only``, which runs nothing.
"""

import math
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals

from mdpo.models.folder import short

from .checkpoints import checkpoint_step
from .manifest import Unfit, read_json

_STATES = re.compile(r"rng_state(?:_(\d+))?\.pth")


def read_state(folder: Path, step: int) -> dict[str, Any]:
    """The trainer's state, whose values are of their types and agree with each other.

    step: that the checkpoint was written at.

    Raises Unfit.
    """
    state = read_json(folder / TRAINER_STATE_NAME)
    unknown = sorted(state.keys() - {f.name for f in fields(TrainerState)})
    if unknown:
        raise Unfit(
            f"is damaged ({TRAINER_STATE_NAME} has {unknown[0][:40]!r}, which transformers' trainer does not know)"
        )
    for name, (fits, expected) in _FIELDS.items():
        if name not in state:
            raise Unfit(f"is damaged ({TRAINER_STATE_NAME} has no {name})")
        if not fits(state[name]):
            raise _wrong(name, state[name], expected)
    if state["global_step"] != step:
        raise _wrong("global_step", state["global_step"], f"{step}, at which it was written")
    for entry in state["log_history"]:
        if not _is_count(entry.get("step")) or entry["step"] > step:
            raise _wrong("log_history", entry.get("step"), f"steps up to {step}")
    best = state["best_global_step"]
    if best is not None and best > step:
        raise _wrong("best_global_step", best, f"a step up to {step}")
    folder_of_best = state["best_model_checkpoint"]
    if folder_of_best is not None:
        best = checkpoint_step(folder_of_best)
        if best is None or best > step:
            raise _wrong("best_model_checkpoint", folder_of_best, "the folder of an earlier checkpoint, or this one")
    return state


def check_progress(state: dict[str, Any], *, max_steps: int, steps_per_epoch: int) -> None:
    """Whether the state's step and epoch are ones of this run. Raises Unfit."""
    step = state["global_step"]
    if step > max_steps:
        raise _wrong("global_step", step, f"a step up to {max_steps}, which is this run's last")
    if not math.isclose(state["epoch"], step / steps_per_epoch, rel_tol=1e-6):
        raise _wrong(
            "epoch", state["epoch"], f"{step / steps_per_epoch:g}, for step {step} of {steps_per_epoch} an epoch"
        )


def check_parts(folder: Path, *, scaler: bool) -> None:
    """Whether everything is there that a run goes on with as if it had not stopped: transformers starts what is missing
    afresh, without a word.

    scaler: whether the run scales its loss (fp16).

    Raises Unfit.
    """
    names = {path.name for path in folder.iterdir()}
    optimizer = {"optimizer.pt", "optimizer.bin"} & names or {name for name in names if name.startswith("optimizer_")}
    random_states = [found for found in map(_STATES.fullmatch, sorted(names)) if found]
    if not optimizer and "scheduler.pt" not in names and not random_states:
        raise Unfit(
            "was saved with save_only_model, without the optimizer, the schedule and the random state that a run goes "
            "on with; take another checkpoint, or start a new run from its weights"
        )
    needed = {"optimizer.pt": optimizer, "scheduler.pt": "scheduler.pt" in names, "rng_state.pth": random_states}
    if scaler:
        needed["scaler.pt"] = "scaler.pt" in names
    # A run may go on with more or fewer processes; of those that there were, each has left its state.
    ranks = [int(found[1]) for found in random_states if found[1]]
    needed |= {
        f"rng_state_{rank}.pth": rank in ranks for rank in range(min(max(ranks, default=-1) + 1, len(ranks) + 1))
    }
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise Unfit(f"was not written completely ({', '.join(missing)} is missing)")
    torn = [path.name for path in sorted(folder.glob("*.pt*")) if path.is_file() and not zipfile.is_zipfile(path)]
    if torn:  # what torch.save writes is a zip file, whose table of contents comes last
        raise Unfit(f"was not written completely ({torn[0]} was not written completely)")


def check_schedule(folder: Path, step: int, *, exactly: bool) -> None:
    """Whether the schedule stands where the step is. exactly: false where steps may be left out of it (fp16).

    Raises Unfit.
    """
    schedule = read_pickle(folder / "scheduler.pt")
    if not isinstance(schedule, dict):
        raise Unfit(f"is damaged (scheduler.pt is a {type(schedule).__name__}; expected a dict)")
    if "base_lrs" not in schedule:  # a schedule that follows a metric, which counts evaluations
        return
    last = schedule.get("last_epoch")
    if not isinstance(last, int) or not 0 <= last <= step or exactly and last != step:
        raise Unfit(f"is damaged (scheduler.pt stands at step {str(last)[:40]}; expected {step})")


def check_random_states(folder: Path) -> None:
    """Raises Unfit where a random state cannot be set."""
    for path in sorted(path for path in folder.iterdir() if _STATES.fullmatch(path.name)):
        state = read_pickle(path)
        try:
            random.Random().setstate(state["python"])
            np.random.RandomState().set_state(state["numpy"])
            torch.Generator().set_state(state["cpu"])
        except Exception as error:  # whatever is in the place of a state
            raise Unfit(f"is damaged ({path.name} contains no random state: {reason(error)})") from error


def read_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, of tensors and plain values alone. Raises Unfit."""
    try:
        with safe_globals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise Unfit(f"is damaged ({path.name} cannot be read: {reason(error)})") from error


def reason(error: Exception) -> str:
    """Why a file could not be read, in one printable line; torch's own advice is to switch the protection off."""
    found = re.search(r"WeightsUnpickler error: (.+?)(?: was not an allowed| by default|\n|$)", str(error))
    text = f"not plain tensors and values ({found[1]})" if found else short(error, 120)
    return "".join(char if char.isprintable() else "?" for char in text[:160])


def _wrong(name: str, value: Any, expected: str) -> Unfit:
    value = value if isinstance(value, (int, float, str)) else type(value).__name__
    text = re.sub(r"[^ -~]", "?", repr(value)[:200])
    return Unfit(f"is damaged ({TRAINER_STATE_NAME}: {name} is {text[:60]}; expected {expected})")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and -1e300 < value < 1e300


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


# What transformers' trainer goes on with. Its other fields are replaced by this run's own.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "global_step": (_is_count, "a number of steps"),
    "epoch": (_is_finite, "a finite number"),
    "max_steps": (_is_count, "a number of steps"),
    "num_train_epochs": (_is_count, "a number of epochs"),
    "num_input_tokens_seen": (_is_count, "a number of tokens"),
    "total_flos": (lambda value: _is_finite(value) and value >= 0, "a finite number from 0 on"),
    "log_history": (
        lambda value: isinstance(value, list) and all(isinstance(entry, dict) for entry in value),
        "a list of log lines",
    ),
    "best_metric": (_or_none(_is_number), "a number"),
    "best_global_step": (_or_none(_is_count), "a step"),
    "best_model_checkpoint": (_or_none(lambda value: isinstance(value, str)), "a folder"),
    "stateful_callbacks": (lambda value: isinstance(value, dict), "the callbacks' states by name"),
}
