"""Every format's rows, from every kind of file, become the same canonical rows; broken ones are named."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpo.data import PreferenceRow, read_rows
from mdpo.data.formats import FORMATS
from mdpo.data.images import StoredImage, open_image
from mdpo.data.rows import Checked, check_rows, image_root
from mdpo.data.sources import data_files, line_files, open_source
from mdpo.errors import InputError

COUNT = 24
TEXTS = [
    "a cat",
    "zwei\nZeilen\n",
    "猫が\u2028座る 🐈",
    'the tag "<image>" itself',
    "  spaces  ",
    "</s> ends",
    "e\u0301 ≠ é",
]


def wanted(index: int) -> dict:
    """What row ``index`` says in every format: text-only, one image, or two where the format can."""
    return {
        "question": f"what is this, nr. {index}? {TEXTS[index % 7]}".replace("<image>", "tag"),
        "chosen": f"{TEXTS[index % 7]} {index}",
        "rejected": f"{TEXTS[(index + 3) % 7]} not {index}",
        "images": [f"{index % 3}.png", f"{(index + 1) % 3}.png"][: index % 3],
    }


def one(row: dict) -> list[str]:
    return row["images"][:1]


def single(row: dict, column: str) -> dict:
    return {column: one(row)[0]} if one(row) else {}


def rated(text: str, *ratings: str) -> dict:
    names = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    return {
        "response": text,
        "annotations": {name: {"Rating": r, "Rationale": "…"} for name, r in zip(names, ratings, strict=False)},
    }


def vlfeedback(row: dict) -> dict:
    completions = [
        rated("middling", "3", "4", "5"),
        rated(row["rejected"], "1", "2", "5"),
        rated("unrated", "5", "N/A", "5"),
        rated(row["chosen"], "5", "5", "4"),
    ]
    return {"prompt": row["question"], "completions": completions, "models": ["m"] * 4} | single(row, "img_path")


def sharegpt(row: dict) -> dict:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "hello"},
        {"from": "gpt", "value": "<image> is a tag"},
        {"from": "human", "value": "<image>" * len(row["images"]) + row["question"]},
    ]
    answers = {name: {"from": "gpt", "value": row[name]} for name in ("chosen", "rejected")}
    return {"conversations": turns, "images": row["images"], **answers}


def ms_swift(row: dict) -> dict:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>" * len(row["images"]) + row["question"]},
        {"role": "assistant", "content": row["chosen"]},
    ]
    return {"messages": turns, "rejected_response": row["rejected"], "images": row["images"]}


def responses(row: dict) -> dict:
    return {"chosen": row["chosen"], "rejected": row["rejected"]}


def rlhf_v(row: dict) -> dict:
    return {"text": json.dumps({"question": row["question"], **responses(row)}), "idx": 7} | single(row, "image")


WRITERS = {
    "TRL": lambda row: {"images": row["images"], "prompt": row["question"], **responses(row)},
    "mDPO": lambda row: {"prompt": row["question"], **responses(row), "img_path": (one(row) or [None])[0]},
    "RLAIF-V": lambda row: {"question": row["question"], **responses(row), "idx": 3} | single(row, "image"),
    "RLHF-V": rlhf_v,
    "VLFeedback": vlfeedback,
    "ShareGPT": sharegpt,
    "ms-swift": ms_swift,
}
SEVERAL_IMAGES = ("TRL", "ShareGPT", "ms-swift")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def records(name: str) -> list[dict]:
    return [WRITERS[name](wanted(index)) for index in range(COUNT)]


def save(rows: list[dict], path: Path) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        datasets = pytest.importorskip("datasets")
        names = dict.fromkeys(name for row in rows for name in row)
        table = datasets.Dataset.from_list([names | row for row in rows])
        table.to_parquet(str(path)) if path.suffix == ".parquet" else table.save_to_disk(str(path))
    return path


def question(row) -> str:
    return "".join(part.get("text", "") for part in row.prompt[-1]["content"])


def test_every_format_has_a_fixture():
    assert {format.name for format in FORMATS} == {*WRITERS, *PAIRED}


# Two pictures, an answer that is right for each. The columns are those that the authors' loaders read.
PAIRED = {
    "SymMPO": lambda index: {
        "question": f"which, {index}?", "image_1": f"{index % 3}.png", "image_2": f"{(index + 1) % 3}.png",
        "image_path_1": "coco/1.jpg", "image_path_2": "coco/2.jpg", "resp_1_w": f"right {index}",
        "resp_1_l": "wrong", "resp_2_w": f"other {index}", "resp_2_l": "wrong too", "origin_dataset": "TPO",
        "origin_split": "{}", "idx": index,
    },
    "IC-VCO": lambda index: {
        "prompt": f"which, {index}?", "chosen": f"right {index}", "rejected": f"other {index}",
        "images": [f"{index % 3}.png", f"{(index + 1) % 3}.png"],
        "chosen_response_spans": [[0, 5]] if index % 2 else [], "rejected_response_spans": None if index == 2 else [],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.parquet"])
def test_two_pictures_with_an_answer_each(name, kind, folder, tmp_path):
    rows = read_rows(save([PAIRED[name](index) for index in range(4)], tmp_path / kind), folder)
    for index, row in enumerate(rows):
        assert [path.name for path in row.images] == [f"{index % 3}.png"]
        assert [path.name for path in row.rejected_images] == [f"{(index + 1) % 3}.png"]
        assert (row.chosen, row.contrast) == (f"right {index}", f"other {index}")
        assert row.rejected == ("wrong" if name == "SymMPO" else row.contrast)
        assert question(row) == f"which, {index}?" and not row.chosen_weights


@pytest.mark.parametrize(("name", "column"), [("SymMPO", "images"), ("IC-VCO", "image"), ("IC-VCO", "rejected_images")])
def test_a_picture_that_such_a_row_says_twice_is_an_error(name, column, folder, tmp_path):
    with pytest.raises(InputError, match=f"row 0.*: {column}: columns .* and {column} both say which images"):
        read_rows(save([{**PAIRED[name](0), column: ["0.png"]}], tmp_path / "rows.jsonl"), folder)


@pytest.mark.parametrize("column", ["images_file_names", "file_names"])
def test_ic_vcos_own_file_names_its_pictures_as_an_imagefolder_does(column, folder, tmp_path):
    row = PAIRED["IC-VCO"](1)
    row[column] = row.pop("images")
    (read,) = read_rows(save([row], tmp_path / "metadata.parquet"), folder)
    assert [path.name for path in (*read.images, *read.rejected_images)] == ["1.png", "2.png"]


def test_a_row_of_ic_vco_has_two_pictures(folder, tmp_path):
    row = PAIRED["IC-VCO"](1)
    with pytest.raises(InputError, match="row 0.*: images: 1 images, where a row of IC-VCO has two"):
        read_rows(save([{**row, "images": row["images"][:1]}], tmp_path / "rows.jsonl"), folder)


@pytest.mark.parametrize("kind", ["rows.json", "rows.jsonl", "rows.parquet", "saved"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_format_round_trips(folder, tmp_path, name, kind):
    rows = read_rows(save(records(name), tmp_path / kind), folder)
    assert len(rows) == COUNT
    for index, row in enumerate(rows):
        want = wanted(index)
        images = want["images"] if name in SEVERAL_IMAGES else one(want)
        assert row.chosen == want["chosen"] and row.rejected == want["rejected"]
        assert question(row) == want["question"]
        assert row.images == tuple(folder / image for image in images)
        assert sum(part["type"] == "image" for message in row.prompt for part in message["content"]) == len(images)
    if name == "ShareGPT":
        assert [message["role"] for message in rows[0].prompt] == ["system", "user", "assistant", "user"]
        assert rows[0].prompt[2]["content"] == [{"type": "text", "text": "<image> is a tag"}]


def damaged(name: str) -> list[tuple[object, str]]:
    """Ten broken rows of a format, and the field that each is reported under."""
    good = WRITERS[name](wanted(1))
    image = next(column for column in ("img_path", "image", "images") if column in good)
    path = (lambda value: {**good, image: [value]}) if image == "images" else (lambda value: {**good, image: value})
    common = [
        (["a row"], "row"),
        ("a row", "row"),
        (path("../out.png"), "images"),
        (path("/etc/hostname"), "images"),
        (path("http://example.org/1.png"), "images"),
        (path(17), "images"),
        ({**good, "id": {}}, "id"),
    ]
    if name == "VLFeedback":
        special = [
            ({**good, "completions": "good"}, "completions"),
            ({**good, "completions": [1, 2]}, "completions"),
            ({**good, "prompt": None}, "prompt"),
        ]
    elif name == "RLHF-V":
        bad = [("{", "text"), ("[]", "text"), (json.dumps({"question": "q?", "chosen": "", "rejected": "b"}), "chosen")]
        special = [({**good, "text": text}, field) for text, field in bad]
    elif name == "ShareGPT":
        special = [
            ({**good, "conversations": "hello"}, "conversations"),
            ({**good, "conversations": [{"from": "tool", "value": "x"}]}, "conversations"),
            ({**good, "chosen": {"from": "human", "value": "x"}}, "chosen"),
        ]
    elif name == "ms-swift":
        special = [
            ({**good, "messages": "hello"}, "messages"),
            ({**good, "rejected_response": ""}, "rejected"),
            ({**good, "rejected": "no"}, "rejected_response"),
        ]
    else:
        prompt = "question" if name == "RLAIF-V" else "prompt"
        special = [
            ({**good, "chosen": ""}, "chosen"),
            ({column: value for column, value in good.items() if column != "rejected"}, "rejected"),
            ({**good, prompt: "<image><image> what?"}, "prompt"),
        ]
    return common + special


@pytest.mark.parametrize("name", WRITERS)
def test_ten_kinds_of_broken_rows_are_each_named(folder, tmp_path, name):
    broken = damaged(name)
    assert len(broken) == 10
    path = save([WRITERS[name](wanted(1)), *(row for row, _ in broken)], tmp_path / "rows.jsonl")
    found = list(check_rows(open_source(path), image_root(folder), PreferenceRow))
    assert isinstance(found[0], Checked)
    for index, ((_, field), error) in enumerate(zip(broken, found[1:], strict=True), start=1):
        assert not isinstance(error, Checked), index
        assert (error.where, error.field) == (f"rows.jsonl, row {index} (line {index + 1})", field)
        assert error.problem and error.remedy


def test_formats_may_be_mixed_in_one_file(folder, tmp_path):
    rows = [writer(wanted(index)) for index, writer in enumerate(WRITERS.values())]
    assert len(read_rows(save(rows, tmp_path / "rows.jsonl"), folder)) == len(WRITERS)


def test_ratings_pair_the_best_against_the_worst_and_ties_are_dropped(folder, tmp_path, caplog):
    tie = {"prompt": "q?", "completions": [rated("a", "3", "3", "3"), rated("b", "2", "3", "4")]}
    unrated = {"prompt": "q?", "completions": [rated("a", "N/A", "3", "3"), {"response": "b", "annotations": None}]}
    empty = {
        "prompt": "q?",
        "completions": [rated("", "5", "5", "5"), rated("b", "2", "2", "2"), rated("c", "1", "1", "nan")],
    }
    first = {"prompt": "q?", "completions": [rated(t, r) for t, r in zip("abcd", ("4", "2", "4", "2"), strict=True)]}
    with caplog.at_level(logging.WARNING):
        (row,) = read_rows(save([tie, unrated, first, empty], tmp_path / "rows.jsonl"), folder)
    assert (row.chosen, row.rejected, row.id) == ("a", "b", "2")
    assert "2 rows dropped: all completions are rated the same" in caplog.text
    assert "1 rows dropped: no completion has a rating for every aspect" in caplog.text
    with pytest.raises(InputError, match="no rows that can be used"):
        read_rows(save([tie], tmp_path / "ties.jsonl"), folder)


@pytest.mark.parametrize("kind", ["rows.parquet", "saved"])
def test_images_inside_a_table_stay_there_until_they_are_read(folder, tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"images": [{"bytes": (folder / name).read_bytes()} for name in wanted(i)["images"]], "prompt": "q?"}
        | responses(wanted(i))
        for i in range(6)
    ]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "prompt": datasets.Value("string"),
            "chosen": datasets.Value("string"),
            "rejected": datasets.Value("string"),
        }
    )
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(str(tmp_path / kind)) if kind.endswith("t") else table.save_to_disk(str(tmp_path / kind))
    read = read_rows(tmp_path / kind)
    assert [len(row.images) for row in read] == [0, 1, 2, 0, 1, 2]
    for index, row in enumerate(read):
        for image, name in zip(row.images, wanted(index)["images"], strict=True):
            assert isinstance(image, StoredImage)
            assert open_image(image, row.where) == Image.open(folder / name).convert("RGB")


def test_a_dataset_with_splits_is_read_from_train(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(records("mDPO")[:3])
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(str(tmp_path / "both"))
    assert len(read_rows(tmp_path / "both", folder)) == 3
    assert len(read_rows(f"{tmp_path / 'both'}:test", folder)) == 1
    datasets.DatasetDict(test=table).save_to_disk(str(tmp_path / "test"))
    with pytest.raises(InputError, match="no train split; it has test: add the one you want, as in :test"):
        read_rows(tmp_path / "test", folder)
    with pytest.raises(InputError, match="has no split 'dev'; it has train, test"):
        read_rows(f"{tmp_path / 'both'}:dev", folder)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_folder_of_shards_is_read_as_one(folder, tmp_path, suffix):
    rows = records("TRL")
    shards = tmp_path / "shards"
    (shards / "data").mkdir(parents=True)
    for index in range(3):
        save(rows[index * 8 : index * 8 + 8], shards / f"part_{index}{suffix}")
    read = read_rows(shards, folder)
    assert [row.chosen for row in read] == [row["chosen"] for row in rows] and [row.id for row in read][-1] == "23"
    assert len(read_rows(str(shards / f"part_[01]{suffix}"), folder)) == 16
    with pytest.raises(InputError, match="not named for splits"):
        read_rows(f"{shards}:test", folder)


def test_a_row_of_a_shard_names_its_file(folder, tmp_path):
    pytest.importorskip("datasets")
    rows = records("TRL")
    save(rows[:3], tmp_path / "a.parquet")
    save([rows[3], {**rows[4], "images": ["../none.png"]}], tmp_path / "b.parquet")
    with pytest.raises(InputError, match="^b.parquet, row 1: images: .*none.png"):
        read_rows(str(tmp_path / "*.parquet"), folder)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=f"^{tmp_path / 'b.parquet'}: not a Parquet file"):
        read_rows(tmp_path, folder)


def test_a_list_of_files_is_read_in_its_order(folder, tmp_path):
    rows = records("TRL")
    parts = [
        save(rows[:5], tmp_path / "b.jsonl"),
        save(rows[5:7], tmp_path / "a.json"),
        save(rows[7:9], folder / "c.jsonl"),
    ]
    read = read_rows(parts, folder)
    assert [row.chosen for row in read] == [row["chosen"] for row in rows[:9]] and read[8].id == "8"
    assert len(read_rows([str(parts[0]), str(tmp_path / "a.*")], folder)) == 7
    assert (
        data_files(parts) == parts
        and line_files([parts[0], parts[2]]) == [parts[0], parts[2]]
        and line_files(parts) == []
    )
    with pytest.raises(InputError, match="b.jsonl and 2 more: files in several folders.*say with image_dir"):
        read_rows(parts)
    with pytest.raises(InputError, match="none.jsonl does not exist"):
        read_rows([*parts, tmp_path / "none.jsonl"], folder)
    with pytest.raises(InputError, match="contains no rows"):
        read_rows([], folder)


def test_shards_of_the_hub_are_split_by_their_names(folder, tmp_path):
    (tmp_path / "data").mkdir()
    rows = records("TRL")
    save(rows[:5], tmp_path / "data" / "train-00000-of-00002.jsonl")
    save(rows[5:9], tmp_path / "data" / "train-00001-of-00002.jsonl")
    save(rows[9:11], tmp_path / "data" / "test-00000-of-00001.jsonl")
    assert len(read_rows(tmp_path, folder)) == 9
    assert len(read_rows(f"{tmp_path}:test", folder)) == 2
    (tmp_path / "data" / "train-00000-of-00002.jsonl").unlink()
    (tmp_path / "data" / "train-00001-of-00002.jsonl").unlink()
    with pytest.raises(InputError, match="no train split; it has test"):
        read_rows(tmp_path, folder)


def test_folders_and_files_that_are_none(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="contains no .parquet or .jsonl files, and was not saved by datasets"):
        read_rows(tmp_path / "folder")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is a model; the model comes first, then the data"):
        read_rows(tmp_path / "model")
    (tmp_path / "folder" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="does not load"):
        read_rows(tmp_path / "folder")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match="files of several kinds, .json, .jsonl"):
        read_rows(str(tmp_path / "a.*"))
    with pytest.raises(InputError, match="has no splits"):
        read_rows(f"{tmp_path / 'a.jsonl'}:train")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_rows(tmp_path / "bad.parquet")


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r'pip install -e "\.\[data\]"'):
        read_rows(tmp_path / "rows.parquet")
