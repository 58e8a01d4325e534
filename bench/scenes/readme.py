"""Writes the study's committed numbers into bench/README.md: ``python -m bench.scenes.readme``."""

import json
from pathlib import Path

from bench.blocks import fill
from bench.scenes.page import COLUMNS, Table, cell, gap, head
from bench.study.statistics import interval

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "scenes" / "results.json"
PAGES = ("bench/README.md",)
SCORES = ("chair_s", "chair_i", "cover", "f1", "looking", "log_ratio")
ROWS = ("tuned", "DPO", "mDPO", "mDPO - conditional", "mDPO - anchor")


def updated(text: str, page: str) -> str:
    """The text of one of ``PAGES`` with its table made anew from the results."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    table = Table(results["seeds"])
    lines = head("", [*(COLUMNS[score] for score in SCORES), "CHAIR_s − mDPO's"])
    for row in ROWS:
        values = [table.values(row, score) for score in SCORES]
        cells = [cell(interval(found) if found else None) for found in values]
        cells.append(
            "" if row == "mDPO" else gap(table.values(row, "chair_s"), table.values("mDPO", "chair_s"), len(ROWS) - 1)
        )
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Means over {len(table.seeds)} seeds ± half of the 95% interval. Differences are paired by seed, and bold where they are",
        f"beyond the interval that holds for all {len(ROWS) - 1} of them at once.",
    ]
    return fill(text, "scenes", lines)


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(updated(path.read_text(encoding="utf-8"), page), encoding="utf-8")


if __name__ == "__main__":
    main()
