"""Questions: what they ask is true of the scene, and false answers are false."""

import json

import pytest
from PIL import Image

from bench.digits.world import PARTNER, make_scene
from bench.study.questions import (
    NUMBERS,
    PLACES,
    QUESTION_WORDS,
    TUNING_SHARES,
    TYPES,
    build_processor,
    content,
    correct,
    question_turn,
    styled,
    write_questions,
)


def examples(kind, count=200):
    for index in range(count):
        scene = make_scene("test", 3, index)
        yield scene, TYPES[kind](scene, scene.generator("question"))


@pytest.mark.parametrize("kind", TYPES)
def test_false_answers_are_false(kind):
    for _, question in examples(kind):
        assert not correct(kind, styled(question.wrong, "clearly"), styled(question.answer, "vaguely"))


def test_counting():
    for scene, question in examples("counting"):
        assert question.answer == f"There are {NUMBERS[len(scene.digits) - 2]} digits"


def test_attribute_is_about_a_digit_that_is_there():
    for scene, question in examples("attribute"):
        digit = int(question.prompt.removeprefix("Where is the ").removesuffix("?"))
        assert question.answer == f"The {digit} is {PLACES[scene.cells.index(digit)]}"


def test_adversarial_asks_the_same_of_a_digit_that_is_not_there():
    partners = 0
    for scene, question in examples("adversarial"):
        digit = int(question.prompt.removeprefix("Where is the ").removesuffix("?"))
        assert digit not in scene.digits
        assert question.answer == f"There is no {digit}"
        partners += PARTNER[digit] in scene.digits
    assert partners > 150  # the absent partner is what language expects


def test_comparison():
    for scene, question in examples("comparison"):
        assert question.answer == f"The largest is {max(scene.digits)}"


def test_relation():
    for scene, question in examples("relation"):
        side, digit = question.prompt.removeprefix("What is ").removesuffix("?").split(" of the ")
        cell = scene.cells.index(int(digit))
        other = cell + (1 if side == "right" else -1)
        assert cell // 2 == other // 2
        neighbour = scene.cells[other]
        assert question.answer == f"To the {side} is {'nothing' if neighbour is None else neighbour}"


def test_a_listing_may_have_any_order():
    assert correct("listing", "I see 3, 1 and 8 clearly.", "I see 8, 3 and 1")
    assert not correct("listing", "I see 3 and 8 clearly.", "I see 8, 3 and 1")


def test_answers_are_compared_without_style():
    assert content("The 3 is top left vaguely.") == "The 3 is top left"


def test_the_tokenizer_knows_every_word():
    tokenizer = build_processor(QUESTION_WORDS).tokenizer
    for kind in TYPES:
        for _, question in examples(kind, 50):
            ids = tokenizer(f"{question.prompt} {question.answer}. {question.wrong}")["input_ids"]
            assert tokenizer.unk_token_id not in ids


def test_tuning_asks_everything():
    assert set(TUNING_SHARES) == set(TYPES)
    assert sum(TUNING_SHARES.values()) == pytest.approx(1)
    prompts = {question_turn(0, index).prompt.split()[0] for index in range(60)}
    assert prompts == {"List", "How", "Where", "Which", "What"}


def test_written_pairs_are_rows_with_pictures(tmp_path):
    path = write_questions(tmp_path, split="preference", seed=0, count=12)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["type"] for row in rows] == list(TYPES) * 2
    assert all(Image.open(tmp_path / row["img_path"]).size == (48, 48) for row in rows)
    again = write_questions(tmp_path / "again", split="preference", seed=0, count=12)
    assert again.read_text() == path.read_text()
