"""The study's page: ``python -m bench.study.report FOLDER`` makes STUDY.md and its pictures from results.json again.

Every number on the page comes from results.json; what we make of them is in remarks.md beside it, if it is there.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.study.charts import draw_charts
from bench.study.items import CANDIDATES, CONFIRM_SEEDS, ITEMS, SEARCH_SEEDS, Item, as_dpo
from bench.study.results import NAME, Results, best_candidate, order, tuned
from bench.study.runs import Setting
from bench.study.statistics import Interval

HEADS = {
    "chair_i": "CHAIR_i ↓",
    "chair_s": "CHAIR_s ↓",
    "cover": "Cover ↑",
    "partner_rate": "partner rate ↓",
    "win_rate": "win rate ↑",
    "log_ratio": "log π/ρ of y_w",
    "accuracy": "all ↑",
}
REMARKS = "remarks.md"
INTRODUCTION = """\
The miniature world of `bench/digits` (handwritten digits on a 2×2 grid, pairs in which a style token gives the chosen
caption away nine times in ten), a LLaVA of 0.8M parameters, full fine-tuning of its language model by `mdpo train
configs/digits.yaml`. Every cell is a mean over seeds ± half of its 95% interval (Student's t over seeds); a seed has
its own preference pairs, its own test scenes and its own order. Differences are paired by seed. CHAIR_i: of the
digits named, those not in the picture; CHAIR_s: of the captions, those that name one; Cover: of the digits in the
picture, those named; partner rate: of the digits named, absent partners of some that are there; win rate: scenes with
fewer mistakes than the tuned model makes, ties half; all in percent. log π/ρ of the true captions of the test scenes,
in nats. The paper's numbers are of Bunny-v1.0-3B, a single run each: they are to be compared in their order, not in
their size."""


def write_report(folder: Path) -> Path:
    """Write STUDY.md and the pictures beside ``folder``'s results.json; returns the page."""
    results = Results.read(folder / NAME)
    remarks = read_remarks(folder / REMARKS)
    pictures = draw_charts(results, folder)
    page = folder / "STUDY.md"
    page.write_text(markdown(results, remarks, pictures), encoding="utf-8")
    return page


def read_remarks(path: Path) -> dict[str, str]:
    """The sections of a page by their headings, lines of a paragraph joined; none where there is no such page."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        found[heading.strip()] = "\n\n".join(" ".join(part.split()) for part in body.strip().split("\n\n"))
    return found


def markdown(results: Results, remarks: Mapping[str, str], pictures: Mapping[str, str]) -> str:
    """The page. remarks and pictures: by the item's name."""
    size = results.size
    hours = sum(run["seconds"] for run in results.runs) / 3600
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    lines = [
        "# The paper's tables, in miniature",
        "",
        INTRODUCTION,
        "",
        f"{len(results.runs)} runs, {size.scenes:,} unseen test scenes each, "
        f"{hours:.1f} core hours on a CPU of {results.cores} cores; {versions}. "
        "Made by `python -m bench.study`; do not edit.",
        "",
    ]
    if "story" in pictures:
        lines += [f"![what each training does to a model that reads digits]({pictures['story']})", ""]
    for item in (size.item(item) for item in ITEMS.values()):
        if results.has(item):
            lines += [f"## {item.title}", "", *_item(item, results, remarks, pictures)]
    searched = [size.setting(setting) for setting in CANDIDATES.values()]
    if all(results.find(setting, seed) for setting in searched for seed in size.of(SEARCH_SEEDS)):
        lines += ["## Does mDPO improve on the tuned model?", "", *_search(results), *_remark(remarks, "improve")]
    if "displacement" in pictures:
        lines += ["## Likelihood displacement", "", *_displacement(pictures), *_remark(remarks, "displacement")]
    return "\n".join(lines).rstrip() + "\n"


def _item(item: Item, results: Results, remarks: Mapping[str, str], pictures: Mapping[str, str]) -> list[str]:
    lines = [item.question, ""]
    if item.name in pictures:
        lines += [f"![{item.title}]({pictures[item.name]})", ""]
    lines += [f"{len(item.seeds)} seeds.", ""]
    return [*lines, *_table(item, results), "", *_order(item, results), *_remark(remarks, item.name)]


def _remark(remarks: Mapping[str, str], name: str) -> list[str]:
    return [remarks[name], ""] if name in remarks else []


def _table(item: Item, results: Results) -> list[str]:
    reference = next((row.setting for row in item.rows if row.label == item.reference), None)
    heads = [HEADS.get(score, score) for score in item.scores]
    heads = [*([f"paper: {item.paper_score}"] if item.paper_score else []), *heads]
    if reference is not None:
        heads.append(f"{HEADS.get(item.main_score, item.main_score).split()[0]} − that of {item.reference}")
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in item.rows:
        cells = ["–" if row.paper is None else f"{row.paper:.2f}"] if item.paper_score else []
        cells += [cell(results.interval(row.setting, score, item.seeds), score) for score in item.scores]
        if reference is not None:
            same = row.setting == reference
            cells.append(
                "" if same else gap_cell(results.difference(row.setting, reference, item.main_score, item.seeds))
            )
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return lines


def cell(value: Interval | None, score: str) -> str:
    """A score in a table."""
    if value is None:
        return "–"
    return value.text(2, signed=True) if score == "log_ratio" else value.text()


def gap_cell(value: Interval) -> str:
    """A difference, bold where its interval does not hold zero."""
    text = value.text(signed=True)
    return f"**{text}**" if value.excludes_zero else text


def _order(item: Item, results: Results) -> list[str]:
    verdicts = order(item, results)
    if not verdicts:
        return []
    listed = "; ".join(f"{pair}: {verdict}" for pair, verdict in verdicts)
    return [f"The paper's order, by {HEADS[item.main_score].split()[0]} here: {listed}.", ""]


def _search(results: Results) -> list[str]:
    size = results.size
    search, confirm = size.of(SEARCH_SEEDS), size.of(CONFIRM_SEEDS)
    best = best_candidate(results)
    lines = [f"Settings tried on seeds {search[0]}–{search[-1]}, mDPO against the tuned model:", ""]
    lines += ["| | CHAIR_i | CHAIR_s | CHAIR_i − tuned | CHAIR_s − tuned |", "|---" * 5 + "|"]
    for name, setting in CANDIDATES.items():
        cells = _against_tuned(results, size.setting(setting), search)
        lines.append(f"| {'**' + name + '**' if name == best else name} | {cells} |")
    chosen = size.setting(CANDIDATES[best])
    lines += ["", f"The best by CHAIR_s, on seeds {confirm[0]}–{confirm[-1]} with their own pairs and test scenes:", ""]
    lines += ["| | CHAIR_i | CHAIR_s | CHAIR_i − tuned | CHAIR_s − tuned |", "|---" * 5 + "|"]
    base = tuned(chosen)
    levels = [cell(results.interval(base, score, confirm), score) for score in ("chair_i", "chair_s")]
    lines.append(f"| tuned | {' | '.join(levels)} | | |")
    for label, setting in (("DPO", as_dpo(chosen)), ("mDPO", chosen)):
        lines.append(f"| {label} | {_against_tuned(results, setting, confirm)} |")
    against_dpo = {
        score: gap_cell(results.difference(chosen, as_dpo(chosen), score, confirm))
        for score in ("chair_i", "chair_s", "cover", "win_rate")
    }
    listed = ", ".join(f"{HEADS[score].rstrip(' ↓↑')} {gap}" for score, gap in against_dpo.items())
    lines += ["", f"mDPO − DPO on these seeds: {listed}."]
    gap = results.difference(chosen, base, "chair_s", confirm)
    found = gap.mean < 0 and gap.excludes_zero
    return [
        *lines,
        "",
        f"A setting in which mDPO improves on the tuned model: {'found' if found else 'not found'}.",
        "",
    ]


def _against_tuned(results: Results, setting: Setting, seeds: Sequence[int]) -> str:
    values = [cell(results.interval(setting, score, seeds), score) for score in ("chair_i", "chair_s")]
    gaps = [gap_cell(results.difference(setting, tuned(setting), score, seeds)) for score in ("chair_i", "chair_s")]
    return " | ".join([*values, *gaps])


def _displacement(pictures: Mapping[str, str]) -> list[str]:
    return [
        "log π/ρ of the chosen and the rejected captions of the training pairs, mean over seeds, 95% interval shaded.",
        "",
        f"![log π/ρ over training]({pictures['displacement']})",
        "",
    ]


if __name__ == "__main__":
    print(write_report(Path(sys.argv[1])))
