"""The study's page: ``python -m bench.scenes.page FOLDER`` makes SCENES.md and its pictures from results.json again.

Every number and every verdict on it comes from results.json; the reasons are in remarks.md beside it, if it is there.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench.scenes.claims import ALIKE, CLAIMS, GAINS, HYPOTHESIS, Verdict, all_tests, gains, together, verdict
from bench.scenes.figures import draw_figures
from bench.scenes.questions import KINDS
from bench.scenes.rows import SECTIONS, SHARP, SMALL, Section
from bench.scenes.scores import COMPARED, CUT, Comparison, Table, cell, head, of_sections
from bench.study.report import read_remarks
from mdpo.outputs import write_text

RECORD = Path(__file__).parents[1] / "results" / "scenes" / "results.json"
REMARKS = "remarks.md"
COLUMNS = {
    "chair_s": "CHAIR_s ↓",
    "chair_i": "CHAIR_i ↓",
    "cover": "cover ↑",
    "f1": "F1 ↑",
    "length": "length",
    "looking": "looking ↑",
    "sight": "errors of sight",
    "prior": "errors of the prior",
    "log_ratio": "log π/ρ of y_w",
    "log_ratio_crop": "the same on a crop",
    "cut_chair_s": "cut tuned: CHAIR_s",
}
REMARKED = ("hypothesis", "questions", "costs", *(claim.key for claim in CLAIMS))
"""What remarks.md may have a section of."""
EFFECTS = ("chair_s", "chair_i", "cover", "f1", "looking")
"""What stands beside the cost."""
ASKED = ("tuned", "DPO", "mDPO", "mDPO - conditional")
INTRODUCTION = """\
The miniature world of `bench/scenes`: pictures of emoji on a theme, and LLaVAs tuned on captions whose writer
also named what such scenes usually have. Of several captions that the tuned model gives to a picture, a noisy
judge that likes length chooses one and rejects one (`mdpo sample`, `rank`, `pairs`); the language model is
trained whole on these pairs by `mdpo train configs/scenes.yaml` with the row's overrides, and captions unseen
pictures greedily. A seed has its own pairs, order, rejected images and test scenes. There are two tuned models,
so that nothing hangs on one: the *sharp* base sees well, the *small* one has a poorer tower and looks less. No
setting was chosen on these seeds.

CHAIR_s: of the captions, those that name something the picture does not show; CHAIR_i: of the things named,
each once a caption, those not shown, which are errors of the prior where they belong to the scene's theme and
else of sight; cover: of the things shown, those named; F1 of cover and 100 − CHAIR_i; looking: how much CHAIR_i
grows where the captions of other pictures of the same theme stand in for the picture's own, 0 for a model that
does not look; all in percent or points of it. log π/ρ of held-out chosen captions, with their picture and on a
crop of it, in nats. Cut tuned: the tuned model's own captions, cut after so many things that they cover as much
as the row's (between two numbers of things a straight line is drawn; captions that cover less as they are stay
whole): what saying less brings by itself."""
INTERVALS = """\
Means over seeds ± half of the 95% interval (Student's t); differences are paired by seed. **Bold**: beyond the
interval that holds for all {tests} differences of this page at once (Bonferroni: {confidence:.3f}% each)."""
VERDICTS = """\
A claim *holds* where the difference is beyond that interval, and is *reversed* where it is so the other way
round; "no less" and "as much" hold where the whole interval is on the right side of {alike:g} points.
Everything else is *not shown*. The paper's numbers are of Bunny-v1.0-3B, one run each, MMHalBench's score where
nothing else is said."""


def write_page(results: Path) -> Path:
    """Writes SCENES.md and its pictures beside the results; returns the page."""
    found = json.loads(results.read_text(encoding="utf-8"))
    page = results.with_name("SCENES.md")
    draw_figures(Table(found["seeds"]), results.parent)
    write_text(page, markdown(found, read_remarks(results.with_name(REMARKS))))
    return page


def over_seeds(names: Sequence[str]) -> str:
    """What the committed study says of these rows of the sharp base, in a sentence: one seed by itself says little."""
    table = Table(json.loads(RECORD.read_text(encoding="utf-8"))["seeds"])
    found = [(name, table.level(SHARP, name, "chair_s")) for name in names]
    shares = ", ".join(f"{name} {cell(value)}" for name, value in found if value)
    return f"Over the {len(table.seeds)} seeds of bench/results/scenes/SCENES.md CHAIR_s is: {shares}."


def markdown(results: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """The page. reasons: by a claim's key."""
    table = Table(results["seeds"])
    tests = all_tests(table, of_sections())
    lines = [
        "# mDPO in the world of scenes", "", INTRODUCTION, "", _about(results), "",
        INTERVALS.format(tests=tests, confidence=100 * (1 - 0.05 / tests)), "",
        "## The paper's claims", "", VERDICTS.format(alike=ALIKE), "", *_aim(table, tests), "",
        *_claims(table, reasons, tests), "",
        "## Who looks less gains more", "", HYPOTHESIS, "", *_hypothesis(table, tests), "",
        *_reason(reasons, "hypothesis"),
    ]  # fmt: skip
    for section in SECTIONS:
        lines += _section(section, table, tests)
    lines += ["## Table 5: by kind of question", "", *_questions(table), "", *_reason(reasons, "questions")]
    lines += ["## What it costs", "", *_costs(table), "", *_reason(reasons, "costs")]
    return "\n".join(lines)


def _about(results: Mapping[str, Any]) -> str:
    size, seeds = results["size"], list(results["seeds"])
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    bases = ", ".join(f"{name} {count / 1e6:.2f}M parameters" for name, count in results["parameters"].items())
    return (
        f"{len(seeds)} seeds ({', '.join(seeds)}), or fewer where a column n says so; {size['pairs']} scenes for pairs "
        f"and {size['scenes']} unseen test scenes each; {bases}; {results['minutes']} minutes of rows in all, on a CPU "
        f"of {results['cores']} cores that did other work too; {versions}. Made by `python -m bench.scenes.study`; do "
        "not edit."
    )


def _aim(table: Table, tests: int) -> Iterator[str]:
    """Whether mDPO is better than the tuned model and than DPO, in what is made up and in looking at once."""
    told = {"chair_s": "less made up", "looking": "more looking"}
    for base, kind in ((SHARP, ""), (SHARP, ", LoRA"), (SMALL, "")):
        found = {}
        others = {"tuned": "the tuned model", f"DPO{kind}": "DPO"}
        for (score, expected), (other, than) in product(GAINS.items(), others.items()):
            gap = table.gap(Comparison(base, f"mDPO{kind}", other, score), tests)
            found[f"{told[score]} than {than}"] = verdict(gap, expected)
        shown = "is better" if set(found.values()) == {"holds"} else "is not shown to be better"
        listed = ", ".join(f"{what}: {each}" for what, each in found.items())
        trained = "mDPO with LoRA" if kind else "mDPO"
        yield f"- On the {base} base {trained} {shown} than both the tuned model and DPO, in both scores ({listed})."


def _claims(table: Table, reasons: Mapping[str, str], tests: int) -> Iterator[str]:
    yield from head("claim", ("paper", "here (sharp)", "here (small)", "verdict", "reason"))
    for claim in CLAIMS:
        found = {base: table.gap(claim.on(base), tests) for base in (SHARP, SMALL)}
        verdicts: dict[str, Verdict] = {base: verdict(gap, claim.expected) for base, gap in found.items()}
        cells = [_gap(table, claim.on(base), tests) for base in found]
        told = [together(verdicts), reasons.get(claim.key, "–")]
        yield f"| {' | '.join([claim.text, claim.paper or '–', *cells, *told])} |"


def _hypothesis(table: Table, tests: int) -> Iterator[str]:
    yield "![what mDPO gives to bases that look more and less](looking.png)"
    yield ""
    yield from head("mDPO − tuned", ("small base", "sharp base", "small − sharp", "verdict"))
    for score, expected in GAINS.items():
        small, sharp = gains(score)
        gap = table.other_gap(small, sharp, tests)
        sure = gap is not None and gap.excludes_zero
        more = cell(table.other_gap(small, sharp), signed=True, sure=sure)
        cells = [_gap(table, small, tests), _gap(table, sharp, tests), more, verdict(gap, expected)]
        yield f"| {COMPARED[score]} | {' | '.join(cells)} |"


def _reason(reasons: Mapping[str, str], key: str) -> list[str]:
    return [reasons[key], ""] if key in reasons else []


def _section(section: Section, table: Table, tests: int) -> list[str]:
    lines = [f"## {section.title}", "", section.question, ""]
    if section.figure:
        lines += [f"![{section.title}]({section.figure}.png)", ""]
    lines += head("", ["n", *COLUMNS.values(), "CHAIR_s − cut tuned"])
    for name in section.rows:
        count = len(table.by_seed(section.base, name, "chair_s"))
        levels = [cell(table.level(section.base, name, score)) for score in COLUMNS]
        cut = _gap(table, Comparison(section.base, name, CUT, "chair_s"), tests)
        lines.append(f"| {name} | {count} | {' | '.join([*levels, cut])} |")
    pairs = [(name, other) for name in section.rows for other in section.against(name)]
    if pairs:
        lines += ["", *head("row − other", COMPARED.values())]
    for name, other in pairs:
        gaps = [_gap(table, Comparison(section.base, name, other, score), tests) for score in COMPARED]
        lines.append(f"| ({name}) − ({other}) | {' | '.join(gaps)} |")
    return [*lines, ""]


def _questions(table: Table) -> Iterator[str]:
    """The paper's Table 5."""
    yield (
        "Of the answers to questions about test scenes, those that are right, %. An adversarial premise asks where "
        "something is that the picture does not show, and that such scenes usually have. All pairs are captions: what "
        "becomes of the answers is carried over. The paper: mDPO gains most on adversarial questions (1.50 → 4.17)."
    )
    for base in (SHARP, SMALL):
        yield ""
        yield from head(f"{base} base", ["n", *KINDS])
        for name in ASKED:
            scores = [f"right: {kind}" for kind in KINDS]
            levels = [cell(table.level(base, name, score)) for score in scores]
            yield f"| {name} | {len(table.by_seed(base, name, scores[0]))} | {' | '.join(levels)} |"


def _costs(table: Table) -> Iterator[str]:
    """The rows of the sharp base that are trained on its pairs, the cheapest first."""
    yield (
        "Tokens computed per pair, as the planner of `mdpo train` counts packed rows: each picture's prompt once, and "
        "each answer with each picture that it is read with. A prompt with its picture is about as long as an answer "
        "here, so that answers weigh more than in real data."
    )
    yield ""
    yield from head("", ("tokens a pair", *(COLUMNS[score] for score in EFFECTS)))
    names = dict.fromkeys(name for section in SECTIONS if section.base == SHARP for name in section.rows)
    costs = {name: cost for name in names if (cost := table.level(SHARP, name, "tokens")) is not None}
    for name in ("tuned", *sorted(costs, key=lambda name: costs[name].mean)):
        tokens = f"{costs[name].mean:.0f}" if name in costs else "–"
        yield f"| {name} | {tokens} | {' | '.join(cell(table.level(SHARP, name, score)) for score in EFFECTS)} |"


def _gap(table: Table, comparison: Comparison, tests: int) -> str:
    sure = table.gap(comparison, tests)
    return cell(table.gap(comparison), signed=True, sure=sure is not None and sure.excludes_zero)


if __name__ == "__main__":
    print(write_page(Path(sys.argv[1]) / "results.json"))
