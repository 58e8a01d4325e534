"""The README's table of measurements, written by ``python -m bench.render bench/results``."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from bench.blocks import fill
from bench.render.targets import RATIOS, Ratio, columns
from bench.suite.record import Record


class Headline(NamedTuple):
    """ratios: their names; of two, the first is with checkpointing and the second without."""

    text: str
    ratios: tuple[str, ...]


_CACHED, _EACH_STEP = (
    "ours from the second epoch on (reference cached)",
    "ours in the first epoch (reference each step)",
)
_ON, _OFF = "checkpointing on", "checkpointing off"
HEADLINES = (
    Headline(
        "speed of a step from the second epoch on (reference cached), against TRL's two-branch DPO",
        (f"{_CACHED}: TRL with two branches, {_ON}", f"{_CACHED}: TRL with two branches, {_OFF}"),
    ),
    Headline(
        "speed of a step in the first epoch (reference computed in the step), against TRL's two-branch DPO",
        (f"{_EACH_STEP}: TRL with two branches, {_ON}", f"{_EACH_STEP}: TRL with two branches, {_OFF}"),
    ),
    Headline(
        "speed of a step from the second epoch on, against the mDPO authors' shipped settings",
        (f"{_CACHED}, {_ON}: the authors' shipped settings", f"{_CACHED}, {_OFF}: the authors' shipped settings"),
    ),
    Headline(
        "peak memory above the weights in the first epoch, of TRL's",
        (
            f"peak memory above the weights, {_EACH_STEP}: TRL, {_ON}",
            f"peak memory above the weights, {_EACH_STEP}: TRL, {_OFF}",
        ),
    ),
    Headline(
        "speed of a packed pair with its three branches, against two padded branches of plain DPO",
        ("forward and backward of a packed pair, P=650, R=100: plain DPO's two padded branches",),
    ),
)


def updated(readme: str, records: Sequence[Record]) -> str:
    """The README with its table made anew. ValueError if its marks are not there."""
    return fill(readme, "bench", block(records))


def block(records: Sequence[Record]) -> list[str]:
    """A row per headline that was measured, and a column per device and model; then a line where no GPU is
    among them.
    """
    gpus, cpus = columns(records), _cpus(records)
    ratios = {ratio.name: ratio for ratio in RATIOS}
    measured = {
        (device, model): [_cell([ratios[name] for name in headline.ratios], rows, model) for headline in HEADLINES]
        for device, rows in (gpus | cpus).items()
        for model in sorted(
            {model for headline in HEADLINES for name in headline.ratios for model in ratios[name].of(rows)}
        )
    }
    if not measured:
        return ["Not measured yet."]
    lines = [
        f"| | {' | '.join(f'{device}, {model}' for device, model in measured)} |",
        "|---" * (len(measured) + 1) + "|",
    ]
    for row, headline in enumerate(HEADLINES):
        cells = [column[row] for column in measured.values()]
        if any(cells):
            lines.append(f"| {headline.text} | {' | '.join(cell or '–' for cell in cells)} |")
    if not any(device in gpus for device, _ in measured):
        lines += ["", "On a GPU: not measured yet."]
    return lines


def _cpus(records: Sequence[Record]) -> dict[str, list[Record]]:
    def title(record: Record) -> str:
        return f"{record.environment['device']}, {record.environment['threads']} threads"

    found = sorted((r for r in records if r.environment.get("device_type") == "cpu"), key=title)
    return {name: list(rows) for name, rows in groupby(found, key=title)}


def _cell(ratios: Sequence[Ratio], records: Sequence[Record], model: str) -> str:
    """The model's numbers with a slash between them; empty where there is none."""
    values = [ratio.of(records).get(model) for ratio in ratios]
    return " / ".join("–" if value is None else f"{value:.2f}" for value in values) if any(values) else ""
