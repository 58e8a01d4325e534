"""A seeded sample of a data file, written as JSONL in the canonical format, with a record of how it was drawn.

The mDPO paper trains on 10,000 pairs sampled from Silkie's VLFeedback.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.output_checks import Output, check_outputs
from mdpo.outputs import whole_files, write_part

from .canonical import Pictures, preference_columns
from .image_sources import ImageRoot
from .images import ImageSource
from .problem import Dropped, RowError
from .rows import Checked, PreferenceRow, check_rows
from .sources import open_source


def sample_file(
    path: str | Path,
    root: ImageRoot,
    output: Path,
    *,
    count: int | None,
    seed: int,
    ignore_columns: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes ``count`` rows of ``path`` (None: all) to ``output``, and ``output``.record.json beside it.

    The rows are those with the smallest hash of (seed, row id): the same in every version of Python, and a row that is
    added or dropped changes nothing about the others. They keep the file's order. Images inside a table are written to
    ``images/`` beside ``output``; paths stay relative to the image folder.

    Returns the record. Raises InputError at the first broken row, where fewer than ``count`` rows are usable, or where
    ``output`` or its record is there already; OutputError where they cannot be written.
    """
    if output.suffix != ".jsonl":
        raise InputError(f"--output {output}: rows are written as JSONL; give a name that ends in .jsonl")
    if count is not None and count < 1:
        raise InputError(f"--count is {count}; expected a number above 0")
    check_outputs(sample_files(output), {"data": [Path(path)]})
    dropped: Counter[str] = Counter()
    keyed = _keyed(check_rows(open_source(path), root, PreferenceRow, ignore_columns), seed, dropped)
    chosen = list(keyed) if count is None else heapq.nsmallest(count, keyed)
    if not chosen or count is not None and len(chosen) < count:
        raise InputError(f"{path} has {len(chosen)} usable rows, fewer than --count {count or 1}")
    images = Pictures(output.parent)
    place = partial(_image, root=root, pictures=images)
    try:
        text = "".join(
            json.dumps(preference_columns(row, place), ensure_ascii=False) + "\n"
            for _, _, row in sorted(chosen, key=lambda item: item[1])
        )
        record = _write(output, text, len(chosen), {"source": str(path), "seed": seed, "dropped": dict(dropped)})
    except BaseException:
        images.remove()
        raise
    return record


def sample_files(output: Path) -> list[Output]:
    """The sample, and the record of how it was drawn."""
    return [Output("--output", output), Output("--output", output.with_suffix(".record.json"))]


def _write(output: Path, text: str, rows: int, drawn: dict[str, Any]) -> dict[str, Any]:
    record = {
        "source": drawn["source"],
        "seed": drawn["seed"],
        "rows": rows,
        "dropped": drawn["dropped"],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    with whole_files(*(file.path for file in sample_files(output))) as (rows_part, record_part):
        write_part(rows_part, text)
        write_part(record_part, json.dumps(record, indent=2) + "\n")
    return record


def _keyed(
    found: Iterable[Checked | Dropped | RowError], seed: int, dropped: Counter[str]
) -> Iterator[tuple[bytes, int, PreferenceRow]]:
    for index, item in enumerate(found):
        if isinstance(item, RowError):
            raise item
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
            continue
        key = hashlib.blake2b(f"{seed}\0{item.row.id}".encode(), digest_size=16).digest()
        yield key, index, item.row


def _image(image: ImageSource, root: ImageRoot, pictures: Pictures) -> str:
    if isinstance(image, Path):
        return str(image.relative_to(root.folder)) if image.is_relative_to(root.folder) else str(image)
    return pictures.place(image)
