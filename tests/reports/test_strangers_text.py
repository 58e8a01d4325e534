"""Results and run records as somebody who means harm would write them: shown as text, or refused as damaged."""

import dataclasses
import json
import re

import pytest

from mdpo.errors import InputError
from mdpo.evaluation.results import Metric, Response, Result, read_result
from mdpo.models.model_card import model_card, write_run_record
from mdpo.reports import load_run, write_report

EVIL = (
    "<script>alert(1)</script>\"'><img src=x onerror=y>\x1b[31m\u202e # heading | [a](javascript:b) `c` $x^{$ \n# own "
    "line"
)

BARE = re.compile(r"(?<!\\)<(script|img)")


def evil_result() -> Result:
    metric = Metric(EVIL, 40.0, EVIL, "lower", "top", "bottom", 100.0, EVIL)
    responses = [
        Response(f"{at}{EVIL}", EVIL, {"top": 1.0, "bottom": 2.0}, EVIL, [EVIL, "a"], EVIL, EVIL) for at in range(4)
    ]
    return Result(
        EVIL,
        EVIL,
        [metric],
        responses,
        {EVIL: 4},
        [EVIL],
        EVIL,
        {"settings": {"num_beams": EVIL}, EVIL: EVIL},
        {"base_url": f"https://u:p4ssw0rd@{EVIL}", "returned": {EVIL: 1}},
    )


@pytest.mark.filterwarnings("ignore")
def test_no_field_of_a_result_is_markup(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        folder.mkdir()
        evil_result().write(folder / "result.json")
    better = evil_result()
    better = dataclasses.replace(
        better, responses=[dataclasses.replace(r, text=r.text + " b") for r in better.responses]
    )
    better.write(second / "result.json")
    runs = [load_run(first, f"one{EVIL}"), load_run(second, f"two{EVIL}")]
    html, markdown, _ = write_report(runs, tmp_path / "report.html", title=EVIL)
    for path in (html, markdown):
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text and "\u202e" not in text and "p4ssw0rd" not in text, path.name
    page = html.read_text(encoding="utf-8")
    assert "<script" not in page and "onerror=y>" not in page.replace("&gt;", "").replace("onerror=y&gt;", "")
    assert not re.search(r"<img(?! src=\"data:image/svg)", page)
    lines = markdown.read_text(encoding="utf-8").splitlines()
    assert not any(BARE.search(line) or line.startswith("# own") for line in lines)
    assert sum(line.startswith("# ") for line in lines) == 1
    assert "\x1b" not in evil_result().table() and evil_result().table().count("\n") == 2


DAMAGE = {
    "unit": lambda content: content["metrics"][0].update(unit=["%"]),
    "better": lambda content: content["metrics"][0].update(better="sideways"),
    "value": lambda content: content["metrics"][0].update(value="40"),
    "infinite": lambda content: content["metrics"][0].update(value=1e999),
    "interval": lambda content: content["metrics"][0].update(interval=[1.0]),
    "no metrics": lambda content: content.update(metrics=[]),
    "metrics": lambda content: content.update(metrics={"a": 1}),
    "sums": lambda content: content["metrics"][0].update(top="nothing"),
    "numbers": lambda content: content["responses"][0].update(numbers={"top": None, "bottom": 1}),
    "text": lambda content: content["responses"][0].update(text=7),
    "responses": lambda content: content.update(responses=[None]),
    "settings": lambda content: content.update(settings=[]),
    "warnings": lambda content: content.update(warnings="all"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_result_is_named(tmp_path, name):
    evil_result().write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    DAMAGE[name](content)
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="result.json is a damaged result"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"schema": "\ud800"}'.encode("utf-8", "surrogatepass")]
)
def test_json_of_strangers_ends_in_one_line(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="result.json"):
        read_result(path)


def test_a_log_with_odd_entries_draws_what_it_can(tmp_path):
    history = [
        {"step": "x", "loss": 1.0},
        {"step": 1, "loss": 10**400},
        {"step": 2, "loss": True},
        {"step": 3, "loss": 2.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert 2.0 in load_run(tmp_path).curve("loss")[1]


def test_a_card_shows_a_data_sets_name_as_text_and_no_credentials(tmp_path):
    adapter = tmp_path / "a # b <script>"
    run = {"train_data": f"{EVIL}\n\n---\nlicense: evil\n---\n", "image_dir": "https://u:p4ssw0rd@host/a?token=t0ken"}
    write_run_record(adapter, run, base_weights=None, text={})
    (adapter / "mdpo_settings.json").write_text(json.dumps({"rows": EVIL, "negative": [EVIL], EVIL: EVIL}))
    (adapter / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"eval_loss": EVIL, f"eval_{EVIL}": 1}, 7]})
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"target_modules": EVIL, "r": [EVIL]}))
    card = model_card(adapter, tmp_path / f"base{EVIL[:20]}")
    assert "p4ssw0rd" not in card + (adapter / "mdpo_run.json").read_text() and "t0ken" not in card
    assert not BARE.search(card) and "\x1b" not in card and "\u202e" not in card
    assert card.count("\n---\n") == 1 and sum(line.startswith("# ") for line in card.splitlines()) == 1
    body = card.split("\n## ", 1)[1]
    assert all(
        line.startswith(("| ", "|-", "#")) or not line or line.istitle() or line == "Not recorded."
        for line in body.splitlines()
    )


def test_a_torn_file_beside_an_adapter_is_named(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"log_history": [')
    with pytest.raises(InputError, match="trainer_state.json is damaged"):
        model_card(tmp_path, tmp_path)
