"""Whether an adapter is about to read its prompts in another form than it was trained on."""

import logging
from pathlib import Path
from typing import Any

from mdpo.data import PictureSize, TextOptions
from mdpo.models.adapters import run_record
from mdpo.models.folder import mapping

_log = logging.getLogger(__name__)


def say_other_prompt(adapter: Path, text: TextOptions, size: PictureSize) -> None:
    """Says once which settings of text and pictures differ from those of the run that trained the adapter, where it
    left a record.

    text, size: of the command that is about to score or to generate.
    """
    record = run_record(adapter.expanduser())
    now: dict[str, Any] = text.values() | dict.fromkeys(PictureSize.__slots__) | size.values()
    trained = mapping(record.get("run")) | mapping(record.get("text"))
    other = [name for name, value in now.items() if name in trained and trained[name] != value]
    if other:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        _log.warning("the adapter was trained with another %s: give %s as in training", ", ".join(other), options)
