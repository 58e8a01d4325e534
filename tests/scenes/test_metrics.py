"""What is counted in captions of scenes, against figures worked out by hand."""

from statistics import mean

import pytest

from bench.scenes.judge import FALSE, TOKEN, TRUE
from bench.scenes.judge import score as score_of_judge
from bench.scenes.metrics import cut, cut_to_cover, score
from bench.scenes.results import in_short, marked, missed
from bench.scenes.world import NAMES, WHOLE, Scene, Thing, make_scene


def scene(theme: str, *names: str) -> Scene:
    things = tuple(Thing(name, "", 20.0, 30.0, 30.0) for name in names)
    return Scene("test", 0, 0, theme, things, WHOLE)


FARMS = [scene("farm", "cow", "dog"), scene("farm", "cow", "pig", "cup")]
CAPTIONS = ["A farm scene. A cow. A hen. A ball.", "A farm scene. A cow. A cow at left. A cup."]


def test_scores_by_hand():
    found = score(CAPTIONS, FARMS)
    assert found.chair_s == 50.0
    assert found.chair_i == pytest.approx(100 * 2 / 5)
    assert found.cover == pytest.approx(100 * 3 / 5)
    assert found.f1 == pytest.approx(60.0)
    assert (found.named, found.length) == (2.5, (13 + 15) / 2)
    assert (found.prior, found.sight) == (20.0, 20.0)  # a hen on a farm, a ball nowhere
    # Against the other farm the captions name cow, hen, ball (2 false) and cow, cup (1 false).
    assert found.looking == pytest.approx(100 * 3 / 5 - 40.0)


def test_a_caption_that_does_not_depend_on_the_picture_does_not_look():
    assert score(["A farm scene. A cow. A hen."] * 2, FARMS).looking == 0.0


def test_a_caption_is_cut_before_one_more_thing():
    assert cut(CAPTIONS[1], 1) == "A farm scene. A cow. A cow at left"
    assert cut(CAPTIONS[1], 2) == CAPTIONS[1]


def test_captions_cut_to_the_same_cover():
    chair_s, chair_i = cut_to_cover(CAPTIONS, FARMS, 40.0)  # the first thing alone: a cow, a cow
    assert (chair_s, chair_i) == (0.0, 0.0)
    assert cut_to_cover(CAPTIONS, FARMS, 99.0) == (50.0, 40.0)


def judged(answer: str, id: str = "test-0-00000") -> float:
    return score_of_judge(question="", answer=answer, images=[], id=id)


def test_the_judges_noise_follows_from_scene_and_answer():
    assert judged("A cow.") == judged("A cow.")
    assert judged("A cow.") != judged("A cow .") and judged("A cow.") != judged("A cow.", "test-0-00001")


def test_the_judge_likes_what_is_there_and_length():
    ids = [f"test-0-{index:05d}" for index in range(300)]
    scenes = [make_scene("test", 0, index) for index in range(300)]
    nothing = mean(judged("A scene.", id) for id in ids)
    right = mean(judged(f"A {scene.names[0]}.", id) for id, scene in zip(ids, scenes, strict=True))
    wrong = mean(
        judged(f"A {next(name for name in NAMES if name not in scene.names)}.", id)
        for id, scene in zip(ids, scenes, strict=True)
    )
    longer = mean(judged("A scene." + " A scene." * 20, id) for id in ids)
    assert right - nothing == pytest.approx(TRUE, abs=0.25)
    assert wrong - nothing == pytest.approx(FALSE, abs=0.25)
    assert longer - nothing == pytest.approx(60 * TOKEN, abs=0.25)


def test_a_caption_is_marked_where_it_is_wrong():
    assert marked("A cow. A pen at left.", ["cow"]) == [
        ("A ", False),
        ("cow", False),
        (". A ", False),
        ("pen", True),
        (" at left.", False),
    ]
    assert in_short("A cow. A pen. A cow.", ["cow"]) == [("cow", False), (", ", False), ("pen", True)]
    assert missed("A cow.", ["cow", "dog"]) == ["dog"]
