"""A run's folder: the Trainer's log, and the results of ``mdpo evaluate`` that lie in it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.evaluation.files import read_json
from mdpo.evaluation.results import Result, is_result, read_result

STATE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class Run:
    """name: what the report calls it. history: the Trainer's log, in order; empty for a model that was not trained.

    results: by (benchmark, variant), of which a run has one each.
    """

    name: str
    history: list[dict[str, Any]]
    results: dict[tuple[str, str], Result]

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a logged metric; entries that are not finite are left out."""
        points = [
            (entry["step"], entry[metric])
            for entry in self.history
            if _is_number(entry.get(metric)) and _is_number(entry.get("step"))
        ]
        return [float(step) for step, _ in points], [float(value) for _, value in points]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300  # also of integers that no float holds, and of NaN


def load_run(path: str | Path, name: str | None = None) -> Run:
    """A run from its folder. The log is ``trainer_state.json``, of the folder or of its newest checkpoint; results are
    the JSON files that ``mdpo evaluate --output`` wrote, in the folder or one below.

    name: the folder's by default. Raises InputError where there is neither log nor result, where a log is damaged, or
    where two results are of the same benchmark and variant.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; a run is the folder that training wrote to, or results lie in")
    history = load_history(folder)
    results: dict[tuple[str, str], Result] = {}
    sources: dict[tuple[str, str], Path] = {}
    for file in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        if file.parent.name.startswith("checkpoint-") or file.name == STATE or not _is_result(file):
            continue
        result = read_result(file)
        key = (result.benchmark, result.variant)
        if key in sources:
            raise InputError(f"{sources[key]} and {file} are both {' '.join(key)}; move one of them out of the run")
        sources[key], results[key] = file, result
    if not history and not results:
        raise InputError(f"{folder} contains neither {STATE} nor a result of mdpo evaluate")
    return Run(name or folder.resolve().name, history, results)


def _is_result(path: Path) -> bool:
    # Run folders hold other JSON too, tokenizers of many megabytes among it: only a look at the start tells cheaply.
    with path.open("rb") as file:
        start = file.read(64)
    return b'"schema"' in start and is_result(read_json(path))


def load_history(folder: Path) -> list[dict[str, Any]]:
    """The Trainer's log, of a run's folder or of its newest checkpoint; empty where there is none. Raises InputError
    where it is damaged."""
    state = folder / STATE
    if not state.is_file():
        checkpoints = [(_step(path.parent), path) for path in folder.glob(f"checkpoint-*/{STATE}")]
        if not checkpoints:
            return []
        _, state = max(checkpoints)
    content = read_json(state)
    history = content.get("log_history") if isinstance(content, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) and "step" in entry for entry in history):
        raise InputError(f"{state} has no log_history of the Trainer; is it damaged?")
    return history


def _step(checkpoint: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match.group(1)) if match else -1
