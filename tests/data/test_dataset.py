"""Rows as packed examples: lengths, cuts, branches, and errors before training."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Idefics3Processor, LlavaNextProcessor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mdpo.data import DataOptions, PreferenceDataset, parse_rows, read_rows
from mdpo.data.encode import EncodedRow
from mdpo.data.image_tokens import ImageTokens
from mdpo.data.token_store import TokenWriter
from mdpo.errors import InputError
from mdpo.models import load_processor, sequence_logps
from mdpo.packing import pack
from tests import tiny

PROCESSOR = tiny.processor()
IMAGE, EOS = 3, 1
DPO = ("chosen", "rejected")
TEXT = {"prompt": "what is this?", "chosen": "a cat sits", "rejected": "a dog"}


def noise(seed: int = 0, height: int = 40, width: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def mixed() -> list:
    """One image, none, two of different sizes."""
    return parse_rows(
        [
            {**TEXT, "image": noise(0)},
            TEXT,
            {**TEXT, "images": [noise(1), noise(2, 100, 30)], "prompt": "<image> or <image>?"},
        ],
        ".",
    )


def dataset(rows=None, **options) -> PreferenceDataset:
    return PreferenceDataset(mixed() if rows is None else rows, PROCESSOR, DataOptions(**options))


@pytest.mark.parametrize("options", [{}, {"branches": DPO}, {"drop_images": True}, {"max_length": 46}])
def test_lengths_are_the_packed_lengths(options):
    data = dataset(**options)
    model = tiny.llava()
    for index in range(len(data)):
        assert data.lengths[index] == data[index].packed_length == pack([data[index]], model).num_tokens


def test_images_take_their_tokens_and_text_only_rows_have_none():
    data = dataset()
    tokens = (tiny.SIDE // tiny.PATCH) ** 2
    assert [list(data[i].prompt_ids).count(IMAGE) for i in range(3)] == [tokens, 0, 2 * tokens]
    assert data[1].images is None and data[1].rejected_images is None
    assert data[2].images["pixel_values"].shape == data[2].rejected_images["pixel_values"].shape == (2, 3, 32, 32)
    assert not torch.equal(data[0].images["pixel_values"], data[0].rejected_images["pixel_values"])
    inputs = PROCESSOR(text=["USER: <image>\nwhat is this? ASSISTANT: a cat sits</s>"], images=[noise(0)])
    assert [*data[0].prompt_ids, *data[0].chosen_ids] == inputs["input_ids"][0]


def test_a_negative_belongs_to_its_epoch():
    data = dataset()
    always, again, first, second = (
        data[item].rejected_images["pixel_values"] for item in (0, (0, None), (0, 0), (0, 1))
    )
    assert torch.equal(always, again)
    assert not torch.equal(first, second) and not torch.equal(first, always)
    other = dataset(seed=1)[0].rejected_images["pixel_values"]
    assert not torch.equal(always, other)


def test_branches_and_images_can_be_left_out():
    without = dataset(branches=DPO)
    assert without[0].images is not None and without[0].rejected_images is None
    blind = dataset(drop_images=True)
    assert blind[0].images is None and IMAGE not in blind[0].prompt_ids
    assert blind.rows[2].prompt == [
        {"role": "user", "content": [{"type": "text", "text": " or "}, {"type": "text", "text": "?"}]}
    ]


def test_long_responses_are_cut_and_what_leaves_nothing_is_an_error():
    whole = dataset()
    limit = len(whole[0].prompt_ids) + 2
    rows = mixed()[:2]
    cut = dataset(rows, max_length=limit)
    assert list(cut[0].chosen_ids) == list(whole[0].chosen_ids[:2])
    assert list(cut[1].chosen_ids) == list(whole[1].chosen_ids), "a shorter prompt leaves more room"
    with pytest.raises(
        InputError, match=r"dataset, row 0: chosen: the prompt's \d+ tokens leave nothing .*raise max_length"
    ):
        dataset(rows, max_length=limit - 2)


def test_cut_responses_are_counted_once(caplog):
    limit = max(len(dataset()[index].prompt_ids) for index in range(2)) + 2
    with caplog.at_level(logging.WARNING):
        dataset(mixed()[:2], max_length=limit)
    assert [record.message for record in caplog.records if "max_length" in record.message] == [
        f"max_length {limit} cuts 2 of 4 responses, which lose their end"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        dataset(mixed()[:2], max_length=1000)
    assert "max_length" not in caplog.text


def test_an_image_preference_without_any_image_is_an_error(caplog):
    text = parse_rows([TEXT] * 3, ".")
    with pytest.raises(
        InputError, match=r"none of the 3 rows has an image \(the first is dataset, row 0\), and conditional"
    ):
        dataset(text)
    assert len(dataset(text, branches=DPO)) == len(dataset(text, drop_images=True)) == 3
    with caplog.at_level(logging.WARNING):
        dataset()
    assert caplog.messages == ["1 of 3 rows have no image: they train without the image preference"]
    caplog.clear()
    dataset(branches=DPO)
    dataset(parse_rows([{**TEXT, "image": noise()}], "."))
    assert not caplog.messages


def test_what_is_wrong_with_an_image_is_found_when_the_dataset_is_built(tmp_path):
    rows = tiny.records(tmp_path, 3)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:2000])
    with pytest.raises(InputError, match="dataset, row 1: images: image .*1.png does not decode"):
        dataset(parse_rows(rows, tmp_path))
    dataset(parse_rows(rows, tmp_path), drop_images=True)  # not read, so no error


def test_a_rows_own_negatives_are_used_and_checked(tmp_path):
    noise(9).save(tmp_path / "n.png")
    noise(8).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no")
    data = dataset(parse_rows([{**TEXT, "image": "a.png", "rejected_images": ["n.png"]}], tmp_path), negative="own")
    want = PROCESSOR.image_processor(images=[noise(9)], return_tensors="pt")["pixel_values"]
    assert torch.equal(data[0].rejected_images["pixel_values"], want)
    bad = parse_rows([{**TEXT, "image": "a.png", "rejected_images": "bad.png"}], tmp_path)
    with pytest.raises(InputError, match="row 0: rejected_images: image .*bad.png"):
        dataset(bad, negative="own")
    dataset(bad)  # not used, so no error


def test_an_unknown_negative_is_an_error():
    with pytest.raises(InputError, match="'blurred' is unknown"):
        dataset(negative="blurred")


def test_errors_cross_from_a_worker_as_they_are(tmp_path):
    rows = tiny.records(tmp_path, 2)
    data = dataset(parse_rows(rows, tmp_path))
    (tmp_path / "1.png").unlink()
    loader = DataLoader(data, batch_size=1, collate_fn=list, num_workers=1)
    with pytest.raises(InputError, match=r"row 1: images: image .*1.png does not exist"):
        list(loader)


def test_a_dataset_travels_to_spawned_workers(tmp_path):
    rows = parse_rows([{**TEXT, "image": {"bytes": _png(tmp_path)}}], tmp_path)
    data = pickle.loads(pickle.dumps(dataset(rows)))
    assert list(data[0].prompt_ids) == list(dataset(rows)[0].prompt_ids)


def _png(folder) -> bytes:
    noise().save(folder / "x.png")
    return (folder / "x.png").read_bytes()


def test_files_hold_rows_of_both_kinds(tmp_path):
    _, path = tiny.world(tmp_path, count=3)
    assert len(dataset(read_rows(path))) == 3


SIZES = [(40, 36), (36, 40), (300, 500), (700, 200), (64, 64)]


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3", "internvl"])
def test_image_tokens_are_the_processors(family):
    tokenizer = tiny.tokenizer()
    processor = {
        "llava": lambda: PROCESSOR,
        "llava_next": lambda: LlavaNextProcessor(
            LlavaNextImageProcessorPil(
                size={"shortest_edge": 32},
                crop_size={"height": 32, "width": 32},
                image_grid_pinpoints=[[32, 64], [64, 64]],
            ),
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
        "idefics3": lambda: Idefics3Processor(
            Idefics3ImageProcessorPil(size={"longest_edge": 256}, max_image_size={"longest_edge": 64}),
            tokenizer,
            image_seq_len=4,
        ),
        "internvl": tiny.internvl_processor,
    }[family]()
    tokens = ImageTokens(processor)
    for height, width in SIZES:
        image = noise(0, height, width)
        want = processor(text=[processor.image_token], images=[image], add_special_tokens=False)["input_ids"][0]
        assert tokens(height, width).tolist() == list(want), (height, width)


def test_internvls_tiles_reach_the_model():
    """Its processor asks for tiles that its image processor alone would not cut."""
    processor, model, image = tiny.internvl_processor(), tiny.internvl(), noise(0, 200, 330)
    data = PreferenceDataset(parse_rows([{**TEXT, "image": image}], "."), processor, DataOptions())
    text = f"USER: <image>\n{TEXT['prompt']} ASSISTANT: {TEXT['chosen']}</s>"
    theirs = processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=False)
    assert len(theirs["pixel_values"]) > 1
    example = data[0]
    assert [*example.prompt_ids, *example.chosen_ids] == theirs["input_ids"][0].tolist()
    assert torch.equal(example.images["pixel_values"], theirs["pixel_values"])
    with torch.no_grad():
        logits = model(input_ids=theirs["input_ids"], pixel_values=theirs["pixel_values"]).logits[0, :-1]
        scored = theirs["input_ids"][0, len(example.prompt_ids) :]
        logps = logits[len(example.prompt_ids) - 1 :].log_softmax(-1).gather(1, scored[:, None])
        ours = sequence_logps(model, pack([example], model))
    torch.testing.assert_close(ours[0, 0], logps.sum(), atol=2e-5, rtol=0)


def test_a_size_that_the_image_processor_refuses_names_its_row():
    processor = tiny.processor()

    def refuse(image_sizes):
        raise ValueError("absolute aspect ratio must be smaller than 200")

    processor._get_num_multimodal_tokens = refuse
    with pytest.raises(InputError, match="row 0: images: the image processor refuses the size: absolute aspect"):
        PreferenceDataset(mixed(), processor, DataOptions())


@pytest.mark.parametrize("largest", [400, 2**31 - 1])
def test_tokens_come_back_as_they_were_written(largest):
    writer = TokenWriter(largest)
    rows = [([1, 2, 3], [], [largest], [8], []), ([4], [5, 6], [7], [], [9, 9])]
    for row in rows:
        writer.add(EncodedRow(*row, rejected_weights=[0.5] * len(row[2])))
    tokens = writer.finish()
    assert [tuple(part.tolist() for part in tokens[index]) for index in range(2)] == rows
    assert [part.tolist() for part in tokens[-1]] == [[4], [5, 6], [7], [], [9, 9]]
    assert tokens.lengths().tolist() == [[3, 0, 1, 1, 0], [1, 2, 1, 0, 2]]
    assert tokens.largest() == (largest, 0)
    assert [part.tolist() for part in tokens.weights_of(1)] == [[], [0.5]]
    assert tokens.weighted().tolist() == [True, True]
    with pytest.raises(IndexError):
        tokens[2]


def test_a_token_id_past_any_vocabulary_is_one_line(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    damaged = json.loads(path.read_text())
    damaged["model"]["vocab"]["a"] = 2**31
    path.write_text(json.dumps(damaged))
    with pytest.raises(InputError, match="^the tokenizer has a token with id 2147483648, for which no model has"):
        PreferenceDataset(mixed(), load_processor(tmp_path), DataOptions())
