"""Pairs: the best against the worst, what makes none counted by its reason, and a file that training reads as it is."""

import json

import pytest
from PIL import Image

from mdpo import cli
from mdpo.answers.pairing import ABOVE, BELOW, CUT, EMPTY, FEW, NEAR, NULL, SAME, Rules, make_pairs
from mdpo.answers.records import Answer, Scored
from mdpo.data import PromptRow, read_rows
from mdpo.errors import InputError


def asked(id="q"):
    return PromptRow(id, "here", (), [{"role": "user", "content": [{"type": "text", "text": "What?"}]}])


def scored(*scores, id="q", **changes):
    row = asked(id)
    return [
        Scored(Answer(row, f"answer {n}", n, "me", tokens=3), score, "rule", **changes)
        for n, score in enumerate(scores)
    ]


def numbers(paired):
    return [(pair.chosen.answer.number, pair.rejected.answer.number) for pair in paired.pairs]


def test_the_best_is_paired_with_the_worst():
    assert numbers(make_pairs(scored(1.0, 3.0, -2.0, 0.5))) == [(1, 2)]


def test_of_equal_scores_the_first_answer_is_taken():
    assert numbers(make_pairs(scored(2.0, 2.0, 1.0))) == [(0, 2)]


def test_more_pairs_of_a_question_share_no_answer():
    paired = make_pairs(scored(5, 4, 3, 2, 1), Rules(per_question=9))
    assert numbers(paired) == [(0, 4), (1, 3)] and [pair.number for pair in paired.pairs] == [1, 2]


@pytest.mark.parametrize(
    ("rules", "pairs"),
    [
        (Rules(margin=2, per_question=3), [(0, 4), (1, 3)]),
        (Rules(margin=2.5, per_question=3), [(0, 4)]),
        (Rules(margin=5), []),
        (Rules(above=5), [(0, 4)]),
        (Rules(above=5.5), []),
        (Rules(below=1), [(0, 4)]),
        (Rules(below=0.5), []),
        (Rules(above=4, below=2, per_question=3), [(0, 4), (1, 3)]),
    ],
)
def test_rules(rules, pairs):
    assert numbers(make_pairs(scored(5, 4, 3, 2, 1), rules)) == pairs


def test_what_makes_no_pair_is_counted_by_its_reason():
    row = asked("e")
    left_out = [
        Scored(Answer(row, " \n", 0, "me"), 9.0, "rule"),
        Scored(Answer(row, "A cat", 1, "me", whole=False), 8.0, "rule"),
        Scored(Answer(row, "A dog.", 2, "me"), None, "rule"),
        Scored(Answer(row, "A  DOG", 3, "me"), 1.0, "rule"),
        Scored(Answer(row, "a dog", 4, "me"), 2.0, "rule"),
    ]
    paired = make_pairs([*scored(1, 1, id="n"), *left_out, *scored(3, 1, id="p")])
    assert paired.answers == {EMPTY: 1, CUT: 1, NULL: 1, SAME: 1}
    assert paired.questions == {NEAR: 1, FEW: 1} and paired.asked == 3 and len(paired.pairs) == 1
    assert make_pairs(scored(3, 1), Rules(above=4)).questions == {ABOVE: 1}
    assert make_pairs(scored(3, 1), Rules(below=0)).questions == {BELOW: 1}


def test_scores_that_do_not_compare_are_refused():
    with pytest.raises(InputError, match="'q'.*'rule' and 'judge'"):
        make_pairs([*scored(1), Scored(Answer(asked(), "else", 1, "me"), 2.0, "judge")])


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": -1},
        {"margin": float("nan")},
        {"margin": float("inf")},
        {"per_question": 0},
        {"above": 1, "below": 2},
        {"above": float("nan")},
        {"below": float("nan")},
        {"above": float("-inf")},
    ],
)
def test_rules_that_cannot_be(changes):
    with pytest.raises(InputError, match="--"):
        Rules(**changes)


@pytest.fixture
def ranked(tmp_path):
    """A file of scored answers to three questions about two pictures, as mdpo rank writes it."""
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    lines = []
    for id, colour, scores in (("a", "red", (1, 2, 4)), ("b", "blue", (0.5, 0.5)), ("c", "blue", (3, None, 1))):
        for number, score in enumerate(scores):
            writer = "base" if number < 2 else "sft"
            lines.append(
                {
                    "id": id,
                    "image": f"{colour}.png",
                    "prompt": "What is it?",
                    "response": f"{id} {number}",
                    "answer": number,
                    "writer": writer,
                    "tokens": number + 5,
                    "score": score,
                    "by": "rule",
                    "details": {"n": number},
                }
            )
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("folder", [".", "elsewhere"])
def test_the_command_writes_what_training_reads(ranked, folder, capsys):
    output = ranked.parent / folder / "pairs.jsonl"
    assert cli.main(["pairs", str(ranked), "--output", str(output)]) == 0
    rows = list(read_rows(output))
    assert [(row.id, row.chosen, row.rejected) for row in rows] == [("a", "a 2", "a 0"), ("c", "c 0", "c 2")]
    assert [row.images[0].read_bytes() for row in rows] == [
        (ranked.parent / f"{colour}.png").read_bytes() for colour in ("red", "blue")
    ]
    origins = [json.loads(line) for line in output.with_suffix(".origins.jsonl").read_text().splitlines()]
    assert origins[0] == {
        "id": "a",
        "by": "rule",
        "chosen": {"writer": "sft", "answer": 2, "tokens": 7, "score": 4.0, "details": {"n": 2}},
        "rejected": {"writer": "base", "answer": 0, "tokens": 5, "score": 1.0, "details": {"n": 0}},
    }
    record = json.loads(output.with_suffix(".record.json").read_text())
    assert (record["pairs"], record["questions"], record["questions_without"]) == (2, 3, {NEAR: 1})
    said = capsys.readouterr().out
    for line in (
        "3 questions: 2 pairs from 2",
        f"1 questions: {NEAR}",
        f"1 answers left out: {NULL}",
        "6.0 and 6.0",
        "sft: chosen 1",
    ):
        assert line in said
    assert cli.main(["data", "check", str(output)]) == 0


def test_the_second_pair_of_a_question_has_its_own_id(ranked):
    output = ranked.with_name("pairs.jsonl")
    assert cli.main(["pairs", str(ranked), "--output", str(output), "--per-question", "2", "--margin", "0.1"]) == 0
    assert [row.id for row in read_rows(output)] == ["a/1", "c/1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--margin", "99"], "no question makes a pair"),
        (["--margin", "-1"], "--margin"),
        (["--output", "pairs.json"], ".jsonl"),
        (["--per-question", "0"], "--per-question"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(ranked, words, said, capsys):
    output = ranked.with_name("pairs.jsonl")
    assert cli.main(["pairs", str(ranked), "--output", str(output), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not output.exists()


def test_a_picture_that_is_gone_is_named(ranked, capsys):
    (ranked.parent / "red.png").unlink()
    assert cli.main(["pairs", str(ranked), "--output", str(ranked.parent / "elsewhere" / "pairs.jsonl")]) == 2
    assert "red.png cannot be read" in capsys.readouterr().err and not (ranked.parent / "elsewhere").exists()
