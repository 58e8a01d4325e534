"""Hypothesis: whatever a file holds, it is read or ends in an InputError that names file, row, field and remedy; and a
row that is read is read whole: no column that says something is left out of it.
"""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mdpo.data import DataOptions, PreferenceDataset, PromptRow, parse_rows, read_rows
from mdpo.data.check import check_file
from mdpo.data.check_report import report_lines
from mdpo.data.columns import HARMLESS
from mdpo.data.images import StoredImage
from mdpo.data.problem import RowError
from mdpo.data.rows import image_root
from mdpo.errors import InputError
from mdpo.packing.branches import MDPO_BRANCHES
from tests import tiny

PROCESSOR = tiny.processor()
ANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

text = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "<image>",
            "<image>\nwhat?",
            "a.png",
            "a cat",
            "</s>",
            "",
            "../a.png",
            "<video>?",
            "data:image/png;base64,AA==",
        ]
    ),
)
value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
role = st.sampled_from(["user", "assistant", "system", "human", "gpt"])
part = st.fixed_dictionaries(
    {"type": st.sampled_from(["image", "text", "video", "image_url"]) | value},
    optional={"text": text | value, "image": text | value, "image_url": text | value, "max_pixels": value},
)
message = st.fixed_dictionaries(
    {},
    optional={
        "role": role | value,
        "content": text | st.lists(part, max_size=3) | value,
        "from": role | value,
        "value": text | value,
        "weight": value,
    },
)
answer = st.one_of(text, st.lists(message, max_size=2), message, value)
completion = st.fixed_dictionaries(
    {},
    optional={
        "response": text | value,
        "annotations": st.dictionaries(
            text, st.fixed_dictionaries({"Rating": st.sampled_from("1 3 5 N/A".split()) | value})
        )
        | value,
    },
)
number = st.integers(-1, 8) | st.floats(-1, 8)
spans = st.lists(st.lists(number, min_size=3, max_size=3) | value, max_size=3) | value
COLUMNS = {
    "id": value,
    "contrast": answer,
    "chosen_weights": spans,
    "rejected_weights": spans,
    "chosen_response_spans": value,
    "rejected_response_spans": value,
    **dict.fromkeys(("image_1", "image_2", "resp_1_w", "resp_1_l", "resp_2_w"), text | value),
    "prompt": answer,
    "question": answer,
    "chosen": answer,
    "rejected": answer,
    "image": text | value,
    "images": st.lists(text | value, max_size=3),
    "img_path": text | value,
    "image_path": text | value,
    "rejected_images": st.lists(text | value, max_size=3) | value,
    "conversations": st.lists(message, max_size=3) | value,
    "messages": st.lists(message, max_size=3) | value,
    "rejected_response": answer,
    "rejected_messages": st.lists(message, max_size=3) | value,
    "text": text | value | st.dictionaries(st.sampled_from(["question", "chosen", "rejected"]), text).map(json.dumps),
    "completions": st.lists(completion, max_size=3) | value,
    "videos": value,
    "history": value,
    "weight": value,
    "idx": value,
}
row = st.fixed_dictionaries({}, optional=COLUMNS) | st.dictionaries(text, value, max_size=3)
good = st.fixed_dictionaries(
    {
        "img_path": st.just("a.png"),
        "prompt": st.just("what?"),
        "chosen": st.just("a cat"),
        "rejected": st.just("a dog"),
    },
    optional={"contrast": text, "chosen_weights": spans, "rejected_images": st.lists(st.just("a.png"), max_size=3)},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    Image.linear_gradient("L").save(folder / "a.png")
    return folder


def lands_softly(path: Path, folder: Path) -> None:
    try:
        rows = read_rows(path, folder)
        dataset = PreferenceDataset(
            rows,
            PROCESSOR,
            DataOptions(branches=MDPO_BRANCHES if any(row.images for row in rows) else ("chosen", "rejected")),
        )
        assert dataset[0].packed_length == dataset.lengths[0]
    except InputError as error:
        assert path.name in str(error)
        if isinstance(error, RowError):
            assert error.where.startswith(path.name) and error.field and error.problem and error.remedy
    try:
        read_rows(path, folder, kind=PromptRow)
    except InputError as error:
        assert path.name in str(error)
    try:
        report = check_file(path, image_root(folder), processor=PROCESSOR, max_length=40)
    except InputError as error:
        assert path.name in str(error)
    else:
        assert "\n".join(report_lines(report, path.name)).encode()
        assert report.rows >= report.usable


@pytest.mark.slow
@ANY
@given(st.lists(row | good, max_size=4))
def test_any_rows(folder, rows):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", dir=folder) as file:
        file.write("".join(json.dumps(item) + "\n" for item in rows))
        file.flush()
        lands_softly(Path(file.name), folder)


@ANY
@given(
    st.one_of(st.binary(max_size=60), text.map(lambda t: t.encode("utf-8", "surrogatepass"))),
    st.sampled_from([".json", ".jsonl"]),
)
def test_any_bytes(folder, content, suffix):
    with tempfile.NamedTemporaryFile("wb", suffix=suffix, dir=folder) as file:
        file.write(content)
        file.flush()
        lands_softly(Path(file.name), folder)


@ANY
@given(value)
def test_any_json(folder, content):
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=folder) as file:
        json.dump(content, file)
        file.flush()
        lands_softly(Path(file.name), folder)


# Rows that can be read, to which one more column is added.
SOUND = [
    {"img_path": "a.png", "prompt": "what?", "chosen": "a cat", "rejected": "a dog"},
    {"image": "a.png", "question": "what?", "chosen": "a cat", "rejected": "a dog"},
    {"image": "a.png", "text": json.dumps({"question": "what?", "chosen": "a cat", "rejected": "a dog"})},
    {
        "messages": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "a cat"}],
        "rejected_response": "a dog",
        "images": ["a.png"],
    },
    {
        "conversations": [{"from": "human", "value": "<image>what?"}],
        "chosen": {"from": "gpt", "value": "a cat"},
        "rejected": {"from": "gpt", "value": "a dog"},
        "images": ["a.png"],
    },
    {
        "question": "what?",
        "image_1": "a.png",
        "image_2": "a.png",
        "resp_1_w": "a cat",
        "resp_1_l": "a dog",
        "resp_2_w": "an owl",
    },
    {
        "prompt": "what?",
        "images": ["a.png", "a.png"],
        "chosen": "a cat",
        "rejected": "a dog",
        "chosen_response_spans": [[0, 1]],
        "rejected_response_spans": [],
    },
    {
        "chosen": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a cat"}],
        "rejected": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a dog"}],
    },
]
# What is known to say nothing to a model; hypothesis finds the names in the source, so all of them come up here.
NOTES = HARMLESS | {"image_path"}
extra = st.one_of(
    *(st.tuples(st.just(name), values) for name, values in COLUMNS.items()), st.tuples(st.text(max_size=12), value)
)


def says_nothing(cell) -> bool:
    if isinstance(cell, dict):
        return all(map(says_nothing, cell.values()))
    if isinstance(cell, list):
        return all(map(says_nothing, cell))
    return cell is None or cell == "" or cell != cell


def meaning(record: dict, folder: Path):
    """What is read of a row, without its place in the file; None where it is refused or holds no preference."""
    try:
        (read,) = parse_rows([record], folder)
    except InputError:
        return None
    images, negatives = (
        [image.read() if isinstance(image, StoredImage) else image for image in given]
        for given in (read.images, read.rejected_images)
    )
    beside = read.contrast, read.chosen_weights, read.rejected_weights
    return read.id, images, read.prompt, read.chosen, read.rejected, negatives, *beside


def test_of_the_columns_that_are_tried_one_is_harmless():
    assert HARMLESS & COLUMNS.keys() == {"idx"}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SOUND), extra)
def test_a_column_that_says_something_is_read_or_refused(folder, sound, added):
    name, cell = added
    if name in sound or name in NOTES or says_nothing(cell):
        return
    whole = meaning({**sound, name: cell}, folder)
    if name == "id" and str(cell) == "0":  # the place that the row has anyway
        return
    assert whole is None or whole != meaning(sound, folder), "the column made no difference"


@ANY
@given(row)
def test_no_column_of_a_row_that_is_read_could_be_left_out(folder, record):
    whole = meaning(record, folder)
    for name, cell in record.items() if whole is not None else ():
        if name in NOTES or says_nothing(cell) or name == "id" and str(cell) == "0":
            continue
        assert meaning({key: value for key, value in record.items() if key != name}, folder) != whole, name
