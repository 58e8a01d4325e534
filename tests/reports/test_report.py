"""The report: figures and intervals counted by hand, runs that cannot be compared, and a page that fetches nothing."""

import base64
import json
import re
import sys

import pytest

from mdpo import InputError
from mdpo.commands import program
from mdpo.evaluation.intervals import Interval, bootstrap_difference, bootstrap_ratio
from mdpo.evaluation.results import Metric, Response, Result
from mdpo.reports import compare, load_run, write_report
from mdpo.reports.charts import curves
from mdpo.reports.examples import choose, marked_html, unmarked
from mdpo.reports.runs import Run

TYPES = ("attribute", "counting")


def result(hallucinated, *, variant="official algorithm", ids=None, warnings=(), grouped="", text="a {} & <b>"):
    """A result whose responses have ten mentions each, so many of them hallucinated."""
    responses = [
        Response(
            (ids or range(100))[index],
            text.format("dogs " * count),
            {"hallucinated": float(count), "mentions": 10.0},
            "What is <here>?",
            ["dog"] * count,
            TYPES[index % 2],
            "Rating: 3",
        )
        for index, count in enumerate(hallucinated)
    ]
    responses = [Response(str(r.id), r.text, r.numbers, r.question, r.marked, r.group, r.note) for r in responses]
    value = sum(hallucinated) / len(hallucinated) * 10
    metric = Metric.of("CHAIR", value, "lower", "hallucinated/mentions", "hallucinated mentions / mentions")
    undefined = Metric.of("Recall", float("nan"), "higher", "hallucinated/mentions", "nothing")
    return Result(
        "AMBER", variant, [metric, undefined], responses, {"responses": len(responses)}, list(warnings), grouped
    )


def run_of(name, *results, history=()):
    return Run(name, list(history), {(each.benchmark, each.variant): each for each in results})


HISTORY = [
    {"step": 1, "loss": 2.0, "rewards/margins": 0.0},
    {"step": 2, "loss": float("nan"), "rewards/margins": 0.5},
    {"step": 3, "loss": 1.0, "rewards/margins": 1.0, "eval_loss": 1.5},
]


def test_a_change_is_better_worse_or_unclear():
    before, after = run_of("before", result([4] * 20)), run_of("after", result([1] * 20))
    (comparison,) = compare([before, after])
    first, second = comparison.rows[0].cells
    assert (first.value, first.interval, first.change) == (40, Interval(40, 40), None)
    assert second.change is not None
    assert (second.change.value, second.change.verdict) == (-30, "better")
    assert compare([after, before])[0].rows[0].cells[1].change.verdict == "worse"
    mixed = run_of("mixed", result([3, 5] * 10))
    assert compare([before, mixed])[0].rows[0].cells[1].change.verdict == "no clear change"
    assert [cell.value for cell in comparison.rows[1].cells] == [None, None], "undefined stays undefined"


def test_variants_are_never_mixed():
    runs = [run_of("a", result([1])), run_of("b", result([1], variant="corrected"))]
    assert [comparison.variant for comparison in compare(runs)] == ["official algorithm", "corrected"]
    assert [[cell.value for cell in each.rows[0].cells] for each in compare(runs)] == [[10, None], [None, 10]]


def test_other_questions_give_no_difference():
    (comparison,) = compare([run_of("a", result([1, 2])), run_of("b", result([1, 2], ids=[7, 8]))])
    assert comparison.rows[0].cells[1].change is None
    assert any("different questions" in note for note in comparison.notes)


def test_a_warning_names_the_runs_that_it_is_about():
    both = [run_of("a", result([1], warnings=["partial"])), run_of("b", result([1], warnings=["partial", "odd"]))]
    assert compare(both)[0].notes == ["partial", "b: odd"]


def test_intervals():
    assert bootstrap_ratio([], []) is None
    assert bootstrap_ratio([0, 0], [0, 0]) is None
    low, high = bootstrap_ratio([0, 1] * 50, [1] * 100, scale=100) or (0, 0)
    assert 38 < low < 42 and 58 < high < 62, "10 points either way: two standard errors of half of a hundred"
    assert bootstrap_ratio([0, 1] * 50, [1] * 100) == bootstrap_ratio([0, 1] * 50, [1] * 100)
    hard = ([0, 1] * 50, [1] * 100)
    assert bootstrap_difference(hard, hard) == (0, 0), "what is hard for both is not doubt about the difference"
    with pytest.raises(ValueError, match="differ in number"):
        bootstrap_difference(hard, ([1], [1]))


def test_hallucinated_words_are_marked_and_text_is_escaped():
    response = Response(
        "1", "Dogs & a <dog>; two traffic  lights, hotdog", {}, marked=["dog", "traffic light", "mouse"]
    )
    assert marked_html(response) == (
        "<mark>Dogs</mark> &amp; a &lt;<mark>dog</mark>&gt;; two <mark>traffic  lights</mark>, hotdog"
    )
    assert unmarked(response) == ["mouse"]
    assert len(marked_html(Response("1", "x" * 5000, {}))) < 1300


def test_examples_show_what_got_worse_too():
    (comparison,) = compare([run_of("a", result([5, 1, 2, 0, 3])), run_of("b", result([0, 1, 4, 0, 2]))])
    assert [(example.id, example.gain) for example in choose(comparison)] == [("0", 5), ("4", 1), ("2", -2)]


@pytest.fixture
def folders(tmp_path):
    for name, counts in (("before", [4, 3, 4, 2]), ("after", [1, 0, 2, 1])):
        folder = tmp_path / name
        folder.mkdir()
        result(counts, grouped="CHAIR", text="</script><script>{}").write(folder / "amber.json")
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "after" / "checkpoint-3").mkdir()
    (tmp_path / "after" / "checkpoint-3" / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    return tmp_path


def report(*arguments):
    options = program().parse_args(["report", *map(str, arguments)])
    options.run(options)


def test_the_report_of_two_runs(folders):
    report(folders / "before", folders / "after", "--output", folders / "out" / "r.html")
    page = (folders / "out" / "r.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "<script" not in page.replace("&lt;script", "")
    assert not re.search(r'(?:src|href)="(?!data:)', page), "nothing is fetched"
    assert 'name="viewport"' in page
    assert "after against before" in page
    assert "32.5%" in page and "10.0%" in page and "−22.5 better" in page
    assert "<mark>dogs</mark>" in page
    charts = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(charts) == 4, "figures, question types, loss, margins"
    assert all(b"<svg" in base64.b64decode(chart) for chart in charts)
    assert (folders / "out" / "r.png").read_bytes().startswith(b"\x89PNG")
    text = (folders / "out" / "r.md").read_text(encoding="utf-8")
    assert "| CHAIR ↓ | **32.5%** [" in text
    assert "-22.5 [" in text
    assert "| after | 3 | 2.0000 | 1.0000 |" in text
    assert "](<r.png>)" in text


def test_the_same_runs_give_the_same_page(folders):
    runs = [load_run(folders / "before"), load_run(folders / "after")]
    write_report(runs, folders / "a.html")
    write_report(runs, folders / "b.html")
    assert (folders / "a.html").read_bytes() == (folders / "b.html").read_bytes()


def test_a_run_alone_and_a_run_without_results(folders):
    report(folders / "before", "--output", folders / "one.html", "--title", "Bare <model>")
    page = (folders / "one.html").read_text(encoding="utf-8")
    assert "Bare &lt;model&gt;" in page
    assert "Answers that changed most" not in page
    (folders / "after" / "amber.json").unlink()
    report(folders / "after", "--output", folders / "trained.html")
    assert "Training" in (folders / "trained.html").read_text(encoding="utf-8")


def test_curves_leave_out_what_is_not_finite(folders):
    run = load_run(folders / "after")
    assert run.curve("loss") == ([1.0, 3.0], [2.0, 1.0])
    assert run.curve("eval_loss") == ([3.0], [1.5])
    newer = folders / "after" / "checkpoint-12"
    newer.mkdir()
    (newer / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 12, "loss": 0.5}]}))
    assert load_run(folders / "after").curve("loss") == ([12.0], [0.5])


def test_the_margins_of_another_objective_have_their_curves():
    logged = {"step": 1, "loss": 2.0, "terms/response_preference/margins": 0.5, "terms/pair_preference": 0.3}
    history = [logged | {"terms/pair_preference/margins": 0.1, "eval_terms/odd/margins": 0.2, "terms/<b>/margins": 1.0}]
    titles = [title for title, _ in curves([run_of("one", history=history), run_of("two", history=HISTORY)])]
    assert titles == ["Loss", "Reward margin: chosen − rejected", "Margin of pair_preference", "Margin of odd"]


def test_bad_input_is_named(folders):
    with pytest.raises(InputError, match="is not a folder"):
        load_run(folders / "none")
    (folders / "empty").mkdir()
    with pytest.raises(InputError, match="contains neither trainer_state.json nor a result"):
        load_run(folders / "empty")
    with pytest.raises(InputError, match="called the same"):
        report(folders / "before", folders / "before", "--output", folders / "r.html")
    with pytest.raises(InputError, match="has 1 names for 2 runs"):
        report(folders / "before", folders / "after", "--names", "x", "--output", folders / "r.html")
    with pytest.raises(InputError, match="ends in .html"):
        report(folders / "before", "--output", folders / "r.pdf")
    result([1]).write(folders / "before" / "again.json")
    with pytest.raises(InputError, match="again.json and .*amber.json are both AMBER official algorithm"):
        load_run(folders / "before")
    (folders / "after" / "trainer_state.json").write_text("{}")
    with pytest.raises(InputError, match="no log_history"):
        load_run(folders / "after")
    (folders / "empty" / "x.json").write_text('{"schema": "mdpo-result-1", "metrics": [{}]}')
    with pytest.raises(InputError, match="damaged result"):
        load_run(folders / "empty")


def test_without_matplotlib_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[eval\]"'):
        report(folders / "before", "--output", folders / "r.html")
