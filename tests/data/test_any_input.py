"""Hypothesis: whatever a file holds, it is read or ends in an InputError that names file, row, field and remedy."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mdpo.data import DataOptions, PreferenceDataset, PromptRow, read_rows
from mdpo.data.check import check_file
from mdpo.data.check_report import report_lines
from mdpo.data.problem import RowError
from mdpo.data.rows import image_root
from mdpo.errors import InputError
from tests import tiny

PROCESSOR = tiny.processor()
ANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

text = st.one_of(
    st.text(max_size=12), st.sampled_from(["<image>", "<image>\nwhat?", "a.png", "a cat", "</s>", "", "../a.png"])
)
value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
role = st.sampled_from(["user", "assistant", "system", "human", "gpt"])
part = st.fixed_dictionaries({"type": st.sampled_from(["image", "text", "video"])}, optional={"text": text | value})
message = st.fixed_dictionaries(
    {},
    optional={
        "role": role | value,
        "content": text | st.lists(part, max_size=3) | value,
        "from": role | value,
        "value": text | value,
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
row = st.fixed_dictionaries(
    {},
    optional={
        "id": value,
        "prompt": answer,
        "question": answer,
        "chosen": answer,
        "rejected": answer,
        "image": text | value,
        "images": st.lists(text | value, max_size=3),
        "img_path": text | value,
        "rejected_images": st.lists(text | value, max_size=3) | value,
        "conversations": st.lists(message, max_size=3) | value,
        "text": text
        | value
        | st.dictionaries(st.sampled_from(["question", "chosen", "rejected"]), text).map(json.dumps),
        "completions": st.lists(completion, max_size=3) | value,
    },
)
good = st.just({"img_path": "a.png", "prompt": "what?", "chosen": "a cat", "rejected": "a dog"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    Image.linear_gradient("L").save(folder / "a.png")
    return folder


def lands_softly(path: Path, folder: Path) -> None:
    try:
        rows = read_rows(path, folder)
        dataset = PreferenceDataset(rows, PROCESSOR, DataOptions())
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
