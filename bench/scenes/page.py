"""The study's page: ``python -m bench.scenes.page FOLDER`` makes SCENES.md from results.json again."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.study.statistics import Interval, difference, interval
from mdpo.outputs import write_text

RECORD = Path(__file__).parents[1] / "results" / "scenes" / "results.json"
COLUMNS = {
    "chair_s": "CHAIR_s ↓",
    "chair_i": "CHAIR_i ↓",
    "cover": "cover ↑",
    "f1": "F1 ↑",
    "length": "tokens",
    "looking": "looking ↑",
    "sight": "of sight",
    "prior": "of the prior",
    "log_ratio": "log π/ρ of y_w",
    "log_ratio_crop": "on a crop",
}
COMPARED = {"chair_s": "CHAIR_s", "chair_i": "CHAIR_i", "f1": "F1", "looking": "looking"}
COMPARISONS = (
    ("DPO", "tuned"),
    ("DPO, no image", "DPO"),
    ("mDPO", "tuned"),
    ("mDPO", "DPO"),
    ("mDPO", "mDPO - conditional"),
    ("mDPO", "mDPO - anchor"),
    ("mDPO", "mDPO, random image"),
)
CUT_ROWS = ("mDPO", "mDPO - anchor", "mDPO, random image", "DPO")
TESTS = len(COMPARISONS) * len(COMPARED) + 2 * len(CUT_ROWS)
"""Differences that the page shows."""
INTRODUCTION = """\
The miniature world of `bench/scenes`: pictures of emoji on a theme, a LLaVA of 0.7M parameters tuned on captions
whose writer also named what such scenes usually have. Of several captions that the tuned model gives to a picture, a
noisy judge that likes length chooses one and rejects one (`mdpo sample`, `rank`, `pairs`); the language model is
trained whole on these pairs by `mdpo train configs/scenes.yaml` with the row's overrides, and captions unseen
pictures greedily. A seed has its own pairs, order, rejected images and test scenes; the tuned model is one. No
setting was chosen on these seeds.

CHAIR_s: of the captions, those that name something the picture does not show; CHAIR_i: of the things named, each once
a caption, those not shown, which are errors of the prior where they belong to the scene's theme and else of sight;
cover: of the things shown, those named; F1 of cover and 100 − CHAIR_i; looking: how much CHAIR_i grows where the
captions of other pictures of the same theme stand in for the picture's own, 0 for a model that does not look; all in
percent or points of it. log π/ρ of held-out chosen captions, with their picture and on a crop of it, in nats."""


class Table(NamedTuple):
    """Scores by seed."""

    seeds: Mapping[str, Mapping[str, Mapping[str, float]]]

    def values(self, row: str, score: str) -> list[float] | None:
        """One a seed; None where the row has no such score."""
        found = [rows[row].get(score) for rows in self.seeds.values()]
        return [value for value in found if value is not None] or None


def write_page(results: Path) -> Path:
    """Writes SCENES.md beside the results; returns it."""
    page = results.with_name("SCENES.md")
    write_text(page, markdown(json.loads(results.read_text(encoding="utf-8"))))
    return page


def over_seeds(rows: Sequence[str]) -> str:
    """What the committed study says of these rows, in a sentence: one seed by itself says little."""
    seeds = json.loads(RECORD.read_text(encoding="utf-8"))["seeds"]
    found = [(row, Table(seeds).values(row, "chair_s")) for row in rows]
    shares = ", ".join(f"{row} {cell(interval(values))}" for row, values in found if values)
    return f"Over the {len(seeds)} seeds of bench/results/scenes/SCENES.md CHAIR_s is: {shares}."


def markdown(results: Mapping[str, Any]) -> str:
    """The page."""
    table, seeds = Table(results["seeds"]), list(results["seeds"])
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "# mDPO in the world of scenes", "", INTRODUCTION, "",
        f"{len(seeds)} seeds ({', '.join(seeds)}), {results['pairs']} scenes for pairs and {results['scenes']} "
        f"unseen test scenes each, {results['minutes']} minutes in all on {results['cores']} CPU cores; "
        f"{versions}. Made by "
        "`python -m bench.scenes.study`; do not edit.", "",
        "## Scores", "", "Means over seeds ± half of the 95% interval (Student's t).", "",
        *_scores(table, list(results["rows"])), "",
        "## Differences, paired by seed", "",
        f"± half of the 95% interval of each. **Bold**: beyond the interval that holds for all {TESTS} numbers of "
        "this table and the "
        f"next at once (Bonferroni: {100 * (1 - 0.05 / TESTS):.2f}% each).", "",
        *_differences(table), "",
        "## Is it more than saying less?", "",
        "Against the tuned model's own captions, cut after so many things that they cover as much as the row's "
        "(between two "
        "numbers of things a straight line is drawn; captions that cover less as they are stay whole).", "",
        *_cut(table), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _scores(table: Table, rows: Sequence[str]) -> list[str]:
    lines = head("", COLUMNS.values())
    for row in rows:
        found = [table.values(row, score) for score in COLUMNS]
        cells = [cell(interval(values) if values else None) for values in found]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def _differences(table: Table) -> list[str]:
    lines = head("", COMPARED.values())
    for one, other in COMPARISONS:
        cells = [gap(table.values(one, score), table.values(other, score)) for score in COMPARED]
        lines.append(f"| ({one}) − ({other}) | {' | '.join(cells)} |")
    return lines


def _cut(table: Table) -> list[str]:
    lines = head("row − cut tuned", ("CHAIR_s", "CHAIR_i"))
    for row in CUT_ROWS:
        cells = [gap(table.values(row, score), table.values(row, f"cut_{score}")) for score in ("chair_s", "chair_i")]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def head(first: str, columns: Iterable[str]) -> list[str]:
    """The first two lines of a table."""
    names = [first, *columns]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def gap(values: list[float] | None, others: list[float] | None, tests: int = TESTS) -> str:
    """The difference, paired by seed; bold where it is beyond an interval that allows for so many tests."""
    assert values is not None and others is not None
    sure = difference(values, others, confidence=1 - 0.05 / tests).excludes_zero
    text = cell(difference(values, others), signed=True)
    return f"**{text}**" if sure else text


def cell(value: Interval | None, *, digits: int = 1, signed: bool = False) -> str:
    """A mean with half of its interval, – for none."""
    if value is None:
        return "–"
    if math.isnan(value.half):
        return f"{value.mean:{'+' if signed else ''}.{digits}f}"
    return value.text(digits, signed=signed)


if __name__ == "__main__":
    print(write_page(Path(sys.argv[1]) / "results.json"))
