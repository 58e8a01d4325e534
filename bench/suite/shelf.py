"""Where records lie: FOLDER/DEVICE/PART.json, a file for each device and part.

    {"schema": 2, "device": "AMD EPYC", "part": "kernels",
     "runs": [
      {"device_type": "cpu", "threads": 2, "versions": {"torch": "2.13.0+cpu"}, "commit": "5204dc9"}
     ],
     "records": [
      {"run": 0, "op": "token_logps", "shape": {"N": 256}, "implementation": "ours", "median_ms": 1.9}
     ]}

What is the same for a whole run stands once, and a record is a line, without the fields that say nothing: what was
measured again is what has changed in the file. `bench/results` is such a folder.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from bench.suite.cards import folder_of
from bench.suite.record import Record
from mdpo.errors import InputError
from mdpo.output_checks import check_output_folder
from mdpo.outputs import write_text

SCHEMA = 2
_KEYS = {"schema", "device", "part", "runs", "records"}
_TYPES = {field.name: field.type for field in dataclasses.fields(Record)}


class Contents(NamedTuple):
    """Of a file. runs: environments without the device, each in the place that records name it by."""

    records: list[Record]
    runs: list[dict[str, Any]]


class Shelf:
    """The records below a folder, read anew each time: a part's groups may be measured in other processes.

    One process at a time may add to a part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def records(self) -> list[Record]:
        """All of them, file by file. Raises ValueError, naming the file, where one holds none."""
        return [record for path in self.files() for record in read_records(path)]

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.json"))

    def find(self, record: Record) -> Record | None:
        """What is known of the same measurement on the same device, whatever it was measured with."""
        path = self.file(record)
        found = read_records(path) if path.exists() else []
        return next((each for each in found if each.measurement == record.measurement), None)

    def add(self, record: Record) -> None:
        """In the place of what was known of the same measurement; a run that dies leaves a whole file."""
        path = self.file(record)
        write_text(path, text_of([record], read_file(path) if path.exists() else Contents([], [])))

    def file(self, record: Record) -> Path:
        return self.folder / file_of(record)


def require_shelf(parser: argparse.ArgumentParser, folder: Path, parts: Iterable[str]) -> None:
    """For a command line that adds records of these parts: ends it in one line, as for a wrong option, where `folder`
    cannot be written to or a file of a part is none."""
    try:
        check_output_folder(folder, "--out")
        for part in parts:
            for path in folder.glob(f"*/{part}.json"):
                read_records(path)
    except (InputError, ValueError, OSError) as error:
        parser.error(str(error))


def file_of(record: Record) -> Path:
    """Below the folder of all devices."""
    device = str(record.environment.get("device", ""))
    return Path(folder_of(device, record.environment.get("device_type", ""))) / f"{record.part}.json"


def text_of(added: Sequence[Record], before: Contents) -> str:
    """The file of `before` with other records added, each in the place of the same measurement; of one part, all of
    them."""
    records = list({record.measurement: record for record in (*before.records, *added)}.values())
    device = records[0].environment.get("device", "")
    runs = _used(before.runs, [_run(record, device) for record in records])
    lines = [json.dumps({"run": runs.index(_run(record, device)), **_fields(record)}) for record in records]
    head = json.dumps({"schema": SCHEMA, "device": device, "part": records[0].part})
    return f'{head[:-1]},\n "runs": {_listed(map(json.dumps, runs))},\n "records": {_listed(lines)}}}\n'


def _used(known: Sequence[dict[str, Any]], of_records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that records have, in the places where they were; new ones after them."""
    runs = [run for run in known if run in of_records]
    for run in of_records:
        if run not in runs:
            runs.append(run)
    return runs


def _run(record: Record, device: str) -> dict[str, Any]:
    """A card's folder may hold two names of it: then the other one stands with the run."""
    return {name: value for name, value in record.environment.items() if (name, value) != ("device", device)}


def _fields(record: Record) -> dict[str, Any]:
    """Without what the file says and what says nothing."""
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        nothing = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in ("part", "environment") and value != nothing:
            found[field.name] = value
    return found


def _listed(lines: Iterable[str]) -> str:
    return "[\n  " + ",\n  ".join(lines) + "\n ]"


def read_records(path: Path) -> list[Record]:
    """A file's. ValueError naming the file if it is none, or of another schema."""
    return read_file(path).records


def read_file(path: Path) -> Contents:
    """A file's records and runs. ValueError naming the file if it is none, or of another schema."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or brackets without end
        raise ValueError(f"{path}: not JSON ({error}); delete it and measure again") from error
    schema = found.get("schema") if isinstance(found, dict) else type(found).__name__
    if schema != SCHEMA or type(schema) is not int:
        raise ValueError(f"{path}: schema {schema}, expected {SCHEMA}; keep records in a folder of their own")
    if found.keys() != _KEYS or not _are_objects(found["runs"]) or not _are_objects(found["records"]):
        raise ValueError(f"{path}: expected {', '.join(sorted(_KEYS))} and nothing else; delete it and measure again")
    versions = [run.get("versions", {}) for run in found["runs"]]
    if not (isinstance(found["device"], str) and isinstance(found["part"], str) and _are_objects(versions)):
        raise ValueError(f"{path}: device and part are text, versions an object; delete it and measure again")
    return Contents([_record(path, found, fields) for fields in found["records"]], found["runs"])


def _are_objects(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(each, dict) for each in found)


def _record(path: Path, found: dict[str, Any], fields: dict[str, Any]) -> Record:
    number, runs = fields.pop("run", None), found["runs"]
    for name, value in fields.items():
        if name in _TYPES and not _fits(value, _TYPES[name]):
            raise ValueError(f"{path}: {name} of a record is {json.dumps(value)[:100]}; delete it and measure again")
    if type(number) is not int or not 0 <= number < len(runs):
        raise ValueError(f"{path}: a record is of run {number}, and there are {len(runs)}; delete it and measure again")
    try:
        return Record(part=found["part"], environment={"device": found["device"], **runs[number]}, **fields)
    except TypeError as error:
        raise ValueError(f"{path}: a record has other fields ({error}); delete it and measure again") from error


def _fits(value: Any, expected: Any) -> bool:
    """Whether JSON's value is of the type that a field of `Record` has. Of an object the keys are text anyway."""
    if get_origin(expected) is dict:
        return isinstance(value, dict) and all(_fits(each, get_args(expected)[1]) for each in value.values())
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if get_origin(expected) is UnionType:
        return any(_fits(value, each) for each in get_args(expected))
    if expected is float:
        return type(value) in (int, float)
    return expected is Any or type(value) is expected
