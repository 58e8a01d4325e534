"""A seeded sample of a data file, written as JSONL in the canonical format, with a record of how it was drawn.

The mDPO paper trains on 10,000 pairs sampled from Silkie's VLFeedback.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.output_checks import Output, check_outputs
from mdpo.outputs import make_folder, remove_empty, whole_file, whole_files, write_part

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
    ``output`` or its record is there already; OutputError where they cannot be written.
    """
    if output.suffix != ".jsonl":
        raise InputError(f"--output {output}: rows are written as JSONL; give a name that ends in .jsonl")
    if count is not None and count < 1:
        raise InputError(f"--count {count}: expected a number above 0")
    check_outputs(sample_files(output), {"data": [Path(path)]})
    dropped: Counter[str] = Counter()
    keyed = _keyed(check_rows(open_source(path), root, PreferenceRow, ignore_columns), seed, dropped)
    chosen = list(keyed) if count is None else heapq.nsmallest(count, keyed)
    if not chosen or count is not None and len(chosen) < count:
        raise InputError(f"{path} has {len(chosen)} usable rows, fewer than --count {count or 1}")
    images = _Images(output.parent)
    try:
        text = "".join(
            json.dumps(_record(row, root, images), ensure_ascii=False) + "\n"
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
        "source": drawn["source"], "seed": drawn["seed"], "rows": rows, "dropped": drawn["dropped"],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }  # fmt: skip
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


def _record(row: PreferenceRow, root: ImageRoot, images: "_Images") -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id, "images": [_image(image, root, images) for image in row.images]}
    record |= text_columns(row.prompt, row.plain, row.tools, row.template_kwargs)
    record |= {"chosen": row.chosen, "rejected": row.rejected}
    if row.rejected_images:
        record["rejected_images"] = [_image(image, root, images) for image in row.rejected_images]
    beside = {name: getattr(row, name) for name in ("contrast", "chosen_weights", "rejected_weights")}
    record |= {name: value for name, value in beside.items() if value}
    return record


def _image(image: ImageSource, root: ImageRoot, images: "_Images") -> str:
    if isinstance(image, Path):
        return str(image.relative_to(root.folder)) if image.is_relative_to(root.folder) else str(image)
    assert isinstance(image, StoredImage), "a file's rows hold paths or stored images"
    return images.write(image.read())


class _Images:
    """The pictures of a table, written to ``folder``/images under names that follow from their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: list[Path] = []
        self._made: list[Path] = []

    def write(self, data: bytes) -> str:
        """Returns the path below ``folder``. Raises OutputError where the picture cannot be written."""
        suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".image")
        target = self.folder / "images" / (hashlib.blake2b(data, digest_size=12).hexdigest() + suffix)
        if not target.exists():
            self._made += make_folder(target.parent)
            with whole_file(target) as part:
                part.write_bytes(data)
            self._written.append(target)
        return str(target.relative_to(self.folder))

    def remove(self) -> None:
        """Takes back what was written for a sample that came to nothing."""
        for path in self._written:
            path.unlink(missing_ok=True)
        remove_empty(self._made)
