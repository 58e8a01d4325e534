"""Rejected images: deterministic, of the image's size, and distributed as the paper's."""

import itertools
import math
import random

import numpy as np
import pytest
from PIL import Image

from mdpo.data import NEGATIVES, parse_rows
from mdpo.data.images import check_images, open_image
from mdpo.data.negatives import NEEDS_MODEL, _crop_box, generator, parse_negative, random_resized_crop
from mdpo.data.rejected_images import RejectedImages
from mdpo.errors import InputError


def noise(seed: int = 0, height: int = 40, width: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def rows(count: int = 6, **columns) -> list:
    return parse_rows(
        [
            {
                "id": f"r{i}",
                "image": noise(i, 40 + i),
                "rejected_images": [noise(100 + i)],
                "prompt": "q?",
                "chosen": "a",
                "rejected": "b",
                **columns,
            }
            for i in range(count)
        ],
        ".",
    )


def maker(spec: str, rows: list, seed: int = 42) -> RejectedImages:
    return RejectedImages(rows, check_images(rows, own=True), parse_negative(spec), seed)


def made(spec: str, rows: list, index: int = 0, *, seed: int = 42, epoch: int | None = None) -> Image.Image:
    images = [open_image(image, "") for image in rows[index].images]
    return maker(spec, rows, seed).make(index, images, epoch)[0][0]


BY_THEMSELVES = [name for name in NEGATIVES if name != NEEDS_MODEL]


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_a_negative_is_a_function_of_seed_row_and_epoch(name):
    data = rows()
    first = made(name, data)
    assert first == made(name, data), "once more"
    assert first == made(name, data[:1] + data[1:][::-1]) or name == "random_image", "whatever the other rows are"
    assert first.size == data[0].images[0].size and first.mode == "RGB"
    if name not in ("black", "own"):
        others = [made(name, data, epoch=epoch) for epoch in range(3)] + [made(name, data, seed=7)]
        assert len({image.tobytes() for image in [first, *others]}) > 2


@pytest.mark.parametrize("name", [name for name in BY_THEMSELVES if name != "black"])
def test_a_negative_is_not_the_image(name):
    data = rows()
    for index in range(len(data)):
        assert made(name, data, index) != data[index].images[0]


def test_the_generator_is_pinned():
    # A cached reference stays valid only while these stay the same: the last line is from the first run.
    assert generator(42, "row", None).random() == generator(42, "row", None).random()
    numbers = {
        generator(*key).random() for key in [(42, "row", None), (42, "row", 0), (42, "row", 1), (1, "row", None)]
    }
    assert len(numbers) == 4
    assert generator(42, "row0", None).getrandbits(32) == 2285691497


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.2), (0.2, 0.5)])
def test_crops_keep_the_share_of_the_area_that_they_should(low, high):
    width, height = 1000, 800
    boxes = [_crop_box(width, height, random.Random(seed), (low, high)) for seed in range(4_000)]
    areas = np.array([(r - x) * (b - y) / (width * height) for x, y, r, b in boxes])
    aspects = np.array([(r - x) / (b - y) for x, y, r, b in boxes])
    assert low * 0.98 <= areas.min() and areas.max() <= high * 1.02, "but for rounding to pixels"
    assert aspects.min() > 0.73 and aspects.max() < 1.37
    # Uniform on [low, high]: mean (low + high) / 2, variance (high - low)² / 12; here with 4 standard errors' room.
    error = (high - low) / math.sqrt(12 * len(boxes))
    assert abs(areas.mean() - (low + high) / 2) < 4 * error
    assert areas.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)
    # Log-uniform on [3/4, 4/3]: mean 0, standard deviation 2 ln(4/3) / √12.
    spread = 2 * math.log(4 / 3) / math.sqrt(12)
    assert abs(np.log(aspects).mean()) < 4 * spread / math.sqrt(len(boxes))
    assert np.log(aspects).std() == pytest.approx(spread, rel=0.05)
    # The free space is used evenly: left / (width - crop width) is uniform on [0, 1].
    shares = np.array([x / (width - (r - x)) for x, _, r, _ in boxes])
    assert abs(shares.mean() - 0.5) < 4 / math.sqrt(12 * len(boxes))


def test_crops_of_narrow_images_stay_inside():
    for width, height in [(1, 1), (1, 50), (300, 2), (3, 3)]:
        for seed in range(50):
            left, top, right, bottom = _crop_box(width, height, random.Random(seed), (0.01, 0.2))
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert random_resized_crop(noise(0, height, width), random.Random(seed), (0.01, 0.2)).size == (
                width,
                height,
            )


def test_crops_that_are_pure_padding_are_drawn_again():
    padded = np.full((200, 200, 3), 127, dtype=np.uint8)
    padded += np.random.default_rng(1).integers(0, 4, padded.shape, dtype=np.uint8)  # as JPEG leaves it
    padded[:50, :50] = np.asarray(noise(0, 50, 50))
    image = Image.fromarray(padded)
    for seed in range(100):
        crop = np.asarray(random_resized_crop(image, random.Random(seed), (0.01, 0.2)))
        assert np.ptp(crop) > 8, seed
    flat = Image.new("RGB", (30, 30), "white")
    assert random_resized_crop(flat, random.Random(0), (0.01, 0.2)) == flat, "nothing else can be drawn"


def test_a_random_image_is_never_the_rows_own(tmp_path):
    for name in ("a", "b"):
        noise(ord(name)).save(tmp_path / f"{name}.png")
    text = {"prompt": "q?", "chosen": "a", "rejected": "b"}
    # Six rows share one file; only the last has another.
    data = parse_rows([{**text, "image": "a.png"}] * 6 + [text, {**text, "images": ["a.png", "a.png"]}], tmp_path)
    with pytest.raises(InputError, match="row 0: images: random_image needs a second row"):
        maker("random_image", data)
    data += parse_rows([{**text, "id": "b", "image": "b.png"}], tmp_path)
    for epoch in range(5):
        for index in (0, 5, 7):
            assert made("random_image", data, index, epoch=epoch) == noise(ord("b"))
        assert made("random_image", data, 8, epoch=epoch) == noise(ord("a"))


def test_a_row_that_has_every_image_needs_another(tmp_path):
    for name in ("a", "b"):
        noise(ord(name)).save(tmp_path / f"{name}.png")
    text = {"prompt": "q?", "chosen": "a", "rejected": "b"}
    data = parse_rows([{**text, "image": "a.png"}, {**text, "images": ["b.png", "a.png"]}], tmp_path)
    with pytest.raises(InputError, match="row 1: images: random_image needs"):
        maker("random_image", data)


def test_stored_copies_of_one_image_are_one_image(tmp_path):
    noise().save(tmp_path / "a.png")
    stored = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    data = parse_rows([{"image": dict(stored), "prompt": "q?", "chosen": "a", "rejected": "b"}] * 3, tmp_path)
    with pytest.raises(InputError, match="random_image needs"):
        maker("random_image", data)


def test_own_negatives_are_the_rows_and_required():
    data = rows()
    assert made("own", data, 2) == data[2].rejected_images[0].resize(data[2].images[0].size, Image.Resampling.BILINEAR)
    with pytest.raises(InputError, match="dataset, row 0: rejected_images: is missing, and the negative is own"):
        maker("crop_0_20:0.5+own:0.5", rows(rejected_images=None))


def test_black_is_black_and_noise_keeps_what_vcd_keeps():
    image = Image.new("RGB", (200, 200), (255, 255, 255))
    data = list(parse_rows([{"image": image, "prompt": "q?", "chosen": "a", "rejected": "b"}], "."))
    assert made("black", data) == Image.new("RGB", (200, 200))
    grey = Image.new("RGB", (200, 200), (127, 127, 127))
    data = list(parse_rows([{"image": grey, "prompt": "q?", "chosen": "a", "rejected": "b"}], "."))
    noisy = np.asarray(made("diffusion_noise", data), dtype=float) / 127.5 - 1
    # Σβ over steps 0…500 of the sigmoid schedule: 0.00499 × 999/12 × ln 2 + 501 × 1e-5 ≈ 0.296, so the noise has the
    # variance 1 − e^−0.296 ≈ 0.256; clipping at two standard deviations takes some of it.
    assert abs(noisy.mean()) < 0.01
    assert noisy.std() == pytest.approx(math.sqrt(0.256), rel=0.06)


def test_mixtures_draw_by_weight():
    data = rows()
    spec = "black:1+own:3"
    drawn = [made(spec, data, epoch=epoch) == Image.new("RGB", data[0].images[0].size) for epoch in range(400)]
    assert abs(np.mean(drawn) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)
    assert made("black:0.2", data) == made("black", data)
    assert made("crop_0_20:2", data) == made("crop_0_20", data)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blurred", "'blurred' is unknown; choose from crop_0_20"),
        ("", "'' is unknown"),
        ("crop_0_20+blurred:1", "crop_0_20.* weight above 0"),
        ("crop_0_20:1+blurred:1", "'blurred' is unknown"),
        ("crop_0_20:0+black:1", "weight above 0 for crop_0_20"),
        ("crop_0_20:x+black:1", "weight above 0"),
        ("crop_0_20:nan+black:1", "weight above 0"),
        ("crop_0_20:inf+black:1", "weight above 0"),
        ("crop_0_20:", "weight above 0"),
        ("crop_0_20:1+", "'' is unknown"),
    ],
)
def test_bad_specs_are_named(spec, message):
    with pytest.raises(InputError, match=message):
        parse_negative(spec)


def test_anyone_can_add_one(monkeypatch):
    monkeypatch.setitem(NEGATIVES, "borrowed", lambda image, rng, sources: sources.other(rng.getrandbits(8)))
    data = rows(2)
    assert made("borrowed", data) == data[1].images[0]
    with pytest.raises(InputError, match="needs a second row"):
        made("borrowed", data[:1])


def test_several_images_of_a_row_get_a_negative_each():
    data = parse_rows([{"images": [noise(1), noise(1)], "prompt": "q?", "chosen": "a", "rejected": "b"}], ".")
    (negatives,) = maker("crop_0_20", data).make(0, [noise(1), noise(1)])
    assert len(negatives) == 2
    assert all(a != b for a, b in itertools.combinations(negatives, 2)), "drawn one after the other"


def several(spec: str, data: list, count: int, index: int = 0, seed: int = 42) -> list[list[Image.Image]]:
    images = [open_image(image, "") for image in data[index].images]
    return RejectedImages(data, check_images(data, own=True), parse_negative(spec), seed, count).make(index, images)


def test_the_first_of_several_negatives_is_the_one_there_was():
    data = rows(5)
    for name in (name for name in BY_THEMSELVES if name not in ("black", "own")):
        first, second, third = (pictures[0] for pictures in several(name, data, 3))
        assert first == made(name, data), name
        assert len({picture.tobytes() for picture in (first, second, third)}) == 3, name
        assert several(name, data, 2)[1] == [second], "however many follow"


def test_random_images_are_different_ones_or_an_error(tmp_path):
    for index in range(4):
        Image.new("RGB", (8, 8), (index * 60, 0, 0)).save(tmp_path / f"{index}.png")
    text = {"prompt": "q?", "chosen": "a", "rejected": "b"}
    data = parse_rows([{**text, "image": f"{index % 4}.png"} for index in range(8)], tmp_path)
    for seed in range(10):
        found = [pictures[0].getpixel((0, 0))[0] for pictures in several("random_image", data, 3, seed=seed)]
        assert sorted(found) == [60, 120, 180]
    with pytest.raises(InputError, match="row 0: images: random_image needs 4 images that this row does not have"):
        several("random_image", data, 4)


def test_own_negatives_come_round_by_round():
    pictures = [noise(seed, 20, 20) for seed in range(6)]
    columns = {"images": [noise(9, 20, 20), noise(8, 20, 20)], "prompt": "q?", "chosen": "a", "rejected": "b"}
    data = parse_rows([{**columns, "rejected_images": pictures}], ".")
    assert several("own", data, 3) == [pictures[:2], pictures[2:4], pictures[4:]]


def test_too_few_of_ones_own_are_an_error_and_too_many_are_said_once(caplog):
    columns = {"prompt": "q?", "chosen": "a", "rejected": "b"}
    data = parse_rows(
        [{**columns, "image": noise(at), "rejected_images": [noise(9)] * (2 + at)} for at in range(3)], "."
    )
    several("own", data, 2)
    assert caplog.messages == [
        "2 of 3 rows bring more rejected_images than the objective reads: the first 2 of each image are used"
    ]
    with pytest.raises(InputError, match="row 0: rejected_images: 2 per image, and the objective reads 3; give more"):
        several("own", data, 3)


@pytest.mark.parametrize("spec", ["black", "crop_0_20:0.5+black:0.5"])
def test_several_equal_pictures_are_refused(spec):
    with pytest.raises(InputError, match="negative: black is the same image every time, .* compares 2 rejected"):
        several(spec, rows(3), 2)


@pytest.mark.parametrize(("height", "width"), [(336, 336), (240, 600), (7, 9), (1, 1)])
def test_a_share_of_square_patches_has_the_mean_colour(height, width):
    image = noise(1, height, width)
    pixels = np.asarray(image)
    masked = np.asarray(NEGATIVES["masked_patches"](image, random.Random(0), None))
    mean = pixels.mean(axis=(0, 1)).round()
    side = max(1, round(min(height, width) / 24))
    changed = total = 0
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        total += 1
        patch = np.s_[top : top + side, left : left + side]
        if (masked[patch] != pixels[patch]).any():
            changed += 1
            assert (masked[patch] == mean).all()
    assert abs(changed - 0.3 * total) <= 1, "but for a patch that has that colour anyway"
