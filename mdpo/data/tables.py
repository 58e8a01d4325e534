"""Rows of tables: what the ``datasets`` library holds in memory, saved to a folder, keeps as Parquet or on the hub.

Images stay encoded, where they are, until they are read. The network is used for a hub name alone, and no data set's
own code is run.
"""

import functools
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mdpo.errors import InputError
from mdpo.hub import Name, look_at_dataset
from mdpo.reading import open_regular
from mdpo.stops import is_main_process

from .images import StoredImage, open_image
from .problem import names

Record = tuple[str, Any]

_log = logging.getLogger(__name__)

_BATCH = 64  # rows of a table at a time, with the bytes of their images


def table_rows(table: Any, name: str, *, paths: bool = False) -> Iterator[Record]:
    """Rows of a ``datasets.Dataset``. Its images stay where they are, in a memory-mapped file, until they are read.

    Args:
        table: The data set. A format only says in which containers it hands its cells out, so it is set aside; of
            columns that a format hides none is read.
        name: For messages.
        paths: Images that the table stores as an absolute path are read from there, as ``datasets`` itself would.

    Raises InputError where the data set has a transform, which reading it as stored would leave out.
    """
    view = table.format
    if view["type"] == "custom":
        raise InputError(
            f"{name}: the datasets.Dataset has a transform (with_transform, set_transform), which is not applied to "
            "images that are read later; apply it with map, or take it off with reset_format"
        )
    if not view["output_all_columns"]:
        table = table.select_columns(view["columns"])
    columns = [column for column, feature in table.features.items() if _holds_images(feature, name, column)]
    table = table.with_format("arrow")  # as stored: nothing is decoded
    return _rows(table, columns, name, paths)


def _rows(table: Any, columns: list[str], name: str, paths: bool) -> Iterator[Record]:
    index = 0
    for batch in table.iter(batch_size=_BATCH):
        for row in batch.to_pylist():
            for column in columns:
                row[column] = _stored(row[column], table, index, column, paths)
            yield f"{name}, row {index}", row
            index += 1


def stream_rows(stream: Any, name: str) -> Iterator[Record]:
    """Rows of a ``datasets.IterableDataset``, read once. Of images the encoded bytes are kept, never the pixels."""
    stream = stream.with_format(None)
    if stream.features is not None and hasattr(stream, "decode"):  # from datasets 3.6 on
        stream = stream.decode(False)
    for index, row in enumerate(stream):
        where = f"{name}, row {index}"
        yield where, _encoded(row, where)


def _encoded(value: Any, where: str) -> Any:
    """The cell with every picture in it as PNG, which loses nothing: what ``map`` hands on is decoded."""
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        open_image(value, where).save(file, "PNG", compress_level=1)
        return StoredImage("in the stream", functools.partial(bytes, file.getvalue()))
    if isinstance(value, Mapping):
        if value.keys() == {"bytes", "path"} and value["bytes"] is None:
            return _by_path(value)
        return {key: _encoded(cell, where) for key, cell in value.items()}
    return [_encoded(cell, where) for cell in value] if isinstance(value, list) else value


def _holds_images(feature: Any, name: str, column: str) -> bool:
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    kind = next((kind for kind in (feature, inner) if type(kind).__name__ == "Image"), None)
    mode = getattr(kind, "mode", None)
    if mode not in (None, "RGB"):
        raise InputError(
            f"{name}: column {column} asks for images of mode {mode}, and images are shown to the model as RGB; "
            f"cast_column({column!r}, datasets.Image())"
        )
    return kind is not None


def _stored(value: Any, table: Any, index: int, column: str, paths: bool) -> Any:
    if isinstance(value, list):
        return [_stored_image(cell, table, index, column, position, paths) for position, cell in enumerate(value)]
    return _stored_image(value, table, index, column, None, paths)


def _stored_image(cell: Any, table: Any, index: int, column: str, position: int | None, paths: bool) -> Any:
    if not isinstance(cell, Mapping):
        return cell
    path = cell.get("path")
    if cell.get("bytes") is not None:
        return StoredImage(str(path or column), functools.partial(_read_cell, table, index, column, position))
    if path is None:
        return None  # a null image, which Arrow may keep as a struct of nulls
    return _by_path(cell) if paths else cell


def _by_path(cell: Mapping[str, Any]) -> Any:
    """An image that is stored as an absolute path, as ``datasets`` itself would read it.

    URLs are left to be refused.
    """
    path = cell["path"]
    if path is None or "://" in path or not Path(path).is_absolute():
        return cell
    return StoredImage(path, functools.partial(_read_file, path))


def _read_cell(table: Any, index: int, column: str, position: int | None) -> bytes:
    value = table.select_columns([column])[index][column][0].as_py()
    return (value if position is None else value[position])["bytes"]


def _read_file(path: str) -> bytes:
    with open(open_regular(path), "rb") as file:
        return file.read()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "Parquet files, saved datasets and datasets of the hub need the datasets library; "
            'pip install -e ".[data]" in the clone of mDPO'
        ) from error
    if (
        logging.getLogger().handlers
    ):  # its lines reach them too: with a handler of its own it would say everything twice
        logging.getLogger("datasets").handlers.clear()
    return datasets


def parquet(path: Path) -> Any:
    """The rows of a Parquet file. Raises InputError naming it where it can't be read."""
    datasets = _datasets()
    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # pyarrow's and datasets' own kinds, many of them
        raise InputError(f"{path}: not a Parquet file that can be read: {_one_line(error)}") from error


def saved_dataset(path: Path, split: str | None) -> Any:
    """A folder that ``save_to_disk`` wrote; of one with splits, ``split``. Raises InputError where it does not load."""
    datasets = _datasets()
    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow's and datasets' own kinds, many of them
        raise InputError(f"data folder {path} does not load: {_one_line(error)}; save it again") from error
    return _split(table, split, f"data folder {path}", datasets)


def hub_dataset(name: Name, split: str | None) -> Any:
    """A data set of the hub, of which ``split``. Without a network it is what the cache of ``datasets`` has.

    Raises InputError where the hub does not hand it out, and where it cannot be reached while the cache has it not, or
    at another commit.
    """
    datasets = _datasets()
    commit, online = look_at_dataset(name)
    if not online and not datasets.config.HF_HUB_OFFLINE and is_main_process():
        _log.warning("%s: the hub cannot be reached; HF_HUB_OFFLINE=1 saves asking it again and again", name)
    try:
        table = datasets.load_dataset(name.repo, revision=commit if online else None)
    except Exception as error:  # no network, a dataset that is code, several subsets: each of another kind
        raise InputError(
            f"{name} is not a file here, and the hub's dataset does not load: {_remedied(name, error)}"
        ) from error
    if not online:
        _check_commit(name, commit, _prepared(table))
    return _split(table, split, f"dataset {name}", datasets)


def _prepared(table: Any) -> str:
    """The commit of a data set that ``datasets`` has taken from its cache, where each is a folder of its own."""
    tables = list(table.values()) if isinstance(table, Mapping) else [table]
    return next((Path(file["filename"]).parent.name for part in tables for file in part.cache_files), "unknown")


def _check_commit(name: Name, wanted: str | None, found: str) -> None:
    """Says which commit the cache has, which hands out the one that was read last, whatever is asked for.

    Raises InputError where it is not the one that the name stands for.
    """
    wanted = wanted or name.revision
    if wanted is not None and not found.startswith(wanted):
        raise InputError(
            f"{name}: the hub cannot be reached, and the cache of datasets has commit {found[:12]}, not "
            f"{wanted[:12]}; read it once with a network, or use the cached one: {name.repo}@{found[:12]}"
        )
    if is_main_process():
        _log.warning(
            "%s: the hub cannot be reached, so it is taken as the cache of datasets has it, commit %s", name, found[:12]
        )


def _remedied(name: Name, error: Exception) -> str:
    if "Config name is missing" in str(error):
        fetch = f"hf download {name.repo} --repo-type dataset --local-dir FOLDER"
        return f"it has several subsets; fetch it ({fetch}) and give the files of one: FOLDER/SUBSET/*.parquet"
    return (
        f"{_one_line(error)}; check the name, or fetch it where there is a network: hf download {name.repo} "
        "--repo-type dataset"
    )


def _split(table: Any, split: str | None, name: str, datasets: Any) -> Any:
    if not isinstance(table, datasets.DatasetDict):
        if split is not None:
            raise InputError(f"{name} has no splits, so there is no {split!r} in it; leave :{split} out")
        return table
    return table[choose_split(list(table), split, name)]


def choose_split(splits: Sequence[str], wanted: str | None, name: str) -> str:
    """``wanted``, or train. Raises InputError that lists the splits where it is not among them."""
    if (wanted or "train") in splits:
        return wanted or "train"
    if wanted is None:
        raise InputError(f"{name} has no train split; it has {names(splits)}: add the one you want, as in :{splits[0]}")
    raise InputError(f"{name} has no split {wanted!r}; it has {names(splits)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
