"""MMHal-Bench: ratings parsed and summed by the official rule, the prompt read from somebody else's script."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdpo import InputError
from mdpo.evaluation import mmhal

TEMPLATE = "Contents: {}\nQuestion: {}\nTruth: {}\nAnswer: {}\n"
RECORD = {"image_content": ["Cat", "Dog"], "question": "How many {cats}?", "gt_answer": "Two.", "model_answer": "One."}


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("It is right.\nRating: 5, very informative", 5),
        ("RATING: 0", 0),
        ("- Rating: 3\nFinal rating: 3", 3),
        ("Rating: 2 ... or rating: 4", None),
        ("rating:5", None),
        ("rating:  5", None),
        ("**Rating**: 5", None),
        ("Rating: 7", None),
        ("Rating: 10", 1),
        ("", None),
        ("```\nrating: 6\n```", 6),
    ],
)
def test_a_rating_is_the_one_that_is_found(reply, rating):
    assert mmhal.parse(reply) == rating


@settings(deadline=None)
@given(st.text(), st.integers(0, 6), st.text())
def test_any_reply_parses_to_a_rating_or_none(before, rating, after):
    assert mmhal.parse(before) in {None, *range(7)}
    found = mmhal.parse(f"{before} rating: {rating} {after}")
    assert found in (rating, None), "one that is there is never taken for another"


def test_summary_of_the_official_96():
    ratings = [index % 7 for index in range(95)] + [None]
    summary = mmhal.summarize(ratings)
    counted = [index % 7 for index in range(95)] + [0]
    assert summary.average == sum(counted) / 96
    assert summary.hallucination_rate == sum(rating < 3 for rating in counted) / 96
    assert summary.per_type == [sum(counted[kind::8]) / 12 for kind in range(8)]
    assert summary.informativeness == sum((0, 1, 2, 0, 1, 2, 3)[rating] for rating in counted) / 96 / 3 * 100
    assert summary.unparsed == 1


def test_small_summaries():
    assert mmhal.summarize([6]).informativeness == 100
    assert mmhal.summarize([2]).hallucination_rate == 1
    assert mmhal.summarize([3]).hallucination_rate == 0
    assert [math.isnan(value) for value in mmhal.summarize([6]).per_type] == [False] + [True] * 7
    with pytest.raises(InputError, match="no ratings"):
        mmhal.summarize([])
    with pytest.raises(InputError, match="rating 1 is 7"):
        mmhal.summarize([0, 7])


def test_messages():
    assert mmhal.messages(RECORD, TEMPLATE) == [
        {"role": "user", "content": "Contents: Cat, Dog\nQuestion: How many {cats}?\nTruth: Two.\nAnswer: One.\n"}
    ]
    with pytest.raises(InputError, match="image_content is missing from one with the keys id, response"):
        mmhal.messages({"id": 1, "response": "x"}, TEMPLATE)
    with pytest.raises(InputError, match="a list of names"):
        mmhal.messages(RECORD | {"image_content": "Cat"}, TEMPLATE)
    for template in ("{} {}", "{0} {1} {2} {3}", "{} {} {} {", "{} {} {} {} {}"):
        with pytest.raises(InputError, match="template"):
            mmhal.messages(RECORD, template)


def test_the_template_is_read_from_a_script_that_is_never_run(tmp_path):
    script = tmp_path / "eval_gpt4.py"
    script.write_text(f"import nowhere\nraise SystemExit\nother = 1\ntemplate = {TEMPLATE!r}\n")
    assert mmhal.read_template(script) == TEMPLATE
    text = tmp_path / "prompt.txt"
    text.write_text(TEMPLATE)
    assert mmhal.read_template(text) == TEMPLATE
    for content, message in {
        "template = f()": "no top-level string literal 'template'",
        "template = 'no places'": "needs four",
        "template = (": "not a Python script",
        "def f():\n    template = 'x'": "no top-level",
    }.items():
        script.write_text(content)
        with pytest.raises(InputError, match=message):
            mmhal.read_template(script)
    with pytest.raises(InputError, match="does not exist"):
        mmhal.read_template(tmp_path / "none.py")
