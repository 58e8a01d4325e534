"""A seeded sample of a data file, written as JSONL in the canonical format, with a record of how it was drawn.

The mDPO paper trains on 10,000 pairs sampled from Silkie's VLFeedback.
"""

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from .image_sources import ImageRoot
from .images import ImageSource, StoredImage
from .messages import text_columns
from .problem import Dropped, RowError
from .rows import Checked, PreferenceRow, check_rows
from .sources import open_source

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


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
    ``output`` or its record is there already.
    """
    if output.suffix != ".jsonl":
        raise InputError(f"--output {output}: rows are written as JSONL; give a name that ends in .jsonl")
    if count is not None and count < 1:
        raise InputError(f"--count {count}: expected a number above 0")
    for file in (output, output.with_suffix(".record.json")):
        if os.path.lexists(file):
            raise InputError(f"--output {output}: {file} is there already; give a new name, or remove it first")
    dropped: Counter[str] = Counter()
    keyed = _keyed(check_rows(open_source(path), root, PreferenceRow, ignore_columns), seed, dropped)
    chosen = list(keyed) if count is None else heapq.nsmallest(count, keyed)
    if not chosen or count is not None and len(chosen) < count:
        raise InputError(f"{path} has {len(chosen)} usable rows, fewer than --count {count or 1}")
    text = "".join(
        json.dumps(_record(row, root, output.parent), ensure_ascii=False) + "\n"
        for _, _, row in sorted(chosen, key=lambda item: item[1])
    )
    record = {
        "source": str(path), "seed": seed, "rows": len(chosen), "dropped": dict(dropped),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }  # fmt: skip
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        output.with_suffix(".record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}") from error
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


def _record(row: PreferenceRow, root: ImageRoot, folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id, "images": [_image(image, row, root, folder) for image in row.images]}
    record |= text_columns(row.prompt, row.plain, row.tools, row.template_kwargs)
    record |= {"chosen": row.chosen, "rejected": row.rejected}
    if row.rejected_images:
        record["rejected_images"] = [_image(image, row, root, folder) for image in row.rejected_images]
    return record


def _image(image: ImageSource, row: PreferenceRow, root: ImageRoot, folder: Path) -> str:
    if isinstance(image, Path):
        return str(image.relative_to(root.folder)) if image.is_relative_to(root.folder) else str(image)
    assert isinstance(image, StoredImage), "a file's rows hold paths or stored images"
    data = image.read()
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".image")
    target = folder / "images" / (hashlib.blake2b(data, digest_size=12).hexdigest() + suffix)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    except OSError as error:
        raise RowError.at(
            row.where, "images", f"cannot be written to {target}: {error.strerror}", "check --output"
        ) from error
    return str(target.relative_to(folder))
