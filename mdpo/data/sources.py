"""Where rows are read from: JSON, JSONL, Parquet, a folder that ``datasets`` saved, or a dataset on the hub.

Every source yields ``(where, record)``, one row at a time; a JSONL file is never whole in memory. A record that could
not be read is the RowError that says why, so that ``mdpo data check`` can go on to the next. Nothing is unpickled, no
dataset's own code is run, and the network is used for a hub name alone.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from .images import StoredImage
from .problem import RowError

Record = tuple[str, Any]

_SUFFIXES = (".json", ".jsonl", ".parquet")
_BATCH = 64  # rows of a table at a time, with the bytes of their images
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(path: str | Path) -> Iterator[Record]:
    """Yields ``(where, record)`` for every row of ``path``.

    path: a ``.json`` (one list), ``.jsonl`` or ``.parquet`` file, a folder from ``Dataset.save_to_disk``, or
    ``owner/name`` of a dataset on the hub, whose train split is read.

    Raises InputError at once where there is nothing to read, and while reading where a whole file is broken.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _table_rows(_saved_dataset(path), path.name)
    if path.is_file():
        if path.suffix == ".json":
            return _json_rows(path)
        if path.suffix == ".jsonl":
            return _json_lines(path)
        if path.suffix == ".parquet":
            return _table_rows(_parquet(path), path.name)
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}; give {', '.join(_SUFFIXES)}")
    # A mistyped local path must not become a request to the hub: its folder exists, a hub's owner does not.
    if path.suffix not in _SUFFIXES and _HUB_NAME.fullmatch(str(path)) and not path.parent.exists():
        return _table_rows(_hub_dataset(str(path)), str(path))
    raise InputError(f"data file {path} does not exist")


def default_image_dir(path: str | Path) -> Path:
    """The folder that image paths are taken from where none is given: the data file's own."""
    path = Path(path).expanduser()
    return path if path.is_dir() else path.parent


def loads(text: str | bytes) -> Any:
    """JSON from text or UTF-8 bytes, with or without a byte order mark. Raises ValueError that says what is wrong."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("not usable JSON: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, and an integer of too many digits
        raise ValueError(f"not JSON: {error}") from error


def _json_rows(path: Path) -> Iterator[Record]:
    try:
        records = loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: {error}; mend the file, or save it as JSONL, one row a line") from error
    if not isinstance(records, list):
        raise InputError(f"{path}: expected a list of rows, found a {type(records).__name__}; wrap the rows in [ ]")
    return ((f"{path.name}, row {index}", record) for index, record in enumerate(records))


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        index = 0
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name}, row {index} (line {number})"
            index += 1
            try:
                yield where, loads(line)
            except ValueError as error:
                yield where, RowError.at(where, "line", str(error), "mend or delete the line")


def _table_rows(table: Any, name: str) -> Iterator[Record]:
    """Rows of a ``datasets.Dataset``. Its images stay where they are, in a memory-mapped file, until they are read."""
    columns = [column for column, feature in table.features.items() if _holds_images(feature)]
    table = table.with_format("arrow")  # as stored: nothing is decoded
    index = 0
    for batch in table.iter(batch_size=_BATCH):
        for row in batch.to_pylist():
            for column in columns:
                row[column] = _stored(row[column], table, index, column)
            yield f"{name}, row {index}", row
            index += 1


def _holds_images(feature: Any) -> bool:
    return type(feature).__name__ == "Image" or type(getattr(feature, "feature", None)).__name__ == "Image"


def _stored(value: Any, table: Any, index: int, column: str) -> Any:
    if isinstance(value, list):
        return [_stored_image(cell, table, index, column, position) for position, cell in enumerate(value)]
    return _stored_image(value, table, index, column, None)


def _stored_image(cell: Any, table: Any, index: int, column: str, position: int | None) -> Any:
    if not isinstance(cell, Mapping) or cell.get("bytes") is None:
        return cell
    name = str(cell.get("path") or column)
    return StoredImage(name, functools.partial(_read_cell, table, index, column, position))


def _read_cell(table: Any, index: int, column: str, position: int | None) -> bytes:
    value = table.select_columns([column])[index][column][0].as_py()
    return (value if position is None else value[position])["bytes"]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "Parquet files, saved datasets and datasets of the hub need the datasets library; "
            'pip install "multimodal-dpo[data]"'
        ) from error
    return datasets


def _parquet(path: Path) -> Any:
    datasets = _datasets()
    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # pyarrow's and datasets' own kinds, many of them
        raise InputError(f"{path}: not a Parquet file that can be read: {_one_line(error)}") from error


def _saved_dataset(path: Path) -> Any:
    datasets = _datasets()
    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow's and datasets' own kinds, many of them
        raise InputError(
            f"data folder {path} was not saved by datasets' save_to_disk: {_one_line(error)}; "
            "give a file or such a folder"
        ) from error
    return _split(table, f"data folder {path}", datasets)


def _hub_dataset(name: str) -> Any:
    datasets = _datasets()
    try:
        table = datasets.load_dataset(name)
    except Exception as error:  # no network, no such dataset, a dataset that is code: each of another kind
        raise InputError(
            f"{name} is no local file, and no dataset that the hub hands out: {_one_line(error)}; check the name"
        ) from error
    return _split(table, f"dataset {name}", datasets)


def _split(table: Any, name: str, datasets: Any) -> Any:
    if not isinstance(table, datasets.DatasetDict):
        return table
    if "train" not in table:
        raise InputError(f"{name} has no train split; it has {', '.join(table)}: save the one you want as Parquet")
    return table["train"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
