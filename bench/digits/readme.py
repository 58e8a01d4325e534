"""Writes the demo's committed numbers into the README: ``python -m bench.digits.readme``."""

import json
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "digits" / "demo.json"
BEGIN, END = "bench/results/digits/demo.json -->\n", "<!-- /digits -->"
COLUMNS = {
    "CHAIR_i": "chair_i", "CHAIR_s": "chair_s", "Cover": "cover", "partner rate": "partner_rate", "log π/ρ": "log_ratio",
}  # fmt: skip


def updated(readme: str) -> str:
    """The README with its table made anew from the JSON."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    seeds = results["seeds"]
    models = list(next(iter(seeds.values())))
    lines = [
        f"Means over {len(seeds)} seeds, {results['pairs']:,} preference pairs, {results['scenes']:,} unseen test scenes "
        "(CHAIR: digits named that are not in the picture, of the digits named, each once a caption, and of the captions; %):",
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
        f"CHAIR_i over all mentions instead, by seed: {'; '.join(mentions)}. There the few captions that repeat",
        "themselves to the length limit weigh most.",
    ]
    start, stop = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    return readme[:start] + "\n".join(lines) + "\n" + readme[stop:]


def _cell(values: list[float]) -> str:
    return f"{mean(values):.1f}" if values else "–"


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
