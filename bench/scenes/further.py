"""The claims that matter most, once more on seeds of their own: ``python -m bench.scenes.further [--out FOLDER]``

What is asked was chosen when the study's page was known, and nothing else is asked of these seeds. So their intervals
allow for these differences only. Writes ``further.json`` and ``FURTHER.md``; goes on where it was interrupted.
"""

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from bench.scenes.claims import CLAIMS
from bench.scenes.rows import BLOCKS, SHARP, SMALL
from bench.scenes.runs import Size
from bench.scenes.scores import Table, cell, head
from bench.scenes.study import Study
from mdpo.outputs import write_text

SEEDS = tuple(range(19, 27))
ASKED = tuple(claim for claim in CLAIMS if claim.key in ("mdpo-tuned", "mdpo-dpo", "looks-tuned", "looks-dpo"))
ROWS = tuple(row for block in BLOCKS for row in block if row.name in {name for c in ASKED for name in (c.one, c.other)})
TESTS = len(ASKED) * 2
INTRODUCTION = f"""\
After [the study](SCENES.md) four of its claims were asked again, of both bases, on eight further seeds, and nothing
else was: those with which mDPO stands or falls. The corrected interval of the study allows for all differences on
its page; this one, for these {TESTS}."""


def markdown(results: Mapping[str, Any]) -> str:
    """The page."""
    table, seeds, size = Table(results["seeds"]), list(results["seeds"]), results["size"]
    lines = head("claim", (SHARP, SMALL))
    for claim in ASKED:
        cells = []
        for base in (SHARP, SMALL):
            sure = table.gap(claim.on(base), TESTS)
            cells.append(cell(table.gap(claim.on(base)), signed=True, sure=sure is not None and sure.excludes_zero))
        lines.append(f"| {claim.text} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        "# Four claims on eight further seeds",
        INTRODUCTION,
        f"Seeds {', '.join(map(str, seeds))}; {size['pairs']} scenes for pairs and {size['scenes']} unseen test scenes "
        "each; "
        f"{versions}. CHAIR_s in points, looking in points of CHAIR_i, as in the study; ± half of the 95% interval. "
        f"**Bold**: beyond the interval that holds for all {TESTS} at once. Made by `python -m bench.scenes.further`; "
        "do not edit.",
        "\n".join(lines),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """The command line; 1 if a row failed."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/scenes-further"), help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows at once (default: one a core)")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    work = Study(options.out, Size(), SEEDS, [ROWS])
    work.complete(options.jobs)
    results = work.collected()
    write_text(options.out / "further.json", json.dumps(results, indent=1) + "\n")
    write_text(options.out / "FURTHER.md", markdown(results))
    print(options.out / "FURTHER.md")
    return 1 if work.failed else 0


if __name__ == "__main__":
    sys.exit(main())
