"""Records in a file a device and part: what is measured again changes its own line, and nothing is lost on the way."""

import json
import math
from dataclasses import replace

import pytest

from bench.suite.record import Record
from bench.suite.shelf import Shelf, file_of

CONDITIONS = {"device": "AMD EPYC", "device_type": "cpu", "threads": 2, "versions": {"torch": "2.13"}, "commit": "a"}


def record(implementation: str = "ours", **changes) -> Record:
    made = Record(
        part="kernels",
        op="token_logps",
        shape={"N": 256},
        dtype="float32",
        implementation=implementation,
        role="ours",
        status="ok",
        environment=CONDITIONS,
    )
    return replace(made, **changes)


def test_records_come_back_as_they_were(tmp_path):
    whole = record(
        median_ms=0.1 + 0.2,
        runs=3,
        errors={"logps": math.inf},
        note="2 × as fast",
        floor="a copy",
        floor_ms=1e-3,
        rates={"examples/s": 4},
        extra={"promised": 1.0},
        peak_bytes=0,
    )
    shelf = Shelf(tmp_path)
    for each in (whole, record("torch eager"), record("broken", status="failed", reason="a\nb")):
        shelf.add(each)
    assert shelf.records() == [whole, record("torch eager"), record("broken", status="failed", reason="a\nb")]
    assert json.loads((tmp_path / "amd-epyc/kernels.json").read_text())["records"][1].keys() == {
        "run", "op", "shape", "dtype", "implementation", "role", "status",
    }  # fmt: skip


def test_what_is_measured_again_changes_its_own_line(tmp_path):
    shelf, names = Shelf(tmp_path), ("ours", "torch eager", "liger")
    for name in names:
        shelf.add(record(name))
    path = tmp_path / "amd-epyc/kernels.json"
    before = path.read_text().splitlines()
    later = record("ours", median_ms=2.0, environment=CONDITIONS | {"commit": "b"})
    shelf.add(later)
    after = path.read_text().splitlines()
    # Its line, the new run's, and the comma before that.
    assert len(set(after) - set(before)) == 3 and len(after) == len(before) + 1
    assert shelf.records() == [later, record("torch eager"), record("liger")]
    assert shelf.find(record("ours")) == later and shelf.find(record("ours", dtype="bfloat16")) is None
    for name in names[1:]:
        shelf.add(record(name, environment=CONDITIONS | {"commit": "b"}))
    assert [run["commit"] for run in json.loads(path.read_text())["runs"]] == ["b"]  # no record is of the first


def test_devices_and_parts_lie_apart(tmp_path):
    shelf = Shelf(tmp_path)
    gpu = {"device": "NVIDIA H100 80GB HBM3", "device_type": "cuda", "commit": "a"}
    for each in (record(), record(part="step"), record(environment=gpu)):
        shelf.add(each)
    found = [path.relative_to(tmp_path).as_posix() for path in shelf.files()]
    assert found == ["amd-epyc/kernels.json", "amd-epyc/step.json", "h100/kernels.json"]
    assert file_of(record(environment={"device": "Intel(R) Xeon(R) Processor"})).parent.name == "intel-xeon-processor"


def test_two_names_of_one_card_are_both_kept(tmp_path):
    one, other = ({"device": name, "device_type": "cuda"} for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100"))
    shelf = Shelf(tmp_path)
    shelf.add(record("ours", environment=one))
    shelf.add(record("peer", environment=other))
    assert [each.environment for each in shelf.records()] == [one, other]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        pytest.param("[" * 100_000, "not JSON", id="deep"),
        ("[]", "schema list, expected 2"),
        ('{"schema": true}', "schema True, expected 2"),
        ('{"schema": 2}', "expected device, part, records, runs, schema and nothing else"),
        (
            '{"schema": 2, "device": "d", "part": "p", "runs": [], "records": [{"run": 0}]}',
            "a record is of run 0, and there are 0",
        ),
        (
            '{"schema": 2, "device": "d", "part": "p", "runs": [{}], "records": [{"run": 0, "op": "o"}]}',
            "a record has other fields",
        ),
        (
            '{"schema": 2, "device": 5, "part": "p", "runs": [], "records": []}',
            "device and part are text, versions an object",
        ),
        (
            '{"schema": 2, "device": "d", "part": "p", "runs": [{"versions": []}], "records": []}',
            "device and part are text, versions an object",
        ),
    ],
)
def test_what_is_no_file_of_records_is_named(content, says, tmp_path):
    (tmp_path / "a.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="a.json: ") as raised:
        Shelf(tmp_path).records()
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", "N=256"),
        ("shape", {"N": 1.5}),
        ("role", "friend"),
        ("status", ["ok"]),
        ("implementation", 5),
        ("reason", None),
        ("median_ms", "fast"),
        ("runs", True),
        ("errors", [1]),
        ("rates", {"examples/s": "many"}),
    ],
)
def test_a_field_of_another_type_is_named(name, value, tmp_path):
    """Else a table or a picture fails on it later, and says neither the file nor the field."""
    shelf = Shelf(tmp_path)
    shelf.add(record(median_ms=1.0))
    (path,) = shelf.files()
    found = json.loads(path.read_text())
    found["records"][0][name] = value
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=f"{path}: {name} of a record is ") as raised:
        shelf.records()
    assert len(str(raised.value).splitlines()) == 1
