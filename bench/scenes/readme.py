"""Writes the study's committed numbers into the README: ``python -m bench.scenes.readme``."""

import json
from pathlib import Path

from bench.scenes.page import COLUMNS, RECORD, TESTS, Table, cell, gap, head
from bench.study.statistics import interval

ROOT = Path(__file__).parents[2]
BEGIN, END = (
    "<!-- scenes: written by python -m bench.scenes.readme from bench/results/scenes/results.json -->\n",
    "<!-- /scenes -->",
)
SCORES = ("chair_s", "chair_i", "cover", "f1", "looking", "log_ratio")
ROWS = ("tuned", "DPO", "mDPO", "mDPO - conditional", "mDPO - anchor")


def updated(readme: str) -> str:
    """The README with its block made anew from the results."""
    results = json.loads(RECORD.read_text(encoding="utf-8"))
    table = Table(results["seeds"])
    lines = head("", [*(COLUMNS[score] for score in SCORES), "CHAIR_s − mDPO's"])
    for row in ROWS:
        values = [table.values(row, score) for score in SCORES]
        cells = [cell(interval(found) if found else None) for found in values]
        cells.append("" if row == "mDPO" else gap(table.values(row, "chair_s"), table.values("mDPO", "chair_s")))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Means over {len(table.seeds)} seeds ± half of the 95% interval; differences are paired by seed, bold where they are",
        f"beyond the interval that holds for all {TESTS} differences of the page at once. Looking: how much CHAIR_i grows where captions of",
        "other pictures of the same theme stand in.",
    ]
    start, stop = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    return readme[:start] + "\n".join(lines) + "\n" + readme[stop:]


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
