"""Runs and the whole study at toy size: real training, real files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.study import charts, items, runs
from bench.study.__main__ import study
from bench.study.report import REMARKS, markdown, read_remarks
from bench.study.results import NAME, Results, order
from bench.study.runs import Run, Setting, execute, read_result
from bench.study.size import Size

pytestmark = pytest.mark.slow

SETTING = Setting(overrides=("--max_steps", "2", "--logging_steps", "1"), pairs=40)
RUN = Run(setting=SETTING, seed=0, scenes=12)
RESULTS = Path(__file__).parents[2] / "bench" / "study" / "results"


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    execute(RUN.baseline(), folder)
    execute(RUN, folder)
    return folder


def test_a_run_is_kept(out):
    result = read_result(RUN, out)
    assert result is not None
    assert {"chair_i", "chair_s", "cover", "partner_rate", "win_rate", "log_ratio"} <= set(result["scores"])
    assert [row["step"] for row in result["history"]] == [1, 2]
    assert result["history"][0]["chosen"] == 0.0  # policy and reference are the same before the first update
    assert not RUN.path(out).with_suffix("").exists()  # data and weights are gone


def test_the_tuned_model_ties_with_itself(out):
    result = read_result(RUN.baseline(), out)
    assert result is not None and result["scores"]["win_rate"] == 50.0
    assert "log_ratio" not in result["scores"]


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, seed=1),
        replace(RUN, scenes=13),
        replace(RUN, setting=replace(SETTING, pairs=41)),
        replace(RUN, setting=replace(SETTING, style_probability=0.5)),
        replace(RUN, setting=replace(SETTING, overrides=())),
    ],
)
def test_what_a_run_depends_on_is_in_its_name(out, other):
    assert read_result(other, out) is None


def test_another_crop_for_the_reference_moves_the_image_margin_alone(out):
    """At step 0 policy and reference agree on both answers, and disagree on the crop that only one of them saw."""
    run = replace(RUN, setting=replace(SETTING, other_crop=True))
    execute(run, out)
    result = read_result(run, out)
    assert result is not None
    first = result["history"][0]
    assert abs(first["chosen"]) < 1e-3 and abs(first["rejected"]) < 1e-3
    assert abs(first["imageless_chosen"]) > 0.01


def test_an_interrupted_study_goes_on_and_reports(tmp_path):
    size = Size(seeds=2, scenes=12, shrink=40)
    assert study(["figure-1"], size, tmp_path, workers=2)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(times) == 2 * len(items.FIGURE_1.rows)
    victim = next(iter(times))
    victim.unlink()
    assert study(["figure-1"], size, tmp_path, workers=2)
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {victim}
    page = (tmp_path / "STUDY.md").read_text()
    assert "Figure 1" in page and "| mDPO | 2.96 |" in page and "Table 2" not in page
    assert (tmp_path / "story.png").is_file()


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys):
    size = Size(seeds=1, scenes=12, shrink=40)
    run = size.run(size.setting(items.MDPO), 0)
    log = run.path(tmp_path).with_suffix(".log")
    log.mkdir(parents=True)  # a folder where the log of one run should be written
    assert not study(["figure-1"], size, tmp_path, workers=1)
    assert str(log) in capsys.readouterr().err
    assert len(list((tmp_path / "runs").glob("*.json"))) == len(items.FIGURE_1.rows) - 1
    assert "Figure 1" not in (tmp_path / "STUDY.md").read_text()  # rather than a table with a hole


def _results(scores: dict[str, list[float]], item: items.Item = items.FIGURE_1) -> Results:
    size = Size(seeds=3)
    entries = []
    for row in item.rows:
        for seed, value in enumerate(scores[row.label]):
            run = runs.asdict(size.run(row.setting, seed))
            entries.append(json.loads(json.dumps(run | {"scores": {"chair_s": value}, "history": [], "seconds": 1.0})))
    return Results(size=size, versions={}, cores=1, runs=entries)


def test_the_papers_order_is_judged_by_paired_intervals():
    results = _results(
        {
            "tuned": [20, 30, 25],
            "DPO": [21, 29, 26],
            "DPO, no image": [0, 0, 0],
            "mDPO": [10.0, 20.2, 15.1],
            "mDPO, random image": [0, 0, 0],
        }
    )
    assert dict(order(results.size.item(items.FIGURE_1), results)) == {
        "DPO > tuned": "reversed in the mean only",
        "mDPO > tuned": "agrees beyond the 95% interval",
        "mDPO > DPO": "agrees beyond the 95% interval",
    }


def test_the_committed_page_is_made_of_the_committed_results(tmp_path):
    results = Results.read(RESULTS / NAME)
    remarks = read_remarks(RESULTS / REMARKS)
    pictures = {path.stem: path.name for path in RESULTS.glob("*.png")}
    assert markdown(results, remarks, pictures) == (RESULTS / "STUDY.md").read_text(encoding="utf-8")


def test_a_new_row_is_drawn_without_a_colour_of_its_own(tmp_path, monkeypatch):
    added = items.Row("mDPO, twice", replace(items.MDPO, pairs=1))
    longer = replace(items.FIGURE_1, rows=(*items.FIGURE_1.rows, added))
    monkeypatch.setitem(items.ITEMS, "figure-1", longer)
    results = _results({row.label: [1.0, 2.0, 3.0] for row in longer.rows}, longer)
    assert charts.draw_charts(results, tmp_path) == {"story": "story.png"}


def test_results_are_read_back_as_written(tmp_path):
    results = _results({row.label: [1.0, 2.0, 3.0] for row in items.FIGURE_1.rows})
    (tmp_path / NAME).write_text(results.to_json())
    assert Results.read(tmp_path / NAME).to_json() == results.to_json()
