"""Writes the scenes' committed numbers into bench/README.md: ``python -m bench.scenes.readme``."""

import json

from bench.blocks import fill, rewrite
from bench.scenes.page import COLUMNS, RECORD, Table, cell, gap, head
from bench.study.statistics import interval

PAGE = "bench/README.md"
SCORES = ("chair_s", "chair_i", "cover", "f1", "looking", "log_ratio")
ROWS = ("tuned", "DPO", "mDPO", "mDPO - conditional", "mDPO - anchor")


def updated(text: str) -> str:
    """The page's text with its table made anew from the results."""
    results = json.loads(RECORD.read_text(encoding="utf-8"))
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
        f"Means over {len(table.seeds)} seeds ± half of the 95% interval. Differences are paired by seed, and "
        "bold where they are",
        f"beyond the interval that holds for all {len(ROWS) - 1} of them at once.",
    ]
    return fill(text, "scenes", lines)


if __name__ == "__main__":
    rewrite(PAGE, updated)
