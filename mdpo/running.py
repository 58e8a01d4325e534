"""One command, run: signals, logs on stderr, results that may be written, and one line for what is wrong."""

import argparse
import atexit
import errno
import gc
import logging
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import transformers

from mdpo.config import takes_value
from mdpo.data import data_files
from mdpo.errors import InputError, OutputError, TrainingError
from mdpo.output_checks import check_not_input, check_output_folder, check_outputs
from mdpo.settings import dtype_name
from mdpo.shown import Formatter, redacted, shown, shown_text
from mdpo.stops import is_main_process, what_is_kept
from mdpo.trainer.signals import Stopped, active, name_of, signals

_WRITTEN = ("output", "picture", "cache", "destination", "reference")  # options that name results
_LAUNCHERS_TURN = 5.0  # seconds in which a launcher notices that a process has failed, and ends the others


def run(options: argparse.Namespace) -> int:
    """Runs a command as ``mdpo.commands.parse`` returns it; returns the exit code. Bad input ends in one line on stderr
    and code 2, a run that cannot go on in one line and code 1, a signal in one line and 128 + its number.
    """
    atexit.register(gc.freeze)  # the collection at a process's end frees nothing, and takes seconds with torch loaded
    try:
        with signals():
            return _run(options)
    except (InputError, OutputError, TrainingError) as error:
        if not _is_said(error):
            print(f"error: {shown_text(redacted(str(error)), 2000)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(
            f"error: {shown_text(str(error.filename), 80)} is too long for the name of a file; give another",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:  # in the moment before the handlers are set, or after they are put back
        return 128 + signal.SIGINT


def _run(options: argparse.Namespace) -> int:
    try:
        _log_to_terminal()
        logging.getLogger("mdpo").setLevel(logging.INFO)  # not of mdpo_kernels, whose choices a run's banner names
        if options.command in ("train", "plan"):
            _check_config_first(options.config, options.words)
        if hasattr(options, "dtype"):
            options.dtype = dtype_name(options.dtype)
        _check_outputs(options)
        return options.run(options) or 0
    except KeyboardInterrupt as error:
        return _left(error.number if isinstance(error, Stopped) else signal.SIGINT, options)
    except Exception:
        handlers = active()
        if handlers is None or handlers.received is None or (handlers.holding and is_main_process()):
            raise
        # A library written in C may answer an exception of Python's that it does not expect, as that of a signal, by
        # one of its own. And a process that its launcher ends may fail before it has ended what it holds.
        return _left(handlers.received, options)


def _left(number: int, options: argparse.Namespace) -> int:
    if is_main_process():
        print(f"stopped by {name_of(number)}{shown(what_is_kept(options))}", file=sys.stderr, flush=True)
    return 128 + number


def _is_said(error: InputError | OutputError | TrainingError) -> bool:
    """Whether another process of the run says so. Who is still there when the main process has failed, and its launcher
    has ended the others for it, has met something of its own."""
    if error.said is not None or is_main_process():
        return bool(error.said)
    try:
        with signals():
            time.sleep(_LAUNCHERS_TURN)
    except KeyboardInterrupt:
        return True
    return False


def _log_to_terminal() -> None:
    """Logs go to stderr spelled out, also those of other libraries, which quote file names and configs of strangers."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter("%(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    _leave_out()
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    logging.getLogger("huggingface_hub").handlers.clear()  # its lines come here too


def _leave_out() -> None:
    """Leaves out what other libraries say and no user can act on; who imports this package keeps all of it."""
    # peft asks for the old name of checkpointing, whatever the user has set.
    old = "`is_gradient_checkpointing` is deprecated"
    warnings.filterwarnings("ignore", old, FutureWarning, r"transformers\.modeling_utils")
    # transformers copies the tokenizer's ids into the config, as it should; nothing here reads them from there.
    logging.getLogger("transformers.trainer_utils").addFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("The tokenizer has new PAD/BOS/EOS tokens")


def _check_config_first(config: Path, words: Sequence[str]) -> None:
    """Raises InputError where what would be read as model or config file is the value of an option before it."""
    for option, word in pairwise(words):
        if not option.startswith("--") and Path(word) == config:
            return
        if Path(word) != config or "=" in option or "--memory".startswith(option):
            continue
        if takes_value(option) or not config.exists():
            raise InputError(
                f"config: {word} is the value of {option}; the config file, or model and data, come first, then --key "
                "value"
            )


def _check_outputs(options: argparse.Namespace) -> None:
    """Whether a command's results can be written where they are asked for, and destroy nothing, before it begins."""
    inputs = {name: _paths(value) for name, value in vars(options).items() if name not in _WRITTEN and _paths(value)}
    if "data" in inputs and hasattr(options, "image_dir"):  # rows; AMBER's --data is a folder of its own
        inputs["data"] += data_files(options.data)
    for name in ("output", "picture"):
        path = getattr(options, name, None)
        if path is not None and not path.name:  # "." and "/", beside which nothing can be named after them
            raise InputError(f"--{name}: {path} is a folder; give a file")
    if hasattr(options, "results"):
        check_outputs(options.results(options), inputs)
    for name, called in (("destination", "destination"), ("reference", "--reference")):
        folder = getattr(options, name, None)
        if folder is not None:
            check_output_folder(folder, called)
            check_not_input(called, folder, {name: paths[0] for name, paths in inputs.items()})


def _paths(value: Any) -> list[Path]:
    """The paths that an option gives."""
    return [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]
