"""The journal loses nothing but a torn last line; files that people bring get errors with file and line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdpo import InputError
from mdpo.evaluation.files import Journal, read_json, read_records

RECORDS = [{"id": "a", "text": "ü\n"}, {"id": "b", "text": "}"}, {"id": "c", "text": ""}]


def written(path):
    with Journal(path) as journal:
        for record in RECORDS:
            journal.append(record)
    return path.read_bytes()


@settings(deadline=None, max_examples=60)  # every record is synced to the disk
@given(cut=st.integers(0, 10**6))
def test_cut_anywhere_it_keeps_every_whole_record_and_goes_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    whole = written(path)
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    with Journal(path) as journal:
        assert journal.records == RECORDS[: sum(cut >= end for end in ends)]
        journal.append({"id": "d"})
    with Journal(path) as journal:
        assert journal.records[-1] == {"id": "d"}
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_only_the_last_line_may_be_torn(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"id": 1}\n{"id"\n{"id": 2}\n')
    with pytest.raises(InputError, match="line 2: not JSON"):
        Journal(path)
    assert path.read_text().count("\n") == 3, "nothing was changed"
    path.write_text("[1]\n")
    with pytest.raises(InputError, match="line 1 is a list; expected an object"):
        Journal(path)


def test_two_runs_do_not_share_a_journal(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(InputError, match="in use by another run"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()


def test_records_of_either_kind(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}]')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}')
    assert read_records(tmp_path / "a.json") == [{"a": 1}]
    assert read_records(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"{", "x.json, line 1: not JSON"),
        ("x.json", b"{}", "is a dict; expected a list of objects"),
        ("x.json", b"[1]", "entry 0 is a int; expected an object"),
        ("x.jsonl", b'{"a": 1}\n{', "line 2: not JSON"),
        ("x.json", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_records(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "none.json")
