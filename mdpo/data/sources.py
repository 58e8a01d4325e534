"""Where rows are read from: JSON, JSONL, Parquet, folders and lists of such files, saved datasets, the hub, or memory.

Every source yields ``(where, record)``, one row at a time; a JSONL file is never whole in memory. A record that could
not be read is the RowError that says why, so that ``mdpo data check`` can go on to the next. Nothing is unpickled, no
dataset's own code is run, and the network is used for a hub name alone.
"""

import glob
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.hub import hub_name
from mdpo.reading import parse_json

from .json_lines import json_lines
from .problem import clipped
from .tables import Record, choose_split, hub_dataset, parquet, saved_dataset, stream_rows, table_rows

Where = str | Path | Sequence[str | Path]  # of rows

_SUFFIXES = (".json", ".jsonl", ".parquet")
_SPLIT = re.compile(r"(?P<path>.+):(?P<split>[A-Za-z]\w*)")
_SHARD = re.compile(r"(?P<split>[A-Za-z]\w*?)-\d+-of-\d+")  # train-00000-of-00005.parquet, as the hub stores them
_SAVED = ("dataset_dict.json", "state.json", "dataset_info.json")  # what save_to_disk writes


def open_source(path: Where) -> Iterator[Record]:
    """Yields ``(where, record)`` for every row of ``path``.

    path: a ``.json`` (one list), ``.jsonl`` or ``.parquet`` file; a pattern of such files (``data/*.parquet``); a
    folder that holds ``.parquet`` or ``.jsonl`` files, or that ``Dataset.save_to_disk`` wrote; ``owner/name`` of a
    dataset on the hub, ``owner/name@revision`` at a branch, tag or commit; or a list of these, one after the other. Of
    what has splits the train split is read, or the one behind a colon: ``folder:test``, ``owner/name@revision:test``.

    Raises InputError at once where there is nothing to read, and while reading where a whole file is broken.
    """
    if not isinstance(path, (str, Path)):
        return itertools.chain.from_iterable([open_source(one) for one in path])
    path, split = _parse(path)
    kind = _kind(path)
    if kind == "folder":
        if any((path / name).is_file() for name in _SAVED):
            return table_rows(saved_dataset(path, split), path.name)
        return _shards(_files_of(path, split), path.name)
    if kind == "file":
        if split is not None:
            raise InputError(f"data file {path} has no splits, so there is no {split!r} in it; leave :{split} out")
        return _shards([path], path.name)
    if found := sorted(map(Path, glob.glob(str(path), recursive=True))):
        return _shards(found, path.name)
    name = hub_name(path) if path.suffix not in _SUFFIXES else None
    if name is not None:
        return table_rows(hub_dataset(name, split), str(name))
    raise _missing(path)


def check_there(path: str | Path) -> None:
    """Raises InputError where nothing can be read by this name. Reads nothing, and asks the hub nothing."""
    path, _ = _parse(path)
    named = path.suffix not in _SUFFIXES and hub_name(path) is not None
    if not (_kind(path) in ("folder", "file") or named or glob.glob(str(path), recursive=True)):
        raise _missing(path)


def _missing(path: Path) -> InputError:
    looked = "" if path.is_absolute() else f" in {Path.cwd()}, where relative paths start"
    return InputError(f"data file {clipped(str(path))} does not exist{looked}; check the path")


def records_of(given: Any, name: str) -> Iterator[Record]:
    """Yields ``(where, record)`` for what Python code hands over: dicts, checked rows, or a ``datasets`` object.

    Raises InputError where ``given`` is no such thing.
    """
    datasets = sys.modules.get("datasets")  # whoever has one of its objects has imported it
    if datasets is not None:
        if isinstance(given, datasets.Dataset):
            return table_rows(given, name, paths=True)
        if isinstance(given, datasets.IterableDataset):
            return stream_rows(given, name)
        if isinstance(given, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            raise InputError(f"{name} has splits: {', '.join(map(str, given))}; give one of them, as in data['train']")
    if isinstance(given, (str, Path)):
        raise InputError(f"{name} is the path {clipped(str(given))}; read it with mdpo.data.read_rows")
    if isinstance(given, Mapping) or not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
        raise InputError(f"{name} is a {type(given).__name__}; give rows: a list of dicts, or a datasets.Dataset")
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # pandas, whose iteration yields column names
        raise InputError(f"{name} is a {type(given).__name__}; give its rows: frame.to_dict('records')")
    return ((f"{name}, row {index}", record) for index, record in enumerate(given))


def is_where(given: Any) -> bool:
    """Whether it says where rows are: a path, or a list of paths."""
    several = isinstance(given, (list, tuple)) and len(given) > 0
    return isinstance(given, (str, Path)) or several and all(isinstance(path, (str, Path)) for path in given)


def said(path: Where) -> str:
    """What messages call a path, or a list of paths."""
    if isinstance(path, (str, Path)):
        return str(path)
    return f"{path[0]} and {len(path) - 1} more" if len(path) > 1 else str(path[0])


def line_files(path: Where) -> list[Path]:
    """The local files that ``open_source`` reads for ``path``, where all of them are JSONL; else none."""
    if not isinstance(path, (str, Path)):
        parts = [line_files(one) for one in path]
        return [file for part in parts for file in part] if all(parts) else []
    where, split = _parse(path)
    if _kind(where) == "folder" and any((where / name).is_file() for name in _SAVED) or _kind(where) and split:
        files = []
    else:
        files = data_files(path)
    return files if {file.suffix for file in files} == {".jsonl"} else []


def data_files(path: Where) -> list[Path]:
    """The local files that ``open_source`` reads for ``path``; none where it would ask the hub, or find nothing."""
    if not isinstance(path, (str, Path)):
        parts = [data_files(one) for one in path]
        return [file for part in parts for file in part] if all(parts) else []
    path, split = _parse(path)
    kind = _kind(path)
    if kind == "file":
        return [path]
    if kind == "folder":
        saved = any((path / name).is_file() for name in _SAVED)
        return sorted(path.rglob("*.arrow")) if saved else _files_of(path, split)
    return sorted(map(Path, glob.glob(str(path), recursive=True)))


def default_image_dir(path: Where) -> Path:
    """The folder that image paths are taken from where none is given: the data file's own.

    Raises InputError for a list of files in several folders.
    """
    if not isinstance(path, (str, Path)):
        folders = list(dict.fromkeys(default_image_dir(one) for one in path))
        if len(folders) > 1:
            raise InputError(
                f"{said(path)}: files in several folders, {folders[0]} and {folders[1]}; say with image_dir where "
                "image paths start"
            )
        return folders[0]
    path, _ = _parse(path)
    return path if _kind(path) == "folder" else path.parent


def _parse(path: str | Path) -> tuple[Path, str | None]:
    """The path, and the split behind its colon. A path that is there as it stands has none."""
    whole = Path(path).expanduser()
    match = _SPLIT.fullmatch(str(whole))
    if match is None or _kind(whole) is not None:
        return whole, None
    return Path(match["path"]), match["split"]


def _kind(path: Path) -> str | None:
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    except OSError:  # a name that is too long
        return None


def _files_of(folder: Path, split: str | None) -> list[Path]:
    """The data files of a folder, or of its ``data`` as on the hub. Of files named for splits, those of ``split``."""
    for place in (folder, folder / "data"):
        for suffix in (".parquet", ".jsonl"):
            files = sorted(file for file in place.glob(f"*{suffix}") if file.is_file())
            named = [_split_of(file) for file in files]
            if not files:
                continue
            if None not in named:
                wanted = choose_split(sorted({str(name) for name in named}), split, f"data folder {folder}")
                return [file for file, name in zip(files, named, strict=True) if name == wanted]
            if split is not None:
                raise InputError(f"data folder {folder}: its files are not named for splits; leave :{split} out")
            return files
    if (folder / "config.json").is_file():
        raise InputError(f"data folder {folder} is a model; the model comes first, then the data")
    raise InputError(
        f"data folder {folder} contains no .parquet or .jsonl files, and was not saved by datasets; give the file "
        "itself, or another folder"
    )


def _split_of(file: Path) -> str | None:
    """The split that a file is named for: ``train.jsonl``, ``test-00000-of-00002.parquet``."""
    match = _SHARD.fullmatch(file.stem)
    name = match["split"] if match else file.stem
    return name if match or name in ("train", "test", "validation", "val", "eval", "dev") else None


def _shards(files: Sequence[Path], name: str) -> Iterator[Record]:
    kinds = {file.suffix for file in files}
    if unknown := sorted(kinds - set(_SUFFIXES)):
        bad = next(file for file in files if file.suffix == unknown[0])
        raise InputError(f"{bad}: unknown kind of file {unknown[0]!r}; give {', '.join(_SUFFIXES)}")
    if kinds == {".parquet"}:
        return itertools.chain.from_iterable(table_rows(parquet(file), file.name) for file in files)
    if len(kinds) > 1:
        raise InputError(f"{name}: files of several kinds, {', '.join(sorted(kinds))}; give those of one")
    read = _json_rows if kinds == {".json"} else json_lines
    return itertools.chain.from_iterable(map(read, files))


def _json_rows(path: Path) -> Iterable[Record]:
    try:
        records = parse_json(path.read_bytes())
    except ValueError as error:
        remedy = "fix the file, or save it as JSONL, one row a line"
        if "Extra data: line 2" in str(error):
            remedy = "a row a line is JSONL: name the file .jsonl"
        raise InputError(f"{path}: {error}; {remedy}") from error
    if not isinstance(records, list):
        raise InputError(f"{path} is a {type(records).__name__}; expected a list of rows; wrap the rows in [ ]")
    return ((f"{path.name}, row {index}", record) for index, record in enumerate(records))
