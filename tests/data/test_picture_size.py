"""Pictures to size: what each family's processor makes of max_pixels and min_pixels, and what is proposed for a long
row.
"""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from mdpo.commands.rows import add_size_options
from mdpo.data import DataOptions, PictureSize, PreferenceDataset, parse_rows, size_pictures
from mdpo.data.image_tokens import ImageTokens
from mdpo.data.picture_size import size_options, size_settings, sizes_of
from mdpo.errors import InputError
from mdpo.packing import family_of
from tests import tiny

SIZED = {
    "qwen2_vl": tiny.qwen2_vl_processor,
    "idefics3": tiny.idefics3_processor,
    "internvl": tiny.internvl_processor,
}
FIXED = {"llava": tiny.processor, "llava_next": tiny.llava_next_processor}
SHAPES = [(200, 120), (31, 90), (300, 40), (20, 20)]  # width, height
PACKED = family_of(tiny.llava())  # its rows are, as those of the families here
TEXT = {"prompt": "what is this?", "chosen": "a red cat", "rejected": "the blue dog"}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def dataset(processor, *rows: dict, **options) -> PreferenceDataset:
    numbered = [{"id": f"row{index}", **TEXT, **row} for index, row in enumerate(rows)]
    return PreferenceDataset(parse_rows(numbered, "."), processor, DataOptions(**options))


def pixels_seen(family: str, made) -> int:
    """Pixels of the one picture that was made, without the thumbnail beside its tiles."""
    if family == "qwen2_vl":
        return int(made["image_grid_thw"].prod()) * 4**2
    tiles = made["pixel_values"].flatten(0, -4)
    real = int((tiles != 0).flatten(1).any(1).sum())
    return (real - (real > 1)) * tiny.SIDE**2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("most", [1024, 2048, 9300])
@pytest.mark.parametrize("family", SIZED)
def test_no_picture_has_more_pixels_and_its_tokens_are_the_processors(family, most, shape):
    processor = size_pictures(SIZED[family](), PictureSize(max_pixels=most))
    image = picture(*shape)
    made = processor(text=[processor.image_token], images=[image], add_special_tokens=False, return_tensors="pt")
    assert pixels_seen(family, made) <= most
    assert ImageTokens(processor)(image.height, image.width).tolist() == made["input_ids"][0].tolist()
    data = dataset(processor, {"image": image})
    example = data[0]
    assert torch.equal(example.images["pixel_values"], made["pixel_values"])
    assert example.images["pixel_values"].shape == example.rejected_images["pixel_values"].shape, "as many tokens"


@pytest.mark.parametrize("family", SIZED)
def test_fewer_pixels_are_fewer_tokens(family):
    lengths = [
        int(dataset(size_pictures(SIZED[family](), PictureSize(**size)), {"image": picture(200, 120)}).lengths[0])
        for size in ({"max_pixels": 1024}, {"max_pixels": 9216 if family == "idefics3" else 3072}, {})
    ]
    assert lengths == sorted(set(lengths))


@pytest.mark.parametrize(("family", "tokens"), [("qwen2_vl", (5 * 5, 8 * 8)), ("internvl", (2 + 4, 2 + 5 * 4))])
def test_small_pictures_are_made_larger(family, tokens):
    before, after = SIZED[family](), size_pictures(SIZED[family](), PictureSize(min_pixels=4096))
    assert (len(ImageTokens(before)(40, 40)), len(ImageTokens(after)(40, 40))) == tokens


@pytest.mark.parametrize(
    ("family", "size", "settings"),
    [
        ("qwen2_vl", {"max_pixels": 128}, {"size": {"shortest_edge": 128, "longest_edge": 128}}),
        ("qwen2_vl", {"min_pixels": 8192}, {"size": {"shortest_edge": 8192, "longest_edge": 8192}}),
        (
            "qwen2_vl",
            {"image_processor_kwargs": {"size": {"longest_edge": 999}}},
            {"size": {"shortest_edge": 256, "longest_edge": 999}},
        ),
        ("idefics3", {"max_pixels": 9999}, {"size": {"longest_edge": 96}, "do_image_splitting": True}),
        (
            "idefics3",
            {"image_processor_kwargs": {"do_image_splitting": False}},
            {"size": {"longest_edge": 128}, "do_image_splitting": False},
        ),
        ("internvl", {"max_pixels": 5000}, {"min_patches": 1, "max_patches": 4}),
        ("internvl", {"image_processor_kwargs": {"max_patches": 6}}, {"min_patches": 1, "max_patches": 6}),
        ("internvl", {}, {"min_patches": 1, "max_patches": 12}),
        ("llava", {}, {}),
    ],
)
def test_the_size_is_the_image_processors_own_and_is_saved_with_it(tmp_path, family, size, settings):
    processor = size_pictures((SIZED | FIXED)[family](), PictureSize(**size))
    assert size_settings(processor) == settings
    processor.image_processor.save_pretrained(tmp_path)
    processor.image_processor = type(processor.image_processor).from_pretrained(tmp_path)
    assert size_settings(processor) == settings
    made = processor(text=[processor.image_token], images=[picture(90, 50)], add_special_tokens=False)
    assert len(made["input_ids"][0]) == len(ImageTokens(processor)(50, 90))


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("llava", {"max_pixels": 9}, "max_pixels: CLIPImageProcessorPil resizes every image to 32 x 32; leave it out"),
        ("llava", {"image_processor_kwargs": {"size": {"shortest_edge": 9}}},
            "image_processor_kwargs: CLIPImage.* to 32 x 32"),
        ("llava_next", {"min_pixels": 9},
            r"min_pixels: .* built with \(image_grid_pinpoints: 32 x 64, .*; leave it out, and make"),
        ("qwen2_vl", {"max_pixels": 63}, "max_pixels: 63 is less than the 64 pixels of one token; give at least 64"),
        ("idefics3", {"max_pixels": 1023},
            "max_pixels: 1023 is less than the 1024 pixels of one tile; give at least 1024"),
        ("internvl", {"max_pixels": 1023},
            "max_pixels: 1023 is less than the 1024 pixels of one tile; give at least 1024"),
        ("idefics3", {"min_pixels": 9}, "min_pixels: Idefics3ImageProcessorPil scales every image, .*; leave it out"),
        (
            "internvl",
            {"image_processor_kwargs": {"image_mean": [0]}},
            "image_processor_kwargs: image_mean is not a setting by which .*; it has min_patches, max_patches, and",
        ),
        ("internvl", {"image_processor_kwargs": {"min_patches": 13}},
            "image_processor_kwargs: the least, 13, is more than .*, 12;"),
        ("internvl", {"image_processor_kwargs": {"max_patches": True}},
            "max_patches is True; expected a whole number above 0"),
        ("idefics3", {"image_processor_kwargs": {"do_image_splitting": 1}},
            "do_image_splitting is 1; expected true or false"),
        ("idefics3", {"image_processor_kwargs": {"size": {"height": 9}}},
            "size is .*; expected whole .* names longest_edge"),
        ("qwen2_vl", {"image_processor_kwargs": {"size": 9}},
            "size is 9; expected whole .* names shortest_edge, longest_edge"),
        (
            "qwen2_vl",
            {"max_pixels": 999, "image_processor_kwargs": {"size": {"longest_edge": 99}}},
            "image_processor_kwargs: size is what max_pixels sets on this processor; keep one of them",
        ),
    ],
)  # fmt: skip
def test_what_a_processor_cannot_do_is_said_with_what_it_has(family, size, message):
    with pytest.raises(InputError, match=f"^(image_processor_kwargs: )?{message}"):
        size_pictures((SIZED | FIXED)[family](), PictureSize(**size))


@pytest.mark.parametrize("family", ["idefics3", "internvl"])
def test_a_processor_that_cuts_no_tiles_has_pictures_of_one_size(monkeypatch, family):
    processor = SIZED[family]()
    if family == "idefics3":
        processor.image_processor.do_image_splitting = False
    else:
        monkeypatch.setattr("mdpo.data.picture_size.image_settings", lambda processor: {})
    with pytest.raises(InputError, match="max_pixels: .* is false, so every image is resized to 32 x 32; leave it out"):
        size_pictures(processor, PictureSize(max_pixels=5000))
    data = dataset(processor, {"image": picture(200, 120)})
    with pytest.raises(InputError) as error:
        data.check_budget(int(data.lengths[0]) - 1, PACKED)
    assert "max_pixels" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"max_pixels": 0}, "max_pixels is 0; expected a whole number above 0"),
        ({"min_pixels": 2.5}, "min_pixels is 2.5; expected a whole number above 0"),
        ({"min_pixels": 3, "max_pixels": 2}, "min_pixels: 3 is more than max_pixels 2; lower it"),
        (
            {"image_processor_kwargs": [1]},
            "image_processor_kwargs: a list; give the image processor's settings by name",
        ),
    ],
)
def test_sizes_that_no_picture_has_are_refused(size, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        PictureSize(**size)


def test_the_options_of_a_command_are_the_settings():
    parser = argparse.ArgumentParser()
    add_size_options(parser)
    given = ["--max-pixels", "9", "--min-pixels", "3", "--image-processor-kwargs", '{"size": {"longest_edge": 9}}']
    assert size_options(parser.parse_args(given)) == PictureSize(9, 3, {"size": {"longest_edge": 9}})
    assert size_options(parser.parse_args([])) == PictureSize()
    with pytest.raises(InputError, match="--image-processor-kwargs: not JSON"):
        size_options(parser.parse_args(["--image-processor-kwargs", "{size"]))


# Rows that are too long


def proposed(message: str) -> int:
    return int(message.partition("max_pixels: ")[2].partition(",")[0])


@pytest.mark.parametrize("cuts", [False, True], ids=["whole answers", "cut answers"])
@pytest.mark.parametrize("share", [0.95, 0.5])
@pytest.mark.parametrize("family", SIZED)
def test_the_most_pixels_that_fit_the_budget_are_proposed(family, share, cuts):
    rows = [{"image": picture(200, 120)}, {"images": [picture(50, 50), picture(120, 90)]}, {}]
    rows[1]["prompt"] = "<image> <image> what is this?"
    limit = dataset(SIZED[family](), *rows).longest_branch()[0] - 2 if cuts else None
    whole = dataset(SIZED[family](), *rows, max_length=limit)
    budget = int(share * whole.lengths.max())
    with pytest.raises(InputError) as error:
        whole.check_budget(budget, PACKED)
    message, longest = str(error.value), int(whole.lengths.max())
    assert message.startswith(
        f"dataset, row {int(whole.lengths.argmax())}: {longest} packed tokens, more than token_budget {budget}"
    )
    assert f"raise token_budget to at least {longest}, set max_pixels: " in message

    def longest_with(pixels: int) -> int:
        sized = size_pictures(SIZED[family](), PictureSize(max_pixels=pixels))
        return int(dataset(sized, *rows, max_length=limit).lengths.max())

    choices = list(sizes_of(whole.processor).choices())
    best = choices.index(proposed(message))
    assert longest_with(choices[best]) <= budget < longest_with(choices[best + 1])
    assert int(whole.lengths.max()) == longest, "the data set's own processor is as it was"


def test_pictures_are_not_blamed_for_text():
    long = {"chosen": "a red cat " * 40}
    for family, rows in (
        ("qwen2_vl", [long, {"image": picture(9, 9)}]),
        ("llava", [{**long, "image": picture(200, 90)}]),
    ):
        data = dataset((SIZED | FIXED)[family](), *rows)
        with pytest.raises(InputError) as error:
            data.check_budget(100, PACKED)
        assert str(error.value).endswith(f"to at least {data.lengths.max()}, or shorten or leave out what is longer")


def test_rows_that_smaller_pictures_do_not_help_are_left_out_of_the_count():
    data = dataset(tiny.qwen2_vl_processor(), {"chosen": "a red cat " * 40}, {"image": picture(200, 120)})
    with pytest.raises(
        InputError, match=r"; 2 of 2 rows have, this is the longest: .* with which 1 of them fit, or shorten"
    ):
        data.check_budget(100, PACKED)
    data.check_budget(int(data.lengths.max()), PACKED)


def test_a_branch_that_is_too_long_and_a_prompt_past_max_length_say_so_too():
    data = dataset(tiny.qwen2_vl_processor(), {"image": picture(200, 120)})
    limit = data.longest_branch()[0] - 20
    pixels = proposed(data.smaller_pictures(limit))
    sized = size_pictures(tiny.qwen2_vl_processor(), PictureSize(max_pixels=pixels))
    assert limit - 10 < dataset(sized, {"image": picture(200, 120)}).longest_branch()[0] <= limit
    with pytest.raises(
        InputError, match="within max_length 50; raise max_length, set a smaller max_pixels or drop the row"
    ):
        dataset(tiny.qwen2_vl_processor(), {"image": picture(200, 120)}, max_length=50)
    with pytest.raises(InputError, match="within max_length 20; raise max_length or drop the row"):
        dataset(tiny.processor(), {"image": picture(200, 120)}, max_length=20)
