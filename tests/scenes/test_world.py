"""The world of scenes: everything follows from split, seed and index, and the writer errs as he is said to."""

import numpy as np
import pytest

from bench.digits.tune import build_processor
from bench.scenes.pictures import emoji_picture, render
from bench.scenes.world import (
    NAMES,
    PRIOR,
    PROMPT,
    SIZE,
    THEME_OF,
    THEMES,
    WHOLE,
    WORDS,
    Scene,
    Thing,
    caption,
    make_scene,
    mentioned,
    place,
)

SCENES = [make_scene("test", 7, index) for index in range(400)]


def test_a_scene_follows_from_split_seed_and_index():
    assert make_scene("test", 7, 3) == SCENES[3]
    others = [make_scene("test", 8, 3), make_scene("preference", 7, 3), make_scene("test", 7, 4)]
    assert all(other.things != SCENES[3].things for other in others)
    assert np.array_equal(render(SCENES[3]), render(make_scene("test", 7, 3)))


def test_scenes_show_two_to_five_kinds_at_most_one_of_them_from_elsewhere():
    assert {len(scene.names) for scene in SCENES} == {2, 3, 4, 5}
    strangers = [sum(THEME_OF[name] != scene.theme for name in scene.names) for scene in SCENES]
    assert set(strangers) == {0, 1} and 0.15 < np.mean(strangers) < 0.35
    assert {name for scene in SCENES for name in scene.names} == set(NAMES)


def test_things_lie_in_the_picture_and_hardly_on_each_other():
    apart = []
    for scene in SCENES:
        assert all(0 < thing.x < SIZE and 0 < thing.y < SIZE for thing in scene.things)
        first, second = scene.things[:2]
        apart.append(max(abs(first.x - second.x), abs(first.y - second.y)) > 0.42 * (first.side + second.side))
    assert np.mean(apart) > 0.99


def test_a_close_up_shows_a_part():
    scenes = [make_scene("tune", 0, index, close_up=1.0) for index in range(200)]
    assert all(scene.view != WHOLE for scene in scenes)
    assert np.mean([len(scene.shown) < len(scene.things) for scene in scenes]) > 0.5
    assert render(scenes[0]).size == (SIZE, SIZE)


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        (WHOLE, [Thing("cow", "🐄", 20, 30, 40)]),
        ((30.0, 0.0, 66.0, 36.0), []),  # of the cow, a right upper corner: less than half
        ((30.0, 20.0, 66.0, 56.0), [Thing("cow", "🐄", 40, 0, 40)]),  # its right half, twice as large
        ((31.0, 20.0, 67.0, 56.0), []),
    ],
)
def test_a_picture_shows_what_it_shows_half_of(view, shown):
    scene = Scene("test", 0, 0, "farm", (Thing("cow", "🐄", 20, 30, 40),), view)
    assert scene.shown == shown


def test_the_writer_names_what_is_there_and_expects_what_is_not():
    seen, expected = [], {rank: [] for rank in range(len(PRIOR))}
    for scene in SCENES:
        for version in range(4):
            named = mentioned(caption(scene, version))
            assert len(named) == len(set(named))
            assert all(name in scene.names or THEME_OF[name] == scene.theme for name in named)
            seen += [name in named for name in scene.names]
            for rank, name in enumerate(THEMES[scene.theme]):
                if name not in scene.names:
                    expected[rank].append(name in named)
    assert 0.91 < np.mean(seen) < 0.95
    assert np.allclose([np.mean(expected[rank]) for rank in expected], PRIOR, atol=0.06)


def test_a_place_is_where_the_thing_is():
    assert [place(Thing("cow", "🐄", 20, x, 40)) for x in (-1, 10, 30, 60, 73)] == [
        "left",
        "left",
        "middle",
        "right",
        "right",
    ]
    cow = Scene("test", 0, 0, "farm", (Thing("cow", "🐄", 20, 60, 40),), WHOLE)
    told = {caption(cow, version).partition("A cow at ")[2].partition(".")[0] for version in range(40)}
    assert "right" in told and not told & {"left", "middle"}


def test_every_word_is_a_token_and_comes_back():
    tokenizer = build_processor(WORDS).tokenizer
    for text in [PROMPT, *(caption(scene) for scene in SCENES[:50])]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_all_emoji_are_drawn_and_differ():
    emoji = [each for kinds in THEMES.values() for every in kinds.values() for each in every]
    drawn = [np.asarray(emoji_picture(each)) for each in emoji]
    assert len({picture.tobytes() for picture in drawn}) == len(emoji)
    assert all((picture[..., 3] > 0).mean() > 0.15 for picture in drawn)
