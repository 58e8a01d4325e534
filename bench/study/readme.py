"""Writes the study's committed numbers into bench/README.md: ``python -m bench.study.readme``."""

from bench.blocks import ROOT, fill, rewrite
from bench.study.items import CANDIDATES, CONFIRM_SEEDS, FIGURE_1, as_dpo
from bench.study.report import HEADS, cell, gap_cell
from bench.study.results import NAME, Results, best_candidate, tuned

RESULTS = ROOT / "bench" / "study" / "results" / NAME
PAGE = "bench/README.md"
SCORES = ("chair_i", "chair_s", "cover", "win_rate", "log_ratio")


def updated(text: str) -> str:
    """The page's text with its block made anew from the results."""
    results = Results.read(RESULTS)
    return fill(text, "study", table(results))


def table(results: Results) -> list[str]:
    """Figure 1 with its error bars, and what the best rejected image came to on fresh seeds."""
    item = results.size.item(FIGURE_1)
    reference = next(row.setting for row in item.rows if row.label == item.reference)
    lines = [
        "| | " + " | ".join(HEADS[score] for score in SCORES) + f" | CHAIR_s − {item.reference}'s |",
        "|---" * (len(SCORES) + 2) + "|",
    ]
    for row in item.rows:
        cells = [cell(results.interval(row.setting, score, item.seeds), score) for score in SCORES]
        same = row.setting == reference
        gap = "" if same else gap_cell(results.difference(row.setting, reference, "chair_s", item.seeds))
        lines.append(f"| {row.label} | {' | '.join(cells)} | {gap} |")
    return [*lines, "", f"Means over {len(item.seeds)} seeds ± half of the 95% interval.", *_improved(results)]


def _improved(results: Results) -> list[str]:
    name = best_candidate(results)
    best, seeds = results.size.setting(CANDIDATES[name]), results.size.of(CONFIRM_SEEDS)
    gap = results.difference(best, tuned(best), "chair_s", seeds)
    verdict = "is better than" if gap.mean < 0 and gap.excludes_zero else "is not shown to be better than"
    dpo = results.difference(best, as_dpo(best), "chair_s", seeds)
    return [
        f"With “{name}” mDPO {verdict} the tuned model on the {len(seeds)} seeds that had no part in choosing that "
        f"setting: CHAIR_s {gap_cell(gap)} against it, {gap_cell(dpo)} against DPO."
    ]


if __name__ == "__main__":
    rewrite(PAGE, updated)
