"""What a command that a signal has stopped says: what is kept, and the command that goes on."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


def ctrl_c_ends() -> None:
    """Until a command sets handlers of its own, Ctrl-C ends the process at once, as it does a program in C: importing
    torch and transformers takes seconds, and would end in a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # one that is ignored stays so
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_main_process() -> bool:
    """Whether this process speaks for a run of several, as torchrun and accelerate number them."""
    return int(os.environ.get("RANK") or 0) == 0


def resumed_command(words: Sequence[str]) -> str:
    """The command line that goes on from the newest checkpoint.

    words: the command and its arguments, as they were typed after ``mdpo``.
    """
    module = {"mdpo/__main__.py": "mdpo", "mdpo/cli.py": "mdpo.cli"}.get("/".join(Path(sys.argv[0]).parts[-2:]))
    program = ["mdpo"] if module is None else ["python", "-m", module]
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name.replace("-", "_") in ("__resume_from_checkpoint", "__overwrite_output_dir"):
            skip = not equals
        else:
            kept.append(word)
    return shlex.join([*program, *kept, "--resume_from_checkpoint", "true"])


def what_is_kept(options: argparse.Namespace) -> str:
    """The end of the line about a command that was stopped.

    options: of the command line. ``words``: what was typed.
    """
    command = options.words[0]
    if command == "train":
        return " before the first step; nothing was trained"
    if command == "loop":
        return "; what is done is kept: the same command goes on"
    if command in ("generate", "sample"):
        return f"; the answers so far are kept beside {options.output}: the same command goes on"
    if command == "rank" and options.by == "self":
        return f"; the claims answered so far are kept beside {options.output}: the same command goes on"
    if getattr(options, "judge", None):
        return f"; the replies so far are kept in {options.cache}: the same command goes on"
    if command == "score" and options.reference is not None:
        return f"; the reference's numbers so far are kept in {options.reference}: the same command goes on"
    return "; the same command begins again"
