"""The study's page, against figures worked out by hand, and as it is committed."""

import json

from bench.scenes.page import COLUMNS, COMPARED, COMPARISONS, CUT_ROWS, RECORD, gap, markdown
from bench.scenes.readme import ROWS as ROWS_OF_README
from bench.scenes.readme import updated
from bench.scenes.study import ROWS


def results(offset: dict[str, float]) -> dict:
    """Three seeds that differ much, and rows that differ by the same in each."""
    scores = {*COLUMNS, "cut_chair_s", "cut_chair_i"}
    seeds = {
        str(seed): {row: dict.fromkeys(scores, 10.0 * seed + offset.get(row, 0.0)) for row in ROWS}
        for seed in (1, 2, 3)
    }
    about = {"pairs": 5, "scenes": 7, "minutes": 1.5, "cores": 2, "versions": {"torch": "2"}}
    return {"rows": dict.fromkeys(ROWS, ""), "seeds": seeds} | about


def test_differences_are_paired_by_seed():
    page = markdown(results({"mDPO": -2.0}))
    assert "| (mDPO) − (DPO) | **-2.0 ± 0.0** |" in page and "| (DPO) − (tuned) | +0.0 ± 0.0 |" in page
    assert "| mDPO | 18.0 ± 24.8 |" in page  # 10, 20, 30 less 2; t(0.975, 2) = 4.303, standard error 5.774


def test_what_is_compared_is_there():
    assert {row for pair in COMPARISONS for row in pair} | set(CUT_ROWS) <= set(ROWS)
    assert set(COMPARED) <= set(COLUMNS)


def test_bold_allows_for_all_tests_at_once():
    values, others = [1.0, 1.2, 1.4], [0.0, 0.0, 0.0]  # 1.2 ± 0.497 at 95%, ± 4.7 with 200 tests
    assert gap(values, others, 1) == "**+1.2 ± 0.5**"
    assert gap(values, others, 200) == "+1.2 ± 0.5"


def test_the_committed_page_is_made_of_the_committed_results():
    committed = json.loads(RECORD.read_text(encoding="utf-8"))
    assert markdown(committed) == RECORD.with_name("SCENES.md").read_text(encoding="utf-8")


def test_the_pages_block_is_made_of_the_committed_results():
    begin, end = "<!-- scenes: by whom -->\n", "<!-- /scenes -->"
    page = updated(f"before\n{begin}stale\n{end}\nafter\n")
    assert page.startswith(f"before\n{begin}|  | CHAIR_s") and page.endswith(f"{end}\nafter\n")
    assert "stale" not in page and all(f"\n| {row} |" in page for row in ROWS_OF_README)
