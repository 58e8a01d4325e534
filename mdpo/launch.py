"""``mdpo train --accelerate NAME``: the same command again, in a process for each GPU."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mdpo.errors import InputError
from mdpo.shown import say

_FOLDER = Path(__file__).with_name("profiles")
PROFILES = {"ddp": "ddp.yaml", "fsdp2": "fsdp2.yaml", "zero2": "deepspeed_zero2.yaml"}
_OPTION = "--accelerate"


def launch(profile: str, words: Sequence[str]) -> None:
    """Becomes ``accelerate launch`` with a profile of ours and every GPU that is visible; does not return.

    Args:
        profile: A name in PROFILES.
        words: What was typed after ``mdpo``; the processes get it without ``--accelerate``.

    Raises InputError where it is not several GPUs that are visible, a launcher has started this process already, or the
    profile's package is not installed.
    """
    command = launch_command(profile, words, torch.cuda.device_count())
    say(shlex.join(["accelerate", "launch", *command[3:]]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def launch_command(profile: str, words: Sequence[str], gpus: int) -> list[str]:
    """The interpreter and its arguments. Raises InputError as ``launch``."""
    if "LOCAL_RANK" in os.environ:
        raise InputError(f"{_OPTION} {profile}: a launcher has started this process already; leave {_OPTION} out")
    if gpus < 2:
        seen = "one GPU is visible" if gpus else "no GPU is visible"
        raise InputError(
            f"{_OPTION} {profile}: {seen}, and a process for each is started; leave {_OPTION} out for a single one"
        )
    if profile == "zero2" and importlib.util.find_spec("deepspeed") is None:
        raise InputError(f"{_OPTION} zero2: DeepSpeed is not installed; pip install deepspeed, or take ddp")
    options = {"config_file": _FOLDER / PROFILES[profile], "num_processes": gpus}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", *given, "-m", "mdpo", *_without_option(words)]


def _without_option(words: Sequence[str]) -> list[str]:
    kept, rest = [], iter(words)
    for word in rest:
        if word == _OPTION:
            next(rest)
        elif not word.startswith(f"{_OPTION}="):
            kept.append(word)
    return kept
