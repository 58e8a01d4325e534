"""CHAIR's two variants, on synonym files of our own with the official ones' peculiarities."""

import math

import pytest

from mdpo import InputError
from mdpo.evaluation import chair

# A blank too many before a synonym, one at a line's end, a word in two lines, and two words that make one.
SYNONYMS = """person, man, player
motorcycle,  motor bike, motor cycle
cake,  cheesecake
couch, sofa, settee 
dog, puppy, pug
cat, kitten, pug
chair, seat, stool
toilet, urinal
traffic light, stop light
tie, bow
wine glass
train, locomotive
remote, remote control
airplane, jet
"""


def lemmas(text):
    return [word[:-1] if word.endswith("s") and word != "glas" else word for word in text.split()]


@pytest.fixture(params=chair.VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS)
    return lambda variant: chair.Lexicon.load(path, variant)


def words(lexicon, text):
    return lexicon.objects(lexicon.merge(lemmas(text)))


def test_what_the_files_blanks_do(load):
    rohrbach, refined = load("rohrbach"), load("rlhfv")
    assert words(rohrbach, "motor bike and cheesecake on a settee") == [("settee", "couch")]
    assert words(refined, "motor bike and cheesecake on a settee") == [
        ("motor bike", "motorcycle"),
        ("cheesecake", "cake"),
        ("settee", "couch"),
    ]
    assert rohrbach.variant == "rohrbach"
    assert rohrbach.source == "synonyms.txt"


def test_double_words(load):
    rohrbach, refined = load("rohrbach"), load("rlhfv")
    assert words(rohrbach, "remote control") == [("remote", "remote")]
    assert words(refined, "remote control") == [("remote control", "remote")]
    for lexicon in (rohrbach, refined):
        assert words(lexicon, "baby dogs and adult cats") == [("dog", "dog"), ("cat", "cat")]
        assert words(lexicon, "a passenger jet a passenger trains") == [("jet", "airplane"), ("train", "train")]
        assert words(lexicon, "bow ties") == [("tie", "tie")]
        assert words(lexicon, "wine glass") == [("wine glass", "wine glass")], "its singular is spelled 'glas' here"
        assert words(lexicon, "train tracks") == [], "a track is no train"
        assert words(lexicon, "stop light") == [("stop light", "traffic light")]


def test_a_toilets_seat_is_no_chair(load, variant):
    lexicon = load(variant)
    assert words(lexicon, "the seat of the toilet by a seat") == [("toilet", "toilet")]
    assert words(lexicon, "toilet seat") == [("toilet", "toilet")]
    assert words(lexicon, "a seat") == [("seat", "chair")]
    assert words(lexicon, "a stool by the toilet") == [("stool", "chair"), ("toilet", "toilet")]


def test_a_word_in_two_lines_belongs_to_the_later(load, variant):
    assert words(load(variant), "pug") == [("pug", "cat")]


def coco():
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    first = {
        "categories": categories,
        "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 9, "category_id": 1}],
    }
    second = {"categories": categories, "annotations": [{"image_id": 2, "category_id": 1}]}
    captions = {
        "annotations": [{"image_id": 1, "caption": "A Puppy by TOILET seats"}, {"image_id": 8, "caption": "cat"}]
    }
    return [first, second], [captions]


def test_ground_truth_joins_instances_and_captions_of_all_files(load, variant):
    truth = chair.ground_truth(*coco(), [1, 2, 3], lexicon=load(variant), lemmas=lemmas)
    assert truth == {1: {"dog", "toilet"}, 2: {"person"}, 3: set()}


def test_scores_by_string_count_every_mention(load, variant):
    lexicon = load(variant)
    truth = {1: {"dog", "toilet"}, 2: {"person"}, 3: set()}
    rows = [
        {"image_id": 1, "caption": "a Dog a puppy a cat a cats"},
        {"image_id": 2, "caption": "a man"},
        {"image_id": 2, "caption": "nothing at all"},
        {"image_id": 3, "caption": "nothing"},
    ]
    score = chair.score(rows, truth, lexicon=lexicon, lemmas=lemmas)
    assert (score.chair_s, score.chair_s_refine, score.chair_i, score.recall) == (1 / 4, 1 / 2, 2 / 5, 2 / 4)
    assert score.responses[0].hallucinated == ["cat", "cat"]
    assert score.variant == f"{variant}, by string, every mention"


def test_scores_by_judge_count_each_name_once(load):
    rows = [{"image_id": 1, "objects": ["dog", "puppy", "cat", "cat", "moon"]}, {"image_id": 1, "objects": []}]
    score = chair.score_objects(rows, {1: {"dog"}}, lexicon=load("rlhfv"))
    assert (score.chair_s, score.chair_s_refine, score.chair_i, score.recall) == (1 / 2, 1, 1 / 3, 1 / 2)
    assert "by judge" in score.variant


def test_undefined_is_nan_and_not_zero(load):
    score = chair.score([{"image_id": 1, "caption": "moon"}], {1: set()}, lexicon=load("rlhfv"), lemmas=lemmas)
    assert score.chair_s == 0
    assert all(map(math.isnan, (score.chair_s_refine, score.chair_i, score.recall)))


def test_bad_input_is_named(load, tmp_path):
    lexicon = load("rlhfv")
    with pytest.raises(InputError, match="unknown CHAIR variant 'coco'"):
        load("coco")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="empty"):
        chair.Lexicon.load(tmp_path / "empty.txt", "rlhfv")
    with pytest.raises(InputError, match="does not exist"):
        chair.Lexicon.load(tmp_path / "none.txt", "rlhfv")
    with pytest.raises(InputError, match="no captions"):
        chair.score([], {}, lexicon=lexicon, lemmas=lemmas)
    with pytest.raises(InputError, match="image 5 has no ground truth"):
        chair.score([{"image_id": 5, "caption": "x"}], {}, lexicon=lexicon, lemmas=lemmas)
    with pytest.raises(InputError, match="row 0 has no 'caption', only id, response"):
        chair.score([{"id": 5, "response": "x"}], {}, lexicon=lexicon, lemmas=lemmas)
    instances = {"categories": [{"id": 1, "name": "yeti"}], "annotations": [{"image_id": 1, "category_id": 1}]}
    with pytest.raises(InputError, match="'yeti' is not in synonyms.txt"):
        chair.ground_truth([instances], [], [1], lexicon=lexicon, lemmas=lemmas)
