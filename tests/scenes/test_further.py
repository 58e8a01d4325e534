"""The four claims on further seeds: the committed page is made of the committed results."""

import json

from bench.scenes.further import ASKED, ROWS, SEEDS, TESTS, markdown
from bench.scenes.page import RECORD


def test_what_is_asked_is_four_claims_of_both_bases():
    assert len(ASKED) == 4 and TESTS == 8
    assert {(row.base, row.name) for row in ROWS} == {
        (base, name) for base in ("sharp", "small") for name in ("tuned", "DPO", "mDPO")
    }


def test_the_committed_page_is_made_of_the_committed_results():
    results = json.loads(RECORD.with_name("further.json").read_text(encoding="utf-8"))
    assert [int(seed) for seed in results["seeds"]] == list(SEEDS)
    assert markdown(results) == RECORD.with_name("FURTHER.md").read_text(encoding="utf-8")
