"""Whether an adapter is about to read its prompts in another form than it was trained on."""

import logging
from pathlib import Path

from mdpo.data import TextOptions
from mdpo.models.adapters import run_record

_log = logging.getLogger(__name__)


def say_other_text(adapter: Path, text: TextOptions) -> None:
    """Says once which settings of the text differ from those of the run that trained the adapter, where it left a record.

    text: of the command that is about to score or to generate.
    """
    trained = run_record(adapter.expanduser()).get("text")
    if not isinstance(trained, dict):
        return
    other = [name for name, value in text.values().items() if name in trained and trained[name] != value]
    if other:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        _log.warning("the adapter was trained with another %s: give %s as in training", ", ".join(other), options)
