"""Questions about scenes: what the writer answers, what is right, and how answers are scored."""

from json import loads

import numpy as np
import pytest
from PIL import Image

from bench.digits.tune import build_processor
from bench.scenes.base import Examples, asked
from bench.scenes.questions import ASK, KINDS, Question, question_of, score_kinds, tuning_question, write_kinds
from bench.scenes.world import NAMED, PRIOR, SIZE, THEMES, WHOLE, WORDS, Scene, Thing, make_scene, scene_of

SCENES = [make_scene("tune", 0, index, close_up=0.3) for index in range(400)]
COW = Thing("cow", "", 20.0, 10.0, 30.0)
HEN = Thing("hen", "", 30.0, 60.0, 30.0)
EMPTY_STREET = Scene("tune", 0, 0, "street", (), WHOLE)
FARM = Scene("tune", 0, 0, "farm", (COW, HEN), WHOLE)


def all_of(scene: Scene, kind: str, count: int = 400) -> list[Question]:
    found = [ASK[kind](scene, np.random.default_rng(seed)) for seed in range(count)]
    return [question for question in found if question is not None]


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("existence", {f"Is there a {name}?": "Yes." for name in ("cow", "hen")}
         | {f"Is there a {name}?": "No." for name in ("dog", "tractor", "pig")}),
        ("adversarial premise",
         {f"Where is the {name}?": f"There is no {name}." for name in ("dog", "tractor", "pig")}),
        ("place", {"Where is the cow?": "At left.", "Where is the hen?": "At right."}),
        ("comparison", dict.fromkeys(
            ("Which is larger, the cow or the hen?", "Which is larger, the hen or the cow?"), "The hen.")),
        ("counting", {"How many things?": "Two."}),
        ("environment", {"What place is it?": "A farm."}),
    ],
)  # fmt: skip
def test_what_is_right_is_so_by_the_scene(kind, answers):
    assert {question.prompt: question.right for question in all_of(FARM, kind)} == answers


def test_where_a_kind_has_nothing_to_ask():
    assert not all_of(EMPTY_STREET, "place") and not all_of(EMPTY_STREET, "comparison")
    assert {question.right for question in all_of(EMPTY_STREET, "existence")} == {"No."}
    assert {question.right for question in all_of(EMPTY_STREET, "counting")} == {"None."}
    full = Scene("tune", 0, 0, "farm", tuple(Thing(name, "", 20.0, 30.0, 30.0) for name in THEMES["farm"]), WHOLE)
    assert not all_of(full, "adversarial premise") and not all_of(full, "comparison")
    assert {question.right for question in all_of(full, "existence")} == {"Yes."}


@pytest.mark.parametrize("kind", ["existence", "adversarial premise"])
def test_the_writer_expects_in_answers_what_he_expects_in_captions(kind):
    """He says that an absent thing is there by its place in the theme."""
    for rank, name in enumerate(THEMES["street"]):
        about = [question for question in all_of(EMPTY_STREET, kind, 3000) if f"{name}?" in question.prompt]
        assert np.mean([question.written != question.right for question in about]) == pytest.approx(
            PRIOR[rank], abs=0.06
        )


def test_the_writer_overlooks_in_answers_as_in_captions():
    written = [question.written == question.right for question in all_of(FARM, "place", 2000)]
    assert np.mean(written) == pytest.approx(NAMED, abs=0.02)


def test_the_writer_counts_what_he_would_name():
    counted = {question.written for question in all_of(FARM, "counting")}
    assert {"Two.", "Three."} <= counted and "Six." not in counted


def test_tuning_asks_everything_and_every_word_is_a_token():
    processor = build_processor(WORDS)
    questions = [tuning_question(scene, version) for scene in SCENES for version in range(2)]
    assert questions[:2] == [tuning_question(SCENES[0], 0), tuning_question(SCENES[0], 1)]
    assert {question.prompt.split()[0] for question in questions} == {"Is", "Where", "Which", "How", "What"}
    for text in {text for question in questions for text in question}:
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.unk_token_id not in ids
        assert processor.tokenizer.decode(ids) == text


def test_tuning_reads_prompts_as_the_processor_does_and_learns_answers_alone():
    processor = build_processor(WORDS, image_size=SIZE, patch=18)
    examples = Examples(processor, SCENES[:3], captions=1, rounds=1)
    tokens, targets = examples.tokens(np.array([2, 5]))
    chat = []
    for prompt, answer in asked(SCENES[2], 0):
        image = [] if chat else [{"type": "image"}]
        chat.append({"role": "user", "content": [*image, {"type": "text", "text": prompt}]})
        chat.append({"role": "assistant", "content": answer})
    text = processor.apply_chat_template(chat)
    assert processor(text=[text], images=[Image.new("RGB", (SIZE, SIZE))])["input_ids"][0] == tokens[1].tolist()
    assert (tokens[1] == examples.image_token).sum() == 16
    told = "</s>".join(answer for _, answer in asked(SCENES[2], 0)) + "</s>"
    assert targets[1][targets[1] != -100].tolist() == processor.tokenizer(told)["input_ids"]
    assert (tokens == targets)[targets != -100].all()
    assert examples.pictures[[2, 5]].tolist() == [2, 2]


def test_answers_are_scored_by_kind(tmp_path):
    path = write_kinds(tmp_path, seed=7, count=30)
    rows = [loads(line) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) > 150
    assert {row["id"].partition(" ")[2] for row in rows} == set(KINDS)
    assert all((tmp_path / row["image"]).is_file() for row in rows)
    right = []
    for row in rows:
        id, _, kind = row["id"].partition(" ")
        question = question_of(scene_of(id), kind)
        assert question is not None and question.prompt == row["prompt"]
        right.append(question.right)
    assert score_kinds(path, right) == dict.fromkeys(KINDS, 100.0)
    assert score_kinds(path, [f"{answer} A cow." for answer in right]) == dict.fromkeys(KINDS, 100.0)
    at_left = score_kinds(path, ["At left."] * len(rows))
    assert at_left["adversarial premise"] == 0 < at_left["place"] < 100
    with pytest.raises(ValueError, match="shorter|longer"):
        score_kinds(path, right[1:])
