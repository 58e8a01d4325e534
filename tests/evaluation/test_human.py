"""The raters' sheet is blind and self-contained; its tally gives each side its due."""

import json
import re

import pytest

from mdpo import InputError
from mdpo.data import PromptRow, read_rows
from mdpo.evaluation.human import ANSWER_SCHEMA, make_sheet, tally, write_sheet
from mdpo.evaluation.intervals import wilson
from tests import tiny

NAMES = ("base-model", "mdpo-model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("human")
    data = folder / "data.json"
    data.write_text(json.dumps(tiny.records(folder, 24)))
    return read_rows(data, kind=PromptRow)


def sheet_of(rows, seed=0):
    first = {row.id: f"first {row.id}" for row in rows}
    second = {row.id: "</script><script>alert(1)</script>" + row.id for row in rows}
    return make_sheet(rows, first, second, names=NAMES, seed=seed)


def items(sheet):
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', sheet.html, re.DOTALL)
    return json.loads(content)["items"]


def test_the_sheet_is_blind_shuffled_and_repeatable(rows):
    sheet = sheet_of(rows)
    assert sheet == sheet_of(rows)
    assert not any(name in sheet.html for name in NAMES)
    swapped = [sheet.key["swapped"][item["id"]] for item in items(sheet)]
    assert {True, False} == set(swapped)
    for item in items(sheet):
        assert item["left"].startswith("first") != sheet.key["swapped"][item["id"]]
        assert item["images"][0].startswith("data:image/jpeg;base64,")
        assert item["question"] == "what is this?"
    order = [item["id"] for item in items(sheet)]
    assert order != [row.id for row in rows] and sorted(order) == sorted(row.id for row in rows)
    assert sheet_of(rows, seed=1).key["swapped"] != sheet.key["swapped"]


def test_the_sheet_fetches_nothing_and_answers_cannot_break_out(rows):
    html = sheet_of(rows).html
    assert "default-src 'none'" in html
    assert not re.search(r'(src|href)="?http', html)
    assert html.count("<script") == 2


def answers(path, sheet, choose):
    content = {"schema": ANSWER_SCHEMA, "sheet": sheet.key["sheet"], "answers": choose}
    path.write_text(json.dumps(content))
    return path


def second_side(sheet, id):
    return "left" if sheet.key["swapped"][id] else "right"


def test_tally(rows, tmp_path):
    sheet = sheet_of(rows)
    key = write_sheet(tmp_path / "sheet.html", sheet)
    ids = [row.id for row in rows]
    other = {"left": "right", "right": "left"}
    choices = {id: second_side(sheet, id) for id in ids[:12]}
    choices |= dict.fromkeys(ids[12:18], "tie") | {id: other[second_side(sheet, id)] for id in ids[18:20]}
    result = tally(key, [answers(tmp_path / "one.json", sheet, choices)])
    assert [metric.value for metric in result.metrics] == pytest.approx([60, 30, 10])
    assert result.counts == {"questions": 20, "raters": 1, "unanswered": 4}
    assert "questions without an answer: 4 (row20" in result.warnings[0]
    assert result.metrics[0].interval == [bound * 100 for bound in wilson(12, 20)]
    again = answers(tmp_path / "two.json", sheet, {ids[0]: "tie"})
    both = tally(key, [tmp_path / "one.json", again])
    assert both.metrics[0].value == pytest.approx(11.5 / 20 * 100), "two raters of one question are one question"


def test_bad_input_is_named(rows, tmp_path):
    sheet = sheet_of(rows)
    key = write_sheet(tmp_path / "sheet.html", sheet)
    with pytest.raises(InputError, match=r"base-model has no answer to 24 \(row0, "):
        make_sheet(rows, {}, {}, names=NAMES)
    with pytest.raises(InputError, match="answers another sheet"):
        tally(key, [answers(tmp_path / "a.json", sheet_of(rows, seed=1), {"row0": "tie"})])
    with pytest.raises(InputError, match="'row99': 'tie' is not an answer"):
        tally(key, [answers(tmp_path / "b.json", sheet, {"row99": "tie"})])
    with pytest.raises(InputError, match="'row0': 'both' is not an answer"):
        tally(key, [answers(tmp_path / "c.json", sheet, {"row0": "both"})])
    with pytest.raises(InputError, match="no question was answered"):
        tally(key, [answers(tmp_path / "d.json", sheet, {})])
    with pytest.raises(InputError, match="not the key of a sheet"):
        tally(tmp_path / "d.json", [])
    with pytest.raises(InputError, match="not a file of answers"):
        tally(key, [key])


def test_wilsons_interval():
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    assert wilson(0, 5).low == 0 < wilson(0, 5).high
    with pytest.raises(ValueError, match="6 of 5"):
        wilson(6, 5)


def test_half_a_surrogate_pair_in_an_answer_is_written_as_an_escape(rows, tmp_path):
    first = {row.id: "half \ud800" for row in rows}
    sheet = make_sheet(rows, first, {row.id: "whole" for row in rows}, names=NAMES)
    key = write_sheet(tmp_path / "sheet.html", sheet)
    assert "half" in (tmp_path / "sheet.html").read_text(encoding="utf-8") and json.loads(
        key.read_text(encoding="utf-8")
    )
