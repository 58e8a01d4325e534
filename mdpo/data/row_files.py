"""Rows in a folder: their text and pictures as ``RowWriter`` left them there, beside arrays and the table of images."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .blob import Blob
from .row_store import Images, Rows
from .workers import write_json

_ARRAYS = ("ends", "ids", "images", "image_ends", "rejected", "rejected_ends")


def save_rows(rows: Rows, folder: Path) -> None:
    """Writes what is beside the text. The rows come from a ``RowWriter`` of this folder, and none is held in memory."""
    for name, values in zip(_ARRAYS, rows.arrays(), strict=True):
        np.save(folder / f"{name}.npy", values)
    write_json(folder / "table.json", rows.table)


def load_rows(folder: Path) -> Rows:
    """The rows of a folder. Raises OSError or ValueError where its files do not fit together."""
    ends, ids, images, image_ends, rejected, rejected_ends = (
        np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS
    )
    table = [
        entry if isinstance(entry, str) else tuple(entry) for entry in json.loads((folder / "table.json").read_bytes())
    ]
    if not len(ends) == len(ids) == len(image_ends) == len(rejected_ends):
        raise ValueError("arrays of several lengths")
    for flat, last in ((images, image_ends), (rejected, rejected_ends)):
        if len(flat) != (last[-1] if len(last) else 0) or len(flat) and not 0 <= flat.min() <= flat.max() < len(table):
            raise ValueError("images that are not in the table")
    return Rows(
        Blob(folder / "rows.jsonl"),
        Blob(folder / "pictures"),
        ends,
        Images(images, image_ends),
        Images(rejected, rejected_ends),
        table,
        ids,
    )


def merge_rows(parts: Sequence[Path], folder: Path) -> None:
    """The rows of the parts, one part after the other, in ``folder``. The parts lose their text."""
    loaded = [load_rows(part) for part in parts]
    table: list[Any] = []
    numbers: dict[Any, int] = {}
    columns: list[list[np.ndarray]] = [[] for _ in _ARRAYS]
    sizes = [0, 0, 0, 0]  # text, pictures, images, rejected images so far
    for part, rows in zip(parts, loaded, strict=True):
        renamed = np.zeros(len(rows.table), np.int32)
        for number, entry in enumerate(rows.table):
            key = entry if isinstance(entry, str) else (entry[0], entry[1] + sizes[1], entry[2] + sizes[1])
            if key not in numbers:
                numbers[key] = len(table)
                table.append(key)
            renamed[number] = numbers[key]
        ends, ids, images, image_ends, rejected, rejected_ends = rows.arrays()
        moved = (
            ends + sizes[0],
            ids,
            renamed[images],
            image_ends + sizes[2],
            renamed[rejected],
            rejected_ends + sizes[3],
        )
        for column, values in zip(columns, moved, strict=True):
            column.append(values)
        for at, name in enumerate(("rows.jsonl", "pictures")):
            sizes[at] += (part / name).stat().st_size
            append_file(part / name, folder / name)
        sizes[2] += len(images)
        sizes[3] += len(rejected)
    for name, values in zip(_ARRAYS, columns, strict=True):
        np.save(folder / f"{name}.npy", np.concatenate(values))
    write_json(folder / "table.json", table)


def append_file(part: Path, whole: Path) -> None:
    """Moves the bytes of ``part`` to the end of ``whole``."""
    if not whole.exists():
        part.replace(whole)
        return
    with part.open("rb") as source, whole.open("ab") as target:
        shutil.copyfileobj(source, target, 2**20)
    part.unlink()
