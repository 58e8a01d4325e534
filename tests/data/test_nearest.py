"""The most similar other picture: by embeddings, never the row's own, and the same in every run."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mdpo.data import DataOptions, PreferenceDataset, parse_rows
from mdpo.data import nearest as nearest_module
from mdpo.data.nearest import nearest
from mdpo.data.preview import contact_sheet
from mdpo.errors import InputError
from tests import tiny

PROCESSOR = tiny.processor()
TEXT = {"prompt": "q?", "chosen": "a", "rejected": "b"}
THREE = ("chosen", "image_rejected", "chosen@negative_2", "chosen@negative_3")


def by_angle(vectors: np.ndarray, count: int) -> list[list[int]]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return [
        [other for other in sorted(range(len(unit)), key=lambda at: (-row[at], at)) if other != at][:count]
        for at, row in enumerate(cosines)
    ]


def test_the_nearest_are_those_of_the_largest_cosine_however_they_are_cut(monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32) * np.arange(1, 31)[:, None]
    want = by_angle(vectors.astype(np.float64), 4)
    assert nearest(vectors.astype(np.float32), 4).tolist() == want
    monkeypatch.setattr(nearest_module, "_SIMILARITIES", 70)
    assert nearest(vectors.astype(np.float32), 4).tolist() == want


def test_of_equally_near_ones_the_first_comes_first_and_the_same_picture_never():
    vectors = np.array([[1, 0], [0, 1], [0, -1], [0, 2], [1, 0], [-1, 0]], np.float32)
    assert nearest(vectors, 3).tolist() == [[1, 2, 3], [0, 4, 5], [0, 4, 5], [0, 4, 5], [1, 2, 3], [1, 2, 3]]
    assert nearest(vectors[:2], 3).tolist() == [[1, -1, -1], [0, -1, -1]]
    assert nearest(vectors[:1], 2).tolist() == [[-1, -1]]


class Shades:
    """Embeds a picture of one shade as a direction: like shades are near."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, digests, picture):
        self.asked += digests
        shades = [float(picture(at)["pixel_values"].mean()) for at in range(len(digests))]
        return torch.tensor([[np.cos(shade / 4), np.sin(shade / 4)] for shade in shades], dtype=torch.float32)


def shade(level: int) -> Image.Image:
    return Image.new("RGB", (40, 36), (level, level, level))


def dataset(rows, branches=("chosen", "image_rejected"), negative="nearest_image") -> PreferenceDataset:
    return PreferenceDataset(rows, PROCESSOR, DataOptions(branches, negative=negative))


def pixels(level: int) -> torch.Tensor:
    return PROCESSOR.image_processor([shade(level)], return_tensors="pt")["pixel_values"]


def levels(data: PreferenceDataset, index: int) -> list[int]:
    known = {level: pixels(level).mean() for level in range(0, 256, 5)}
    return [min(known, key=lambda at: abs(known[at] - one["pixel_values"].mean())) for one in data[index].negatives]


def test_the_kth_negative_is_the_kth_nearest(tmp_path):
    for level in (0, 10, 30, 100, 200):
        shade(level).save(tmp_path / f"{level}.png")
    shade(10).save(tmp_path / "copy.png")
    shade(10).save(tmp_path / "copy.bmp")
    names = ["0", "10", "30", "100", "200", "copy"]
    rows = parse_rows([{**TEXT, "image": f"{name}.png"} for name in names] + [{**TEXT, "image": "copy.bmp"}], tmp_path)
    data, embed = dataset(rows, THREE), Shades()
    data.find_neighbours(embed)
    assert len(embed.asked) == 6, "one file, whatever it is called"
    assert levels(data, 0)[0] == 10 and levels(data, 1) == [0, 30, 100] and levels(data, 4) == [100, 30, 10]
    assert levels(data, 5) == levels(data, 6) == [0, 30, 100], "a copy is never its own negative, nor in another format"
    data.find_neighbours(embed)
    assert len(embed.asked) == 6, "found once"
    assert levels(pickle.loads(pickle.dumps(data)), 1) == [0, 30, 100], "a worker has them too"


def test_copies_of_one_picture_are_one_whatever_takes_them(tmp_path):
    for level in (0, 10, 30, 100):
        shade(level).save(tmp_path / f"{level}.png")
    for level in (10, 30):
        shade(level).save(tmp_path / f"{level}.bmp")
    names = ["0.png", "10.png", "30.png", "100.png", "10.bmp", "30.bmp"]
    rows = parse_rows([{**TEXT, "image": name} for name in names], tmp_path)
    alone = dataset(rows, THREE)
    alone.find_neighbours(Shades())
    assert levels(alone, 0) == [10, 30, 100]
    mixed = dataset(rows, THREE, "random_image:1+nearest_image:1")
    mixed.find_neighbours(Shades())
    for index, name in enumerate(names):
        assert sorted([*levels(mixed, index), int(name[:-4])]) == [0, 10, 30, 100], "each other picture once"
    few = dataset(rows, (*THREE, "chosen@negative_4"), "random_image:1+nearest_image:1")
    with pytest.raises(InputError, match="row 0: images: nearest_image needs 4 images that this row does not have"):
        few.find_neighbours(Shades())


def test_a_rows_own_other_pictures_are_passed_over():
    rows = parse_rows(
        [{**TEXT, "images": [shade(0), shade(10)]}, {**TEXT, "image": shade(30)}, {**TEXT, "image": shade(100)}], "."
    )
    data = dataset(rows)
    data.find_neighbours(Shades())
    want = torch.cat([pixels(30), pixels(30)])
    assert torch.equal(data[0].rejected_images["pixel_values"], want)
    assert levels(data, 1) == [10]


def test_without_another_picture_the_row_is_named():
    data = dataset(parse_rows([TEXT, {**TEXT, "image": shade(0)}, {**TEXT, "image": shade(0)}], "."))
    with pytest.raises(InputError, match="dataset, row 1: images: nearest_image needs a second row"):
        data.find_neighbours(Shades())


def test_before_a_model_was_asked_it_says_so():
    data = dataset(parse_rows([{**TEXT, "image": shade(0)}, {**TEXT, "image": shade(9)}], "."))
    with pytest.raises(InputError, match="^negative: nearest_image needs the model"):
        data[0]
    other = dataset(data.rows, negative="random_image")
    other.find_neighbours(None)  # never asked


def test_a_preview_goes_without_it_and_says_so(caplog):
    rows = parse_rows([{**TEXT, "image": shade(0)}, {**TEXT, "image": shade(9)}], ".")
    wide = contact_sheet(rows, 1, [], 0)
    one = contact_sheet(rows, 1, ["nearest_image", "crop_0_20:0.5+nearest_image:0.5", "black"], 0)
    assert caplog.messages == ["nearest_image needs the model to tell which images look alike; it is not shown"] * 2
    assert one.width == contact_sheet(rows, 1, ["black"], 0).width < wide.width
