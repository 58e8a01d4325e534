"""Files of answers: what is written reads back, what is not right is named, and nobody's answers get another
picture's.
"""

import json

import pytest
from PIL import Image

from mdpo.answers import Answer, Scored, read_answers, read_scored
from mdpo.answers.records import answer_columns, scored_columns
from mdpo.data import PromptRow, read_rows
from mdpo.data.canonical import Pictures
from mdpo.errors import InputError


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def question(**changes):
    return {"id": "q", "image": "a.png", "prompt": "What is it?", "response": "A car."} | changes


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "a.png", "red")
    picture(tmp_path / "b.png", "blue")
    return tmp_path


def test_what_is_written_reads_back(folder, tmp_path):
    prompts = lines(
        folder / "prompts.jsonl", {"id": 7, "image": "a.png", "prompt": "What is it?"}, {"id": 8, "prompt": "Hi"}
    )
    rows = list(read_rows(prompts, kind=PromptRow))
    answers = [
        Answer(rows[0], "A car.", 0, "llava", 3, True),
        Answer(rows[0], "A tree", 1, "llava", 2, False),
        Answer(rows[1], "", 0, "qwen"),
    ]
    scored = [
        Scored(answers[0], 1.5, "me", {"claims": 2}),
        Scored(answers[1], None, "me"),
        Scored(answers[2], -2, "me"),
    ]
    for output in (folder / "answers.jsonl", folder / "elsewhere" / "answers.jsonl"):
        pictures = Pictures(output.parent)
        lines(output, *(answer_columns(answer, pictures) for answer in answers))
        found = read_answers([output])
        assert [(a.key, a.response, a.tokens, a.whole) for a in found] == [
            (a.key, a.response, a.tokens, a.whole) for a in answers
        ]
        assert [a.row.prompt for a in found] == [a.row.prompt for a in answers]
        assert found[0].row.images[0].read_bytes() == (folder / "a.png").read_bytes()
        assert found[0].row.images[0].is_relative_to(output.parent.resolve())
        lines(output, *(scored_columns(each, pictures) for each in scored))
        assert [(s.score, s.by, s.details) for s in read_scored(output)] == [
            (1.5, "me", {"claims": 2}),
            (None, "me", {}),
            (-2, "me", {}),
        ]
        assert [a.key for a in read_answers([output])] == [a.key for a in answers]


def test_answers_from_elsewhere_need_little(folder):
    path = lines(folder / "people.jsonl", question(), question(response="A tree."), question(id="r", response=""))
    found = read_answers([path])
    assert [(a.key, a.tokens, a.whole) for a in found] == [
        (("q", "people", 0), None, True),
        (("q", "people", 1), None, True),
        (("r", "people", 0), None, True),
    ]


def test_several_files_are_one_pool(folder):
    one = lines(folder / "one.jsonl", question())
    picture(folder / "other" / "copy.png", "red")
    two = lines(folder / "other" / "two.jsonl", question(image="copy.png", response="A bus."))
    found = read_answers([one, two])
    assert [a.key for a in found] == [("q", "one", 0), ("q", "two", 0)] and found[0].row is found[1].row


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": None}, "id: is missing"),
        ({"response": None}, "response: is None; expected text"),
        ({"response": 3}, "response"),
        ({"response": "a\ud83d"}, "response: half a surrogate pair at character 1"),
        ({"answer": -1}, "answer: is -1; expected a whole number"),
        ({"answer": True}, "answer"),
        ({"tokens": "3"}, "tokens"),
        ({"tokens": 10**400}, "tokens: is 1000"),
        ({"whole": 1}, "whole"),
        ({"writer": ""}, "writer"),
        ({"answer": 0}, "is also that of"),
        ({"prompt": "What else?"}, "another prompt than at"),
        ({"image": "b.png"}, "another picture than at"),
        ({"image": None}, "another prompt"),
        ({"image": "gone.png"}, "cannot be read"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_not_right_is_named(folder, changes, words):
    path = lines(folder / "answers.jsonl", question(answer=0), {**question(answer=1), **changes})
    with pytest.raises(InputError, match="answers.jsonl, answer 2") as found:
        read_answers([path])
    assert words in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "score: is missing"),
        ({"score": "5"}, "score: is '5'; expected a number"),
        ({"score": True}, "score"),
        ({"score": 1, "by": 3}, "by"),
        ({"score": 1, "details": []}, "details"),
        ({"score": 10**400}, "score: is 1000"),
        ({"score": float("nan")}, "score: is nan; expected a number"),
    ],
)
def test_scores_that_are_none_are_named(folder, changes, words):
    path = lines(folder / "scored.jsonl", question(score=1), question(**changes))
    with pytest.raises(InputError, match="scored.jsonl, answer 2") as found:
        read_scored(path)
    assert words in str(found.value)
