"""The study's page: from made-up results with each verdict, against figures worked out by hand, and as committed."""

import json

import pytest

from bench.scenes.claims import all_tests, together, verdict
from bench.scenes.page import COLUMNS, RECORD, REMARKED, REMARKS, markdown, write_page
from bench.scenes.readme import ROWS as ROWS_OF_README
from bench.scenes.readme import updated
from bench.scenes.rows import CORE, SHARP, SMALL, rows
from bench.scenes.scores import CUT, Comparison, Table, of_sections
from bench.study.report import read_remarks
from bench.study.statistics import Interval


def results(offsets: dict[tuple[str, str], float] | None = None, *, only=None) -> dict:
    """Three seeds that differ much, and rows that differ by almost the same in each. only: rows that were run."""
    scores = {*COLUMNS, "cut_chair_i", "tokens", "right: adversarial premise"}
    seeds: dict = {}
    for seed in (1, 2, 3):
        for row in only if only is not None else rows():
            value = 10.0 * seed + (offsets or {}).get((row.base, row.name), 0.0) * (1 + 0.001 * seed)
            own = scores if row.overrides is not None else {score for score in scores if not score.startswith("cut")}
            seeds.setdefault(str(seed), {}).setdefault(row.base, {})[row.name] = dict.fromkeys(own, value)
    about = {"minutes": 1.5, "cores": 2, "versions": {"torch": "2"}, "parameters": {"sharp": 730_000, "small": 400_000}}
    return {"size": {"pairs": 5, "scenes": 7}, "seeds": seeds} | about


def claim_of(page: str, start: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_differences_are_paired_by_seed():
    page = markdown(results({(SHARP, "mDPO"): -2.0}), {})
    assert "| (mDPO) − (DPO) | **-2.0 ± 0.0** | **-2.0 ± 0.0** |" in page
    assert "| (DPO) − (tuned) | +0.0 ± 0.0 |" in page
    assert "| mDPO | 3 | 18.0 ± 24.8 |" in page  # 10, 20, 30 less 2; t(0.975, 2) = 4.303, standard error 5.774


@pytest.mark.parametrize(
    ("gap", "expected", "found"),
    [
        (Interval(-2, 1), "less", "holds"),
        (Interval(-2, 2.1), "less", "not shown"),
        (Interval(2, 1), "less", "reversed"),
        (Interval(2, 1), "more", "holds"),
        (Interval(-2, 1), "more", "reversed"),
        (Interval(5, 6), "no less", "holds"),  # a gain of more than 3 points is outside
        (Interval(5, 9), "no less", "not shown"),
        (Interval(-6, 5), "no less", "reversed"),
        (Interval(1, 1.5), "alike", "holds"),
        (Interval(1, 2.5), "alike", "not shown"),
        (Interval(9, 5), "alike", "reversed"),
        (Interval(-9, float("nan")), "less", "not shown"),  # one seed shows nothing
        (None, "less", "not run"),
    ],
)
def test_verdicts(gap, expected, found):
    assert verdict(gap, expected) == found


def test_the_claims_table_says_what_became_of_each():
    offsets = {(SHARP, "mDPO"): -9.0, (SMALL, "mDPO"): 9.0, (SHARP, "mDPO - anchor"): -20.0}
    page = markdown(results(offsets), {"mdpo-tuned": "By the anchor."})
    assert claim_of(page, "mDPO makes up less than the tuned model") == [
        "mDPO makes up less than the tuned model", "2.11 → 2.96", "**-9.0 ± 0.0**", "**+9.0 ± 0.0**",
        "holds (sharp), reversed (small)", "By the anchor.",
    ]  # fmt: skip
    assert claim_of(page, "the anchor lowers what is made up")[2:5] == ["**+11.0 ± 0.0**", "–", "reversed (sharp)"]
    assert claim_of(page, "DPO makes up no less than the tuned model")[4] == "holds"
    assert "- On the sharp base mDPO is not shown to be better than both the tuned model and DPO" in page
    assert "(less made up than the tuned model: holds, less made up than DPO: holds, more looking" in page
    assert "| looking | **+9.0 ± 0.0** | **-9.0 ± 0.0** | **+18.0 ± 0.0** | holds |" in page


def test_a_gain_in_everything_is_said():
    seeds = results({(SMALL, "mDPO"): -9.0})
    for bases in seeds["seeds"].values():
        bases["small"]["mDPO"]["looking"] += 18.0
    assert "- On the small base mDPO is better than both the tuned model and DPO, in both scores" in markdown(seeds, {})


def test_bases_that_agree_are_named_once():
    assert together({"sharp": "holds", "small": "holds"}) == "holds"
    assert together({"sharp": "holds", "small": "not run"}) == "holds (sharp)"
    assert together({"sharp": "not run", "small": "not run"}) == "not run"


def test_a_study_that_was_stopped_has_a_page():
    page = markdown(results(only=CORE), {})
    assert claim_of(page, "a crop of 0-20% is better than MoCo v2's augmentation")[4] == "not run"
    assert "| mDPO, MoCo v2 | 0 | –" in page


def test_every_difference_counts_once():
    table = Table(results(only=[row for row in CORE if row.name in ("tuned", "DPO", "mDPO")])["seeds"])
    # On each base DPO and mDPO against tuned and mDPO against DPO, by CHAIR_s and by looking; both against captions
    # that were cut; the claims on cover and on false premises; and the two of the hypothesis.
    assert all_tests(table, of_sections()) == 2 * (3 * 2 + 2 + 2) + 2
    both_ways = iter([Comparison(SHARP, "mDPO", "DPO", "f1"), Comparison(SHARP, "DPO", "mDPO", "f1")])
    once = iter([Comparison(SHARP, "mDPO", "DPO", "f1")])
    assert all_tests(table, both_ways) == all_tests(table, once)


def test_a_row_is_compared_with_the_tuned_captions_cut():
    table = Table({"1": {SHARP: {"mDPO": {"chair_s": 40.0, "cut_chair_s": 43.0}}}})
    assert table.gaps(Comparison(SHARP, "mDPO", CUT, "chair_s")) == {"1": -3.0}


def test_seeds_without_a_row_take_no_part():
    table = Table({"1": {SHARP: {"mDPO": {"f1": 2.0}, "DPO": {"f1": 1.0}}}, "2": {SHARP: {"mDPO": {"f1": 9.0}}}})
    assert table.gaps(Comparison(SHARP, "mDPO", "DPO", "f1")) == {"1": 1.0}
    assert table.level(SHARP, "mDPO - anchor", "f1") is None


def test_every_picture_that_the_page_shows_is_drawn(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results(only=CORE)))
    page = write_page(tmp_path / "results.json").read_text(encoding="utf-8")
    shown = {part.partition("(")[2].partition(")")[0] for part in page.split("![")[1:]}
    assert shown == {path.name for path in tmp_path.glob("*.png")}


def test_reasons_are_of_claims():
    assert set(read_remarks(RECORD.with_name(REMARKS))) <= set(REMARKED)


def test_the_committed_page_is_made_of_the_committed_results():
    committed, reasons = json.loads(RECORD.read_text(encoding="utf-8")), read_remarks(RECORD.with_name(REMARKS))
    assert markdown(committed, reasons) == RECORD.with_name("SCENES.md").read_text(encoding="utf-8")


def test_the_pages_block_is_made_of_the_committed_results():
    begin, end = "<!-- scenes: by whom -->\n", "<!-- /scenes -->"
    page = updated(f"before\n{begin}stale\n{end}\nafter\n")
    assert page.startswith(f"before\n{begin}|  | base | CHAIR_s") and page.endswith(f"{end}\nafter\n")
    assert "stale" not in page
    assert all(f"\n| {row} | {base} |" in page for base, names in ROWS_OF_README.items() for row in names)
