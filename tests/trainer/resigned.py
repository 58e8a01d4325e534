"""Damage to a checkpoint that its digests would show, and the digests brought up to date with it: what a later check is
for.
"""

import json
from collections.abc import Callable
from pathlib import Path

from mdpo.trainer.manifest import SETTINGS_NAME, sign


def resign(folder: Path, **changes) -> None:
    """changes: of the settings file's own values."""
    content = json.loads((folder / SETTINGS_NAME).read_text())
    step = changes.pop("step", content.pop("step"))
    for name in ("files", "digest"):
        content.pop(name)
    sign(folder, content | changes, step)


def edit_state(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes trainer_state.json, and the digests with it."""
    path = folder / "trainer_state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    resign(folder)
