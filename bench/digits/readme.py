"""Writes the demo's committed numbers into bench/README.md: ``python -m bench.digits.readme``."""

import json
from statistics import mean

from bench.blocks import ROOT, fill, rewrite

RESULTS = ROOT / "bench" / "digits" / "demo.json"
PAGE = "bench/README.md"
COLUMNS = {
    "CHAIR_i": "chair_i",
    "CHAIR_s": "chair_s",
    "Cover": "cover",
    "partner rate": "partner_rate",
    "log π/ρ": "log_ratio",
}


def updated(text: str) -> str:
    """The page's text with its table made anew from the JSON."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    seeds = results["seeds"]
    models = list(next(iter(seeds.values())))
    lines = [
        f"Means over {len(seeds)} seeds, {results['pairs']:,} preference pairs, {results['scenes']:,} unseen test "
        "scenes.",
        "",
        f"| | {' | '.join(COLUMNS)} | CHAIR_i by seed |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for model in models:
        rows = [seed[model] for seed in seeds.values()]
        cells = [_cell([row[key] for row in rows if key in row]) for key in COLUMNS.values()]
        by_seed = ", ".join(f"{row['chair_i']:.1f}" for row in rows)
        lines.append(f"| {model} | {' | '.join(cells)} | {by_seed} |")
    mentions = [
        f"{model} " + ", ".join(f"{seed[model]['chair_i_mentions']:.1f}" for seed in seeds.values()) for model in models
    ]
    lines += [
        "",
        "CHAIR_i counts a digit once in each caption. Counted at every mention, so that the few captions which repeat",
        f"themselves up to the length limit weigh most, it is, by seed: {'; '.join(mentions)}.",
    ]
    return fill(text, "digits", lines)


def _cell(values: list[float]) -> str:
    return f"{mean(values):.1f}" if values else "–"


if __name__ == "__main__":
    rewrite(PAGE, updated)
