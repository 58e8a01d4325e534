"""Many rows: read by several processes, kept beside the data, and one absurd row costs its own error."""

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from mdpo.data import DataOptions, PreferenceDataset, TextOptions, cache, json_lines, limits, read, read_rows, tokenise
from mdpo.data.encode import Encoder
from mdpo.data.image_facts import look_at_images
from mdpo.data.read import parse_rows
from mdpo.data.seen import FirstSeen
from mdpo.errors import InputError
from tests import tiny
from tests.data.templates import TEMPLATES

PROCESSOR = tiny.processor()


@pytest.fixture
def many(monkeypatch):
    """Every data file counts as long, and three processes share the work."""
    monkeypatch.setattr(cache, "SMALLEST", 0)
    monkeypatch.setattr(tokenise, "MANY", 0)
    for module in (read, tokenise):
        monkeypatch.setattr(module, "processes", lambda: 3)


def record(index: int) -> dict:
    return {"id": f"row-{index}", "prompt": f"what is {index}?", "chosen": f"a cat {index} sits", "rejected": "a dog"}


def write(path, records):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in records))
    return path


def mixed(folder, count=40):
    """Rows with and without images, some blank lines between them."""
    tiny.records(folder, 2)  # writes 0.png and 1.png
    rows: list = [record(index) | ({"image": f"{index % 2}.png"} if index % 3 else {}) for index in range(count)]
    rows[7:7] = ["", ""]
    rows[30:30] = [""]
    return write(folder / "rows.jsonl", rows)


def entries(folder):
    return sorted(path.name.partition("-")[0] for path in (folder / cache.NAME).iterdir() if path.is_dir())


def same(first, second):
    assert first.lengths.tolist() == second.lengths.tolist() and first.digest() == second.digest()
    for index in range(len(first)):
        one, other = first[index], second[index]
        assert (one.id, one.prompt_ids, one.chosen_ids, one.rejected_ids) == (
            other.id,
            other.prompt_ids,
            other.chosen_ids,
            other.rejected_ids,
        )


def test_several_processes_find_what_one_does_and_the_next_start_finds_it_again(tmp_path, many, monkeypatch):
    path = mixed(tmp_path)
    parallel = read_rows(path)
    whole = parse_rows([json.loads(line) for line in path.read_text().splitlines() if line], tmp_path)
    assert [row.id for row in parallel] == [row.id for row in whole]
    assert [row.images for row in parallel] == [row.images for row in whole]
    assert parallel[39].where == "rows.jsonl, row 39 (line 43)"
    first = PreferenceDataset(parallel, PROCESSOR, DataOptions())
    with monkeypatch.context() as patch:
        patch.setattr(tokenise, "MANY", 10**6)
        same(first, PreferenceDataset(whole, PROCESSOR, DataOptions()))
    assert entries(tmp_path) == ["rows", "tokens"]

    def never(*arguments, **named):
        raise AssertionError("made again")

    monkeypatch.setattr(read, "_make", never)
    monkeypatch.setattr(tokenise, "_make", never)
    same(first, PreferenceDataset(read_rows(path), PROCESSOR, DataOptions()))
    same(first, PreferenceDataset(read_rows(path), PROCESSOR, DataOptions(max_length=1000)))
    with pytest.raises(AssertionError, match="made again"):
        PreferenceDataset(read_rows(path), PROCESSOR, DataOptions(text=TextOptions(system_prompt="be brief")))
    write(path, [record(1)])
    with pytest.raises(AssertionError, match="made again"):
        read_rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "ends.npy", "manifest.json", "table.json"])
def test_a_damaged_entry_is_made_again(name, tmp_path, many, caplog):
    path = mixed(tmp_path)
    before = list(read_rows(path))
    (entry,) = (tmp_path / cache.NAME).glob("rows-*")
    (entry / name).write_bytes((entry / name).read_bytes()[:-3] + b"???")
    assert list(read_rows(path)) == before
    assert "is damaged" in caplog.text


def test_an_entry_leads_nowhere_that_the_rows_could_not(tmp_path, many):
    path = mixed(tmp_path)
    read_rows(path)
    (entry,) = (tmp_path / cache.NAME).glob("rows-*")
    table = json.loads((entry / "table.json").read_text())
    (entry / "table.json").write_text(json.dumps(["/etc/hostname", *table[1:]]))
    (entry / "manifest.json").write_text(json.dumps(cache._digests(entry)))
    assert not any("hostname" in str(image) for row in read_rows(path) for image in row.images)


def test_where_nothing_can_be_kept_rows_are_read_all_the_same(tmp_path, many, monkeypatch, caplog):
    path = mixed(tmp_path)

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "whole_folder", full)
    assert len(PreferenceDataset(read_rows(path), PROCESSOR, DataOptions())) == 40
    assert "the disk is full" in caplog.text and entries(tmp_path) == []


@pytest.mark.parametrize("at", [3, 20, 38])
def test_the_first_broken_row_is_named_whoever_reads_it(at, tmp_path, many):
    rows: list = [record(index) for index in range(40)]
    rows[at] = "{"
    rows[39] = record(39) | {"chosen": ""}
    with pytest.raises(InputError, match=rf"rows.jsonl, row {at} \(line {at + 1}\): line: not JSON"):
        read_rows(write(tmp_path / "rows.jsonl", rows))
    rows[at] = record(1)
    with pytest.raises(InputError, match=rf"row {at} .*id 'row-1' is also that of rows.jsonl, row 1 \(line 2\)"):
        read_rows(write(tmp_path / "rows.jsonl", rows))
    assert entries(tmp_path) == []
    rows[at], rows[39] = record(at) | {"prompt": [{"role": "nobody", "content": "a"}]}, record(39)
    read = read_rows(write(tmp_path / "rows.jsonl", rows))
    template = "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('who') }}{% endif %}{% endfor %}"
    options = DataOptions(branches=("chosen", "rejected"), text=TextOptions(chat_template=template + tiny.TEMPLATE))
    with pytest.raises(InputError, match=rf"row {at} .*the chat template refuses it: who"):
        PreferenceDataset(read, PROCESSOR, options)


def test_held_out_rows_are_a_view(tmp_path, many):
    rows = read_rows(mixed(tmp_path))
    view = rows.select(np.array([5, 4, 30]))
    assert [row.id for row in view] == ["row-5", "row-4", "row-30"] and view[-1] == rows[30] and view[1:][0] == rows[4]
    assert view.digest() != rows.select(np.array([4, 5, 30])).digest()
    data = PreferenceDataset(view, PROCESSOR, DataOptions())
    assert [data[index].packed_length for index in range(3)] == data.lengths.tolist()


@pytest.mark.parametrize(("line", "message"), [
    (lambda: " " * limits.MAX_LINE + '{"prompt": 1}', r"line: has more than [\d,]+ bytes, the limit of a row"),
    (lambda: "[" + "1," * (limits.MAX_VALUES + 1) + "1]",
        r"line: contains some [\d,]+ values, above the limit of 500,000"),
    (lambda: record(1) | {"chosen": "a " * limits.MAX_TEXT}, r"chosen: the row has [\d,]+ characters or more, above"),
    (lambda: record(1) | {"prompt": [{"role": "user", "content": "a"}] * 1001},
        "prompt: 1,001 turns, above the limit of 1,000"),
    (lambda: record(1) | {"images": ["a.png"] * 65}, "images: 65 images, above the limit of 64"),
    (
        lambda: record(1) | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 10_001}]},
        "prompt: 10,001 parts or more in its turns, above the limit of 10,000",
    ),
])  # fmt: skip
def test_an_absurd_row_costs_its_own_error(line, message, tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE", 2**21)
    monkeypatch.setattr(limits, "MAX_LINE", 2**21)
    monkeypatch.setattr(limits, "MAX_TEXT", 2**19)
    path = write(tmp_path / "rows.jsonl", [record(0), line(), record(2)])
    with pytest.raises(InputError, match=rf"rows.jsonl, row 1 \(line 2\): {message}") as error:
        read_rows(path)
    assert "drop" in str(error.value) and len(str(error.value)) < 300
    found = [where for where, _ in json_lines.json_lines(path)]
    assert found[-1] == "rows.jsonl, row 2 (line 3)" and len(found) == 3


def test_a_row_far_longer_than_the_others_is_named(caplog):
    rows = [record(index) for index in range(200)]
    rows[150]["chosen"] = "a cat " * 10_000
    with caplog.at_level(logging.WARNING):
        PreferenceDataset(parse_rows(rows, "."), PROCESSOR, DataOptions(branches=("chosen", "rejected")))
    (message,) = [text for text in caplog.messages if "packed row" in text]
    assert message.startswith("dataset, row 150: ") and "set max_length" in message


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_frame_is_what_the_template_writes(name):
    texts = [
        "a cat",
        " a ",
        "a\n",
        "  ",
        "<b>",
        "</s>",
        "ünï 中 'x' \"y\"",
        "7",
        "{{ a }}",
        "a </think> b",
        "A",
        "USER: a",
    ]
    rows = parse_rows(
        [
            record(i) | {"prompt": f"{text}?", "chosen": f"{text}!", "rejected": f"{text}x"}
            for i, text in enumerate(texts)
        ],
        ".",
    )
    together = Encoder(PROCESSOR, TextOptions(chat_template=TEMPLATES[name], prompt_is_rendered=False))
    alone = Encoder(PROCESSOR, TextOptions(chat_template=TEMPLATES[name], prompt_is_rendered=False))
    for many, row in zip(together.rows(list(rows)), rows, strict=True):
        (one,) = alone.rows([row])  # a single row is rendered by the template itself
        assert str(many) == str(one)


@pytest.mark.parametrize(
    "touch",
    [
        "{{ c['text'] | upper }}",
        "{% if 'cat' in c['text'] %}!{% endif %}{{ c['text'] }}",
        "{{ c['text'] | length }}{{ c['text'] }}",
        "{{ c['text'][:3] }}",
        "{{ c['text'].split('</think>')[-1] }}",
        "{{ c['text'] }}{{ c['text'] }}",
        "{{ c['text'] | tojson }}",
        "{{ c['text'].replace('a', 'b') }}",
        "{% if c['text'] == 'a' %}!{% endif %}{{ c['text'] }}",
    ],
)
def test_a_template_that_does_more_than_copy_is_asked_every_time(touch):
    template = tiny.TEMPLATE.replace("{{ c['text'] }}", touch)
    encoder = Encoder(PROCESSOR, TextOptions(chat_template=template))
    encoder.rows(list(parse_rows([record(0), record(1)], ".")))
    assert not any(encoder.template._frames.values())


def test_words_that_came_before_have_the_tokens_they_had(monkeypatch):
    tokens = Encoder(PROCESSOR).tokens
    assert tokens._words is not None
    texts = [
        "a cat sits",
        "the cat  sits\n on a dog's mat",
        "cat</s> a dog <image> b",
        " a",
        "",
        "A cat's b2 c 3d é a",
        "a\u00a0b c",
    ]
    for _ in range(2):
        assert tokens._words.ids(texts) == tokens._plain(texts)
    monkeypatch.setattr("mdpo.data.words._MOST", 3)
    assert tokens._words.ids(texts) == tokens._plain(texts)


def test_what_came_first_is_found_among_many():
    seen = FirstSeen()
    assert [seen.add(f"id {index}", f"row {index}") for index in range(5000)] == [None] * 5000
    assert [seen.add(f"id {index}", "again") for index in (0, 2500, 4999)] == ["row 0", "row 2500", "row 4999"]


def test_an_image_is_looked_at_again_whatever_its_copy_says_of_its_age(tmp_path, many, monkeypatch):
    monkeypatch.setattr("mdpo.data.image_facts._MANY", 0)
    write(tmp_path / "rows.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", "images": ["x.bmp"]}])
    sizes = []
    for size in ((40, 60), (60, 40)):
        Image.new("RGB", size).save(tmp_path / "new.bmp")
        os.utime(tmp_path / "new.bmp", (1e9, 1e9))
        (tmp_path / "new.bmp").replace(tmp_path / "x.bmp")
        (fact,) = look_at_images(read_rows(tmp_path / "rows.jsonl"), own=False)[0]
        sizes.append((fact.width, fact.height))
    assert sizes == [(40, 60), (60, 40)]
