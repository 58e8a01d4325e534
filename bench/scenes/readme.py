"""Writes the scenes' committed numbers into bench/README.md: ``python -m bench.scenes.readme``."""

import json

from bench.blocks import fill, rewrite
from bench.scenes.page import COLUMNS, RECORD
from bench.scenes.rows import SHARP, SMALL
from bench.scenes.scores import Comparison, Table, cell, head

PAGE = "bench/README.md"
SCORES = ("chair_s", "chair_i", "cover", "f1", "looking", "log_ratio")
ROWS = {
    SHARP: ("tuned", "DPO", "mDPO", "mDPO - conditional", "mDPO - anchor"),
    SMALL: ("tuned", "DPO", "mDPO", "mDPO - conditional"),
}


def updated(text: str) -> str:
    """The page's text with its table made anew from the results."""
    table = Table(json.loads(RECORD.read_text(encoding="utf-8"))["seeds"])
    compared = [
        Comparison(base, row, "mDPO", "chair_s") for base, rows in ROWS.items() for row in rows if row != "mDPO"
    ]
    lines = head("", ["base", *(COLUMNS[score] for score in SCORES), "CHAIR_s − mDPO's"])
    for base, rows in ROWS.items():
        for row in rows:
            levels = [cell(table.level(base, row, score)) for score in SCORES]
            lines.append(f"| {row} | {base} | {' | '.join(levels)} | {_gap(table, base, row, len(compared))} |")
    lines += [
        "",
        f"Means over {len(table.seeds)} seeds ± half of the 95% interval. Differences are paired by seed, and bold",
        f"where they are beyond the interval that holds for all {len(compared)} of them at once.",
    ]
    return fill(text, "scenes", lines)


def _gap(table: Table, base: str, row: str, tests: int) -> str:
    if row == "mDPO":
        return ""
    compared = Comparison(base, row, "mDPO", "chair_s")
    sure = table.gap(compared, tests)
    return cell(table.gap(compared), signed=True, sure=sure is not None and sure.excludes_zero)


if __name__ == "__main__":
    rewrite(PAGE, updated)
