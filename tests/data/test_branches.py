"""Rows read as an objective's branches: what is there, how long it is, what is missing."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mdpo.config import MDPOConfig
from mdpo.data import DataOptions, PreferenceDataset, parse_rows, read_rows
from mdpo.data.check import check_file
from mdpo.data.check_report import report_lines
from mdpo.data.image_sources import image_root
from mdpo.data.sample import sample_file
from mdpo.errors import InputError
from mdpo.objectives import PRESETS, Objective
from mdpo.packing.branches import MDPO_BRANCHES
from mdpo.trainer.datasets import dataset_of
from mdpo_kernels import Term
from tests import tiny

PROCESSOR = tiny.processor()
TEXT = {"prompt": "what is this?", "chosen": "a cat sits", "rejected": "a dog"}


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 36, 3), dtype=np.uint8))


def records() -> list[dict]:
    """All that a row may bring, no contrast, no image, two images."""
    own = {"image": noise(0), "rejected_images": [noise(10), noise(11), noise(12)]}
    two = {"images": [noise(2), noise(3)], "rejected_images": [noise(seed) for seed in range(20, 26)]}
    return [
        {**TEXT, **own, "contrast": "two dogs on grass"},
        {**TEXT, **own},
        TEXT,
        {**TEXT, **two, "prompt": "<image> or <image>?", "contrast": "none"},
    ]


def dataset(*branches: str, rows=None, negative: str = "own", **options) -> PreferenceDataset:
    given = parse_rows(records() if rows is None else rows, ".")
    return PreferenceDataset(given, PROCESSOR, DataOptions(branches, negative=negative, **options))


@pytest.mark.parametrize(
    "branches",
    [
        MDPO_BRANCHES,
        ("chosen",),
        ("chosen", "rejected", "image_rejected", "contrast@negative"),
        ("chosen", "chosen@none", "contrast@negative", "contrast@none"),
        ("chosen", "rejected", "image_rejected", "chosen@negative_2", "chosen@negative_3"),
        ("chosen", "contrast@negative"),
        ("contrast@negative", "rejected", "rejected@negative_2"),
        ("chosen", "contrast@image"),
    ],
)
def test_lengths_count_each_picture_once_and_what_is_read_with_it(branches):
    data = dataset(*branches)
    for index in range(len(data)):
        example, total = data[index], 0
        prompts = {"none": example.imageless_prompt_ids}
        answers = {"chosen": example.chosen_ids, "rejected": example.rejected_ids, "contrast": example.contrast_ids}
        long = {"chosen": "chosen@image", "rejected": "rejected@image", "image_rejected": "chosen@negative"}
        read: dict[str, int] = {}
        for response, picture in (long.get(name, name).split("@") for name in branches):
            if answers[response] is None or (picture != "image" and example.images is None):
                continue
            read[picture] = read.get(picture, 0) + len(answers[response])
        total = sum(len(prompts.get(picture, example.prompt_ids)) + tokens for picture, tokens in read.items())
        assert data.lengths[index] == total, index
        negatives = max((int(picture[9:] or 1) for picture in read if picture.startswith("negative")), default=0)
        assert (len(example.negatives) > 0) == (negatives > 0), index


def test_one_negative_is_a_mapping_and_several_are_in_order():
    one, three = dataset(*MDPO_BRANCHES), dataset("chosen", "image_rejected", "chosen@negative_2", "chosen@negative_3")
    assert torch.equal(one[0].rejected_images["pixel_values"], three[0].rejected_images[0]["pixel_values"])
    want = [PROCESSOR.image_processor([noise(seed)], return_tensors="pt")["pixel_values"] for seed in (10, 11, 12)]
    assert [torch.equal(a["pixel_values"], b) for a, b in zip(three[0].negatives, want, strict=True)] == [True] * 3
    pair = PROCESSOR.image_processor([noise(22), noise(23)], return_tensors="pt")["pixel_values"]
    assert torch.equal(three[3].negatives[1]["pixel_values"], pair), "both images' second ones"
    assert three[2].rejected_images is None


def test_without_its_picture_a_prompt_is_what_drop_images_makes_of_it():
    data, blind = dataset("chosen", "chosen@none"), dataset("chosen", drop_images=True)
    for index in (0, 3):
        assert data[index].imageless_prompt_ids == blind[index].prompt_ids
    assert data[2].imageless_prompt_ids is None, "a row without an image has no such branch"
    rendered = [{**TEXT, "image": noise(), "prompt": "USER: <image>\nwhat is this? ASSISTANT:"}]
    assert dataset("chosen", "chosen@none", rows=rendered)[0].imageless_prompt_ids == blind[0].prompt_ids


def test_a_contrast_is_tokenised_as_any_answer_and_only_where_it_is_read():
    data = dataset("chosen", "contrast@negative")
    other = dataset("chosen", rows=[{**records()[0], "chosen": "two dogs on grass"}])
    assert data[0].contrast_ids == other[0].chosen_ids and data[1].contrast_ids is None
    assert data[1].rejected_images is None, "nothing reads the picture"
    assert dataset(*MDPO_BRANCHES)[0].contrast_ids is None
    limit = len(data[0].prompt_ids) + 2
    cut = dataset("chosen", "contrast@negative", rows=records()[:2], max_length=limit)
    assert cut[0].contrast_ids == data[0].contrast_ids[:2]


def test_what_no_row_has_is_an_error_and_what_some_lack_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        dataset("chosen", "contrast@negative", "chosen@none")
    assert caplog.messages == [
        "1 of 4 rows have no image: they train without the terms that read contrast@negative, chosen@none",
        "3 of 4 rows bring more rejected_images than the objective reads: the first 1 of each image are used",
        "2 of 4 rows have no contrast: they train without the terms that read contrast@negative",
    ]
    with pytest.raises(
        InputError, match=r"none of the 1 rows has a contrast \(the first is dataset, row 0\), which the terms"
    ):
        dataset("chosen", "contrast@negative", rows=records()[1:2])
    with pytest.raises(
        InputError, match="none of the 1 rows has an image .*, and the objective, which reads chosen@none,"
    ):
        dataset("chosen", "chosen@none", rows=[TEXT])


def test_a_contrast_belongs_to_the_rows_own_picture():
    with pytest.raises(InputError, match="negative: crop_0_20 makes the rejected image, .* reads contrast@negative"):
        dataset("chosen", "contrast@negative", negative="crop_0_20")
    with pytest.raises(InputError, match=r"negative: own:0\.5\+black:0\.5 makes"):
        dataset("chosen", "contrast@negative", negative="own:0.5+black:0.5")


def test_drop_images_leaves_what_reads_no_other_picture():
    data = dataset(*MDPO_BRANCHES, "chosen@none", drop_images=True)
    assert data.options.read == ("chosen", "rejected") and data[0].images is None
    with pytest.raises(InputError, match="drop_images: true leaves nothing of an objective that reads chosen@none"):
        DataOptions(("chosen@none",), drop_images=True)


def test_a_picture_that_no_term_compares_is_not_read():
    dpo = Objective(MDPO_BRANCHES, (Term("response", {"chosen": 1, "rejected": -1}),), "")
    args = MDPOConfig(use_cpu=True, report_to="none")
    assert DataOptions.of(args, dpo).branches == ("chosen", "rejected")
    every = Objective.of(Term("a", {"chosen@image": 1, "chosen@negative": -1}), source="")
    assert DataOptions.of(args, every).branches == ("chosen", "image_rejected")


def test_held_out_rows_may_lack_what_those_that_train_have(caplog, monkeypatch):
    apart = Term("t", {"chosen": 1, "contrast@negative": -1})
    objective = Objective.of(apart, Term("anchor", {"chosen": 1}), source="")
    monkeypatch.setattr("mdpo.trainer.datasets.objective_of", lambda args: objective)
    args = MDPOConfig(use_cpu=True, report_to="none", negative="own")
    assert dataset_of(records()[1:2], PROCESSOR, args)[0].contrast_ids is None
    assert caplog.messages == [
        "eval_dataset: no row has a contrast, so its loss is without the terms that read contrast@negative"
    ]
    with pytest.raises(InputError, match="has a contrast"):
        dataset_of(records()[1:2], PROCESSOR, args, "train_dataset")
    objective = Objective.of(apart, source="")
    with pytest.raises(
        InputError, match=r"^eval_dataset: no row has all that any term .* \(as t: chosen, contrast@negative\)"
    ):
        dataset_of(records()[1:2], PROCESSOR, args)
    objective = Objective.of(Term("t", {"contrast@negative": 1}), source="")
    with pytest.raises(
        InputError, match=r"^eval_dataset: no row has what the objective reads \(contrast@negative\); give"
    ):
        dataset_of(records()[1:2], PROCESSOR, args)
    with pytest.raises(InputError, match="branches is empty"):
        DataOptions(())


def test_a_sample_brings_what_its_rows_bring(tmp_path):
    for name in ("a", "b", "c"):
        noise(ord(name)).save(tmp_path / f"{name}.png")
    spans = {"chosen_weights": [[2, 5, 5]], "rejected_weights": [[0, 1, 0.5]]}
    line = {**TEXT, **spans, "image": "a.png", "rejected_images": ["b.png", "c.png"], "contrast": "two dogs"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**TEXT, "image": "b.png"}) + "\n")
    sample_file(tmp_path / "rows.jsonl", image_root(tmp_path), tmp_path / "sample.jsonl", count=None, seed=0)
    for row, again in zip(read_rows(tmp_path / "rows.jsonl"), read_rows(tmp_path / "sample.jsonl"), strict=True):
        assert replace(again, where=row.where) == row
    assert read_rows(tmp_path / "sample.jsonl")[0].chosen_weights == ((2, 5, 5.0),)
    lines = list(
        report_lines(check_file(tmp_path / "rows.jsonl", image_root(tmp_path), processor=PROCESSOR), "rows.jsonl")
    )
    assert "contrasts 1 rows bring the answer that is right for their rejected image" in lines
    assert "weights   1 rows bring chosen_weights or rejected_weights" in lines


@pytest.mark.parametrize("preset", PRESETS)
def test_the_check_measures_the_packed_rows_of_an_objective(tmp_path, preset):
    """And shows what the model reads of a row: all of its answers, and the prompt without its picture."""
    for name in ("a", "b", "c", "d"):
        noise(ord(name)).save(tmp_path / f"{name}.png")
    full = {**TEXT, "image": "a.png", "rejected_images": ["b.png", "c.png", "d.png"], "contrast": "two dogs"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(full) + "\n" + json.dumps({**TEXT, "id": "alone"}) + "\n")
    branches = PRESETS[preset].branches
    report = check_file(path, image_root(tmp_path), processor=PROCESSOR, branches=branches)
    options = DataOptions(branches, negative="own")
    assert list(report.lengths["packed"]) == PreferenceDataset(read_rows(path), PROCESSOR, options).lengths.tolist()
    shown = "\n".join(report.shown.lines())
    assert "contrast  « two dogs" in shown
    assert ("imageless" in shown) == any(name.endswith("@none") for name in branches)
