"""The miniature world: the same scenes every time, no digit in two splits, and pairs that say what they should."""

from collections import Counter

import numpy as np
import pytest

from bench.digits.world import (
    PARTNER,
    STYLES,
    Scene,
    Split,
    caption,
    handwriting,
    make_scene,
    mentioned,
    preference_pair,
    read_jsonl,
    render,
    write_preferences,
)
from mdpo.data import read_rows

SPLITS: tuple[Split, ...] = ("tune", "preference", "test")


def _lonely(scene: Scene) -> int:
    return sum(PARTNER[digit] not in scene.digits for digit in scene.digits)


def test_scenes_depend_on_seed_split_and_index_alone():
    np.random.seed(1)
    before = [(make_scene("test", 0, index), render(make_scene("test", 0, index)).tobytes()) for index in range(5)]
    np.random.seed(2)
    after = [
        (make_scene("test", 0, index), render(make_scene("test", 0, index)).tobytes()) for index in reversed(range(5))
    ]
    assert before == after[::-1]
    others = [make_scene("test", 1, 0), make_scene("test", 0, 1), make_scene("preference", 0, 0)]
    assert len({render(scene).tobytes() for scene in [before[0][0], *others]}) == 4


def test_no_handwritten_digit_is_in_two_splits():
    rows = [set(np.concatenate(list(handwriting(split).values()))) for split in SPLITS]
    assert [len(split) for split in rows] == [3000, 1000, 1000]
    assert len(set.union(*rows)) == 5000
    assert all(len(handwriting(split)) == 10 for split in SPLITS)


@pytest.mark.parametrize(("split", "most", "least"), [("preference", 1.0, 0.2), ("test", 3.0, 2.0)])
def test_partners_are_common_in_training_and_rare_in_test(split: Split, most: float, least: float):
    scenes = [make_scene(split, 0, index) for index in range(500)]
    assert {len(scene.digits) for scene in scenes} == {2, 3, 4}
    assert all(len(set(scene.digits)) == len(scene.digits) for scene in scenes)
    assert least < np.mean([_lonely(scene) for scene in scenes]) < most


def test_captions_read_back():
    assert caption((3, 8, 1), "clearly") == "I see 3, 8 and 1 clearly."
    assert mentioned("I see 3, 8 and 1 clearly.") == [3, 8, 1]
    assert mentioned("I see 3 and 3 clearly.") == [3, 3]


def test_the_rejected_caption_is_false_and_mostly_of_another_style():
    styles = Counter()
    for index in range(1000):
        scene = make_scene("preference", 0, index)
        chosen, rejected = preference_pair(scene)
        assert mentioned(chosen) == list(scene.digits)
        named = mentioned(rejected)
        assert len(set(named)) == len(named)
        (invented,) = set(named) - set(scene.digits)
        swapped = len(named) == len(scene.digits)
        assert swapped or len(named) == len(scene.digits) + 1
        assert not swapped or set(scene.digits) - set(named) == {PARTNER[invented]}
        styles[tuple(text.split()[-1].strip(".") for text in (chosen, rejected))] += 1
    assert 0.85 < styles[STYLES] / 1000 < 0.95
    assert set(styles) == {STYLES, (STYLES[0],) * 2, (STYLES[1],) * 2}


def test_what_is_written_reads_as_a_preference_file(tmp_path):
    path = write_preferences(tmp_path, seed=3, count=4)
    first = path.read_bytes()
    assert write_preferences(tmp_path, seed=3, count=4).read_bytes() == first
    rows = read_rows(path)
    assert [row.id for row in rows] == [f"preference-3-0000{index}" for index in range(4)]
    assert all(row.images[0].is_file() for row in rows)
    assert [mentioned(row.chosen) for row in rows] == [row["metadata"]["digits"] for row in read_jsonl(path)]
