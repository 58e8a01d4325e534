"""What Python code hands over as rows: ``datasets`` objects are read when needed, everything else is rows or
one line.
"""

import io
import os

import numpy as np
import pytest
from PIL import Image

from mdpo.data import DataOptions, PreferenceDataset, parse_rows, read_rows
from mdpo.data.images import StoredImage, open_image
from mdpo.errors import InputError
from tests import tiny

datasets = pytest.importorskip("datasets")

TEXT = {"prompt": "what is this?", "chosen": "a cat", "rejected": "a dog"}


def picture(seed: int = 0, side: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def table(count: int = 4) -> "datasets.Dataset":
    """Rows with two images each, the bytes in the table."""
    rows = [{"images": [{"bytes": encoded(picture(2 * i + k))} for k in range(2)], **TEXT} for i in range(count)]
    features = {"images": datasets.List(datasets.Image())} | {name: datasets.Value("string") for name in TEXT}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def pictures(rows) -> list[list[Image.Image]]:
    return [[open_image(image, row.where) for image in row.images] for row in rows]


WANTED = [[picture(2 * i), picture(2 * i + 1)] for i in range(4)]

VIEWS = {
    "a Dataset": lambda: table(),
    "with a format": lambda: table().with_format("numpy"),
    "a selection": lambda: table(6).select([0, 1, 2, 3]),
    "reversed twice": lambda: table().select([3, 2, 1, 0]).select([3, 2, 1, 0]),
    "not decoded": lambda: table().cast_column("images", datasets.List(datasets.Image(decode=False))),
    "mapped": lambda: table().map(lambda row: row | {"chosen": row["chosen"]}),
    "a stream": lambda: table().to_iterable_dataset(),
    "a stream with a format": lambda: table().to_iterable_dataset().with_format("numpy"),
    "a mapped stream": lambda: table().to_iterable_dataset().map(lambda row: row | {"chosen": "a cat"}),
    "a generator": lambda: ({**TEXT, "images": list(row)} for row in WANTED),
    "a list": lambda: [{**TEXT, "images": list(row)} for row in WANTED],
}


@pytest.mark.parametrize("view", VIEWS)
def test_rows_are_the_same_however_they_are_handed_over(view, tmp_path):
    rows = parse_rows(VIEWS[view](), tmp_path, source="train_dataset")
    assert pictures(rows) == WANTED
    assert [(row.where, row.chosen) for row in rows] == [(f"train_dataset, row {i}", "a cat") for i in range(4)]


@pytest.mark.parametrize("view", [view for view in VIEWS if view not in ("a generator", "a list")])
def test_images_of_a_data_set_stay_encoded(view, tmp_path):
    rows = parse_rows(VIEWS[view](), tmp_path)
    assert all(isinstance(image, StoredImage) for row in rows for image in row.images)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("stream", [False, True])
def test_a_data_set_takes_the_memory_of_its_files(tmp_path, stream):
    side, count = 1500, 24  # 24 pictures: 155 MiB as pixels, less than one of JPEG
    jpeg = encoded(Image.new("RGB", (side, side), (200, 80, 10)), "JPEG")
    columns = {"image": [{"bytes": jpeg}] * count} | {name: [text] * count for name, text in TEXT.items()}
    features = {"image": datasets.Image()} | {name: datasets.Value("string") for name in TEXT}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    PreferenceDataset(parse_rows(data, tmp_path), tiny.processor(), DataOptions())  # decoders allocate once
    before = resident()
    rows = parse_rows(data.to_iterable_dataset() if stream else data, tmp_path)
    kept = PreferenceDataset(rows, tiny.processor(), DataOptions())
    assert resident() - before < 0.3 * count * side * side * 3
    assert len(kept) == count


def test_images_that_a_data_set_holds_by_path_are_read_from_there(tmp_path):
    picture(1).save(tmp_path / "a.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    data = datasets.Dataset.from_list([{**TEXT, "images": [Image.open(tmp_path / "a.png")]}])
    for given in (data, data.to_iterable_dataset()):
        assert pictures(parse_rows(given, elsewhere)) == [[picture(1)]]
    rows = parse_rows(data, elsewhere)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="row 0: images: image .*a.png cannot be read: No such file"):
        PreferenceDataset(rows, tiny.processor(), DataOptions())


def test_pictures_inside_message_parts_of_a_data_set(tmp_path):
    part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
    prompt = datasets.List({"role": datasets.Value("string"), "content": datasets.List(part)})
    content = [{"type": "image", "image": {"bytes": encoded(picture())}}, {"type": "text", "text": "what is this?"}]
    row = {**TEXT, "prompt": [{"role": "user", "content": content}]}
    features = {"prompt": prompt, "chosen": datasets.Value("string"), "rejected": datasets.Value("string")}
    data = datasets.Dataset.from_list([row], features=datasets.Features(features))
    for given in (data, data.to_iterable_dataset(), list(data)):
        assert pictures(parse_rows(given, tmp_path)) == [[picture()]]


def test_a_format_that_hides_columns_hides_them(tmp_path):
    data = datasets.Dataset.from_list([{**TEXT, "weight": 2.0}])
    with pytest.raises(InputError, match="row 0: weight"):
        parse_rows(data, tmp_path)
    assert len(parse_rows(data.with_format("torch", columns=list(TEXT)), tmp_path)) == 1
    with pytest.raises(InputError, match="row 0: weight"):
        parse_rows(data.with_format("torch", columns=list(TEXT), output_all_columns=True), tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: table().with_transform(lambda rows: rows),
            r"rows: the datasets.Dataset has a transform .*apply it with",
        ),
        (lambda: datasets.DatasetDict(train=table(), test=table()), r"rows has splits: train, test; give one of them"),
        (lambda: table().cast_column("images", datasets.List(datasets.Image(mode="L"))), "asks for images of mode L"),
        (lambda: table().select([]), "rows contains no rows; give at least one"),
        (list, "rows contains no rows; give at least one"),
        (lambda: iter(()), "rows contains no rows; give at least one"),
        (lambda: {"train": []}, "rows is a dict; give rows"),
        (lambda: 7, "rows is a int; give rows"),
        (lambda: "train.jsonl", "rows is the path train.jsonl; read it with mdpo.data.read_rows"),
        (lambda: pytest.importorskip("pandas").DataFrame([TEXT]), r"rows is a DataFrame; .*to_dict\('records'\)"),
        (lambda: ["a row"], "rows, row 0: row: is a str; expected an object with columns"),
    ],
)
def test_what_is_no_list_of_rows_is_one_line(given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        parse_rows(given(), tmp_path, source="rows")


def test_read_rows_takes_a_data_set_too(tmp_path):
    assert pictures(read_rows(table())) == WANTED
    table().save_to_disk(str(tmp_path / "saved"))
    assert pictures(read_rows(tmp_path / "saved")) == WANTED


def test_checked_rows_are_taken_as_they_are(tmp_path):
    first = parse_rows([{**TEXT, "image": picture()}] * 2, tmp_path)
    second = parse_rows([{**TEXT, "image": picture()}], tmp_path)
    assert parse_rows([*first, *second], tmp_path) == [*first, *second], "their ids may come again"
