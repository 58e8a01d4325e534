"""Rows from files: what is read, and what is refused with file, row, field and remedy."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpo.data import PreferenceRow, PromptRow, parse_rows, read_rows
from mdpo.errors import InputError

GOOD = {"img_path": "a.png", "prompt": "what is this?", "chosen": "a cat", "rejected": "a dog"}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    return tmp_path


def write(folder: Path, *rows, name: str = "train.jsonl") -> Path:
    path = folder / name
    if name.endswith(".json"):
        path.write_text(json.dumps(list(rows)), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_the_two_formats_and_plain_and_conversational_are_one_row(folder, name):
    question = [{"role": "user", "content": "<image>\nwhat is this?"}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}]
    rows = read_rows(
        write(
            folder,
            GOOD,
            {**GOOD, "prompt": "<image>\nwhat is this?"},
            {
                "images": ["a.png"],
                "prompt": question,
                "chosen": [{"role": "assistant", "content": "a cat"}],
                "rejected": "a dog",
            },
            {"image": "a.png", "prompt": parts, "chosen": "a cat", "rejected": "a dog"},
            name=name,
        )
    )
    assert [row.prompt for row in rows] == [parts] * 4
    assert {(row.chosen, row.rejected, row.images) for row in rows} == {("a cat", "a dog", (folder / "a.png",))}
    assert [row.id for row in rows] == ["0", "1", "2", "3"]


def test_several_images_and_none_and_a_system_message(folder):
    rows = read_rows(
        write(
            folder,
            {**GOOD, "img_path": None, "images": ["a.png", "b.png"], "prompt": "is <image> like <image>?"},
            {**GOOD, "img_path": None},
            {**GOOD, "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what?"}]},
        )
    )
    kinds = [[part["type"] for message in row.prompt for part in message["content"]] for row in rows]
    assert kinds == [["text", "image", "text", "image", "text"], ["text"], ["text", "image", "text"]]
    assert [len(row.images) for row in rows] == [2, 0, 1]


def test_unicode_line_breaks_and_a_tag_in_an_answer_stay_as_they_are(folder):
    text = "zwei\nZeilen\u2028und <image> 猫\r\n\ttab </s>"
    (row,) = read_rows(write(folder, {**GOOD, "chosen": text}))
    assert row.chosen == text
    (row,) = read_rows(write(folder, {**GOOD, "chosen": [{"role": "assistant", "content": text}]}))
    assert row.chosen == text


def test_what_an_assistant_said_earlier_quotes_the_tag(folder):
    turns = [
        {"role": "user", "content": "what stands for an image?"},
        {"role": "assistant", "content": "<image> does"},
        {"role": "user", "content": "and here?"},
    ]
    (row,) = read_rows(write(folder, {**GOOD, "prompt": turns}))
    assert [part["type"] for message in row.prompt for part in message["content"]] == ["image", "text", "text", "text"]


def test_an_image_alone_is_a_question(folder):
    (row,) = read_rows(write(folder, {**GOOD, "prompt": ""}))
    assert row.prompt == [{"role": "user", "content": [{"type": "image"}]}]


def test_prompts_need_no_responses(folder):
    (row,) = read_rows(write(folder, {"img_path": "a.png", "prompt": "what?"}), kind=PromptRow)
    assert type(row) is PromptRow


def test_pil_images_and_bytes_are_taken_as_they_are(folder):
    image = Image.open(folder / "a.png")
    data = (folder / "a.png").read_bytes()
    rows = parse_rows([{**GOOD, "img_path": image}, {**GOOD, "img_path": {"bytes": data, "path": None}}], folder)
    assert rows[0].images == (image,)
    assert rows[1].images[0].read() == data
    assert rows[1].where == "dataset, row 1"


BROKEN = {  # what is wrong: (the row, field, part of the message)
    "no prompt": ({k: v for k, v in GOOD.items() if k != "prompt"}, "prompt", "'prompt' is missing; found img_path"),
    "null prompt": ({**GOOD, "prompt": None}, "prompt", "column 'prompt' is null; give it a text"),
    "no chosen": ({k: v for k, v in GOOD.items() if k != "chosen"}, "chosen", "'chosen' is missing; found img_path"),
    "null rejected": ({**GOOD, "rejected": None}, "rejected", "column 'rejected' is null; give it a text"),
    "empty chosen": ({**GOOD, "chosen": ""}, "chosen", "is empty"),
    "blank rejected": ({**GOOD, "rejected": " \n\t"}, "rejected", "is empty"),
    "chosen is a number": ({**GOOD, "chosen": 7}, "chosen", "is a int; expected text"),
    "chosen is of the user": ({**GOOD, "chosen": [{"role": "user", "content": "x"}]}, "chosen", "role 'user'"),
    "chosen is two turns": ({**GOOD, "chosen": [{"role": "assistant", "content": "x"}] * 2}, "chosen", "2 messages"),
    "an image in an answer": (
        {**GOOD, "chosen": [{"role": "assistant", "content": [{"type": "image"}]}]},
        "chosen",
        "contains an image",
    ),
    "half a surrogate": ({**GOOD, "chosen": "\ud800"}, "chosen", "surrogate"),
    "empty prompt without image": ({**GOOD, "prompt": "", "img_path": None}, "prompt", "is empty"),
    "empty list of messages": ({**GOOD, "prompt": []}, "prompt", "is empty; expected text"),
    "prompt is an object": ({**GOOD, "prompt": {"role": "user"}}, "prompt", "is a dict; expected text"),
    "message without content": ({**GOOD, "prompt": [{"role": "user"}]}, "prompt", "a role and a content"),
    "message of numbers": (
        {**GOOD, "prompt": [{"role": "user", "content": 3}]},
        "prompt",
        "content is a int; expected text",
    ),
    "unknown part": (
        {**GOOD, "prompt": [{"role": "user", "content": [{"type": "video"}]}]},
        "prompt",
        "an image or a text",
    ),
    "prompt ends with an answer": ({**GOOD, "prompt": [{"role": "assistant", "content": "x"}]}, "prompt", "ends with"),
    "too many tags": ({**GOOD, "prompt": "<image><image> what?"}, "prompt", "2 <image> but the row has 1 images"),
    "too few tags": (
        {**GOOD, "img_path": ["a.png", "b.png"], "prompt": "<image>"},
        "prompt",
        "1 <image> but the row has 2",
    ),
    "a tag without image": (
        {**GOOD, "img_path": None, "prompt": "<image> what?"},
        "prompt",
        "1 <image> but the row has 0",
    ),
    "outside": ({**GOOD, "img_path": "../a.png"}, "images", "outside the image folder"),
    "outside by dots": ({**GOOD, "img_path": "x/../../a.png"}, "images", "outside the image folder"),
    "absolute": ({**GOOD, "img_path": "/etc/passwd"}, "images", "outside the image folder"),
    "a URL": ({**GOOD, "img_path": "https://example.org/a.png"}, "images", "nothing is fetched"),
    "null byte": ({**GOOD, "img_path": "a\0.png"}, "images", "control characters"),
    "no path": ({**GOOD, "img_path": ""}, "images", "is an empty text; expected a path"),
    "path is a number": ({**GOOD, "img_path": 3}, "images", "is a int; expected a path"),
    "path in an object": ({**GOOD, "img_path": {"url": "a.png"}}, "images", "is an object with url; expected a path"),
    "no path in it": ({**GOOD, "img_path": {"bytes": None, "path": None}}, "images", "an object with bytes, path"),
    "two image columns": ({**GOOD, "images": ["b.png"]}, "img_path", "img_path and images both name images"),
    "id is a list": ({**GOOD, "id": [1]}, "id", "expected text or a whole number"),
    "negatives do not match": (
        {**GOOD, "img_path": None, "images": ["a.png", "b.png"], "rejected_images": ["a.png"] * 3},
        "rejected_images",
        "3 for 2 images",
    ),
    "negatives of nothing": (
        {**GOOD, "img_path": None, "rejected_images": ["a.png"]},
        "rejected_images",
        "1 for 0 images",
    ),
    "contrast is a number": ({**GOOD, "contrast": 3}, "contrast", "expected text"),
    "spans are text": ({**GOOD, "chosen_weights": "all"}, "chosen_weights", "expected a list of spans"),
    "a span of two": ({**GOOD, "chosen_weights": [[0, 1]]}, "chosen_weights", "a span is [0, 1]"),
    "a span of halves": ({**GOOD, "chosen_weights": [[0, 0.5, 2]]}, "chosen_weights", "a span is [0, 0.5, 2]"),
    "a span outside": (
        {**GOOD, "rejected_weights": [[0, 99, 2]]},
        "rejected_weights",
        "the span from 0 to 99 is not inside",
    ),
    "an empty span": (
        {**GOOD, "rejected_weights": [[1, 1, 2]]},
        "rejected_weights",
        "the span from 1 to 1 is not inside",
    ),
    "spans overlap": (
        {**GOOD, "chosen_weights": [[0, 2, 2], [1, 3, 4]]},
        "chosen_weights",
        "two spans overlap at character 1",
    ),
    "a weight below 0": ({**GOOD, "chosen_weights": [[0, 1, -1]]}, "chosen_weights", "a weight is -1"),
    "a weight of inf": ({**GOOD, "chosen_weights": [[0, 1, float("inf")]]}, "chosen_weights", "a weight is inf"),
    "nothing counts": (
        {**GOOD, "chosen_weights": [[0, len(GOOD["chosen"]), 0]]},
        "chosen_weights",
        "every character has the weight 0",
    ),
    "not an object": (["a", "b"], "row", "is a list; expected an object"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_named_with_field_and_remedy(folder, kind):
    row, field, message = BROKEN[kind]
    with pytest.raises(InputError) as error:
        read_rows(write(folder, GOOD, row))
    assert str(error.value).startswith(f"train.jsonl, row 1 (line 2): {field}: ")
    assert message in str(error.value)
    assert len(str(error.value).split("; ")[-1]) > 5, "a remedy"


def test_two_rows_with_one_id(folder):
    with pytest.raises(InputError, match=r"row 1 .*id 'x' is also that of train.jsonl, row 0"):
        read_rows(write(folder, {**GOOD, "id": "x"}, {**GOOD, "id": "x"}))


def test_links_lead_out_only_where_that_is_allowed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.open(folder / "a.png").save(elsewhere / "c.png")
    os.symlink(elsewhere / "c.png", folder / "link.png")
    os.symlink(folder / "b.png", folder / "inside.png")
    os.symlink(folder / "loop.png", folder / "loop.png")
    data = write(folder, {**GOOD, "img_path": "link.png"})
    with pytest.raises(InputError, match="a link that leads outside"):
        read_rows(data)
    assert read_rows(data, allow_outside=True)[0].images == (elsewhere / "c.png",)
    assert read_rows(write(folder, {**GOOD, "img_path": str(elsewhere / "c.png")}), allow_outside=True)
    assert read_rows(write(folder, {**GOOD, "img_path": "inside.png"}))[0].images == (folder / "b.png",)
    read_rows(write(folder, {**GOOD, "img_path": "loop.png"}))  # no file: found when images are opened


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": \n', r"row 0 .*'prompt' is missing"),
        ("t.jsonl", b'\n{"a": \n', r"t.jsonl, row 0 \(line 2\): line: not JSON"),
        ("t.jsonl", b'{"prompt": "\xff"}\n', r"t.jsonl, row 0 .*not UTF-8"),
        ("t.jsonl", b"[" * 100_000, "nested too deeply"),
        ("t.jsonl", b"9" * 5_000, "not JSON"),
        ("t.jsonl", b"", "contains no rows"),
        ("t.jsonl", b'[\n  {"a": 1},\n  {"a": 2}\n]\n', r"t.jsonl: a JSON list, not a row a line; name the file .json"),
        ("t.jsonl", b'[{"a": 1},\n{"a": 2}]\n', "a JSON list"),
        ("t.jsonl", b'\xef\xbb\xbf[{"a": 1}, {"a": 2}]', "a JSON list"),
        ("t.json", b'{"a": 1}\n{"a": 2}\n', "JSONL: name the file .jsonl"),
        ("t.json", b"[", "t.json: not JSON: .*line 1"),
        ("t.json", b"{}", "is a dict; expected a list of rows"),
        ("t.json", b'["\xff"]', "not UTF-8"),
        ("t.json", b"[]", "contains no rows"),
        ("t.csv", b"a,b", r"unknown kind of file '.csv'"),
        ("t.pkl", b"\x80\x04.", r"unknown kind of file '.pkl'"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_missing_file_is_no_request_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in ("nothing.jsonl", "data/train", "a/b/c", "owner/name.jsonl"):
        with pytest.raises(InputError, match="does not exist"):
            read_rows(path)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"good.jsonl does not exist in {tmp_path}, where relative paths start"):
        read_rows("good.jsonl")
    with pytest.raises(InputError, match=r"does not exist; check the path"):
        read_rows("/nowhere/" + "x" * 300 + ".jsonl")


def test_a_path_that_ends_inside_the_folder_is_inside(folder):
    for path in (str(folder / "a.png"), "x/../a.png", f"file://{folder}/a.png", "./a.png"):
        (row,) = read_rows(write(folder, {**GOOD, "img_path": path}))
        assert row.images == (folder / "a.png",)


def test_an_image_dir_that_is_no_folder_is_one_line(folder):
    data = write(folder, *[GOOD] * 50)
    for image_dir, message in (("nothing", "does not exist"), ("a.png", "is not a folder")):
        with pytest.raises(InputError, match=f"^image_dir: {folder / image_dir} {message}; give the folder") as error:
            read_rows(data, folder / image_dir)
        assert len(str(error.value).splitlines()) == 1


def test_a_byte_order_mark_is_no_error(folder):
    (folder / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert read_rows(folder / "t.jsonl")


def test_equal_rows_are_equal(folder):
    first, second = read_rows(write(folder, GOOD)), read_rows(write(folder, GOOD))
    assert first == second
    assert isinstance(first[0], PreferenceRow)


def test_the_digest_of_rows_says_nothing_of_where_their_images_are_in_memory():
    def digest(images: int, **columns) -> str:
        pictures = [Image.new("RGB", (40, 36)) for _ in range(images)]
        return parse_rows(
            [{"images": pictures, "prompt": "q?", "chosen": "a", "rejected": "b", **columns}], "."
        ).digest()

    assert digest(1) == digest(1) != digest(2)
    assert digest(1) != digest(1, chosen="c")
