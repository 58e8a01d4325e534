"""Reading rows: from a file, a data set or any iterable of dicts, checked, and kept outside of Python's objects.

Long JSONL files are read by several processes, a part of the file each. What they found is kept beside the data.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from mdpo.errors import InputError

from .cache import Cache, code_digest, digest, file_digest
from .formats import PROMPT_INSIDE
from .image_sources import ImageRoot, image_root, image_source
from .json_lines import Stretch, rows_of_stretch, stretches
from .problem import Dropped, RowError
from .row import PreferenceRow, PromptRow
from .row_files import load_rows, merge_rows, save_rows
from .row_store import Rows, RowWriter
from .rows import Checked, check_rows, same_id
from .sources import Where, default_image_dir, is_where, line_files, open_source, records_of, said
from .workers import processes, read_json, share, write_json

logger = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """What ``check_rows`` is asked for."""

    root: ImageRoot
    kind: type[PromptRow]
    ignore_columns: tuple[str, ...]


class _Found(NamedTuple):
    """What became of the records beside the rows. inside: rows whose prompt is the start of their answers.

    error: the first broken row's parts, where reading stopped. checked: positions of rows that were checked before.
    """

    dropped: dict[str, int]
    inside: int
    error: RowError | None = None
    checked: Sequence[int] = ()


def read_rows(
    path: Where | Iterable[Mapping],
    image_dir: str | Path | None = None,
    *,
    kind: type[PromptRow] = PreferenceRow,
    allow_outside: bool = False,
    ignore_columns: Sequence[str] = (),
) -> Rows:
    """The rows of a data file, a list of files, a folder or a hub dataset, of any format in ``FORMATS``.

    How many rows were dropped because they hold no preference is logged.

    Args:
        path: where the rows are, as ``open_source`` reads it; what is in memory already, such as a
            ``datasets.Dataset``, goes to ``parse_rows``.
        image_dir: the folder that image paths start from; None: that of the data file.
        kind: ``PreferenceRow``, or ``PromptRow`` where the responses are not needed.
        allow_outside: whether image paths and links may lead out of that folder.
        ignore_columns: columns that the rows are read without; any other that is not known is an error.

    Raises:
        InputError: at the first row that is broken, with its file, row and field.
    """
    if not is_where(path):
        where = Path.cwd() if image_dir is None else image_dir
        records = cast(Iterable[Mapping], path)
        return parse_rows(records, where, kind=kind, allow_outside=allow_outside, ignore_columns=ignore_columns)
    path = cast(Where, path)
    asked = _Asked(source_root(path, image_dir, allow_outside), kind, tuple(ignore_columns))
    files = line_files(path)
    cache = Cache.beside(files)
    if not cache.large:
        return _said(*_collect(check_rows(open_source(path), *asked, unique=False)), said(path))
    key = digest(code_digest(), *asked, [(file.name, file_digest(file)) for file in files])
    make = partial(_make, files=files, asked=asked)
    rows, found = cache.entry("rows", key, make, partial(_load, asked=asked))
    rows.cache = cache
    return _said(rows, found, said(path))


def parse_rows(
    records: Iterable[Mapping | PromptRow],
    image_dir: str | Path,
    *,
    source: str = "dataset",
    kind: type[PromptRow] = PreferenceRow,
    allow_outside: bool = False,
    ignore_columns: Sequence[str] = (),
) -> Rows:
    """Checks dicts of any format and brings them into canonical form.

    Args:
        records: dicts, or rows that are checked already; a ``datasets.Dataset`` keeps its images encoded until they
            are read.
        image_dir, kind, allow_outside, ignore_columns: as for ``read_rows``.
        source: what the rows are called in messages.

    Raises:
        InputError: as ``read_rows``.
    """
    root = image_root(image_dir, allow_outside)
    if isinstance(records, Rows):
        return records
    return _said(*_collect(check_rows(records_of(records, source), root, kind, ignore_columns, unique=False)), source)


def source_root(path: Where, image_dir: str | Path | None, allow_outside: bool = False) -> ImageRoot:
    """Where the image paths of a data file lead. Raises InputError where ``image_dir`` is given and no folder."""
    if image_dir is not None:
        return image_root(image_dir, allow_outside)
    return ImageRoot(default_image_dir(path).resolve(), allow_outside)  # of a hub name there is no folder


def _said(rows: Rows, found: _Found, source: str) -> Rows:
    if found.inside:
        logger.warning(
            "%s: %d rows have no prompt; it is what chosen and rejected both start with", source, found.inside
        )
    for reason, count in found.dropped.items():
        logger.warning("%s: %d rows dropped: %s", source, count, reason)
    if not len(rows):
        raise InputError(
            f"{source} contains no rows" + (" that can be used" if found.dropped else "") + "; give at least one"
        )
    return rows


def _collect(items: Iterable[Checked | Dropped | RowError]) -> tuple[Rows, _Found]:
    writer = RowWriter()
    found = _write(items, writer)
    rows = writer.finish()
    _check(rows, found)
    return rows, found


def _write(items: Iterable[Checked | Dropped | RowError], writer: RowWriter) -> _Found:
    """Adds the rows up to the first that is broken."""
    dropped, inside, checked = Counter(), 0, []
    for item in items:
        if isinstance(item, RowError):
            return _Found(dropped, inside, item, checked)
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
            continue
        if item.format == "checked":
            checked.append(len(writer))
        inside += item.format == PROMPT_INSIDE
        writer.add(item.row)
    return _Found(dropped, inside, None, checked)


def _check(rows: Rows, found: _Found) -> None:
    """Raises the RowError of the first row that is broken, or has the id of an earlier one."""
    fresh = np.delete(np.arange(len(rows)), found.checked)
    ids = rows.id_digests()[fresh]
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    if len(again):
        at = again[np.argmin(order[again])]
        raise same_id(rows[int(fresh[order[at]])], rows[int(fresh[order[at - 1]])].where)
    if found.error is not None:
        raise found.error


def _make(folder: Path, files: Sequence[Path], asked: _Asked) -> None:
    """Reads the files into the folder."""
    count = processes()
    parts = [folder / f"part-{number}" for number in range(count)]
    cut = stretches(files, count)
    share(lambda number: _read_part(parts[number], cut[number], asked, first=not number), count)
    found = [_read_found(part) for part in parts]
    broken = next((number for number, part in enumerate(found) if part.error is not None), None)
    if broken is not None:
        parts, found = parts[: broken + 1], found[: broken + 1]
    merge_rows(parts, folder)
    for part in parts:
        shutil.rmtree(part)
    together = _Found(
        dict(sum((Counter(part.dropped) for part in found), Counter())),
        sum(part.inside for part in found),
        found[-1].error,
    )
    _check(load_rows(folder), together)
    _write_found(folder, together)


def _read_part(folder: Path, cut: Sequence[Stretch], asked: _Asked, *, first: bool) -> None:
    folder.mkdir()
    writer = RowWriter(folder)
    found = _Found({}, 0)
    for stretch in cut:
        records = rows_of_stretch(stretch)
        more = _write(check_rows(records, *asked, start=stretch.position, unique=False), writer)
        dropped = dict(Counter(found.dropped) + Counter(more.dropped))
        found = _Found(dropped, found.inside + more.inside, more.error)
        if found.error is not None:
            break
    rows = writer.finish()
    if first and found.error is not None:  # nothing that the others find comes before it
        _check(rows, found)
    save_rows(rows, folder)
    _write_found(folder, found)


def _write_found(folder: Path, found: _Found) -> None:
    error = found.error and [found.error.where, found.error.field, found.error.problem, found.error.remedy]
    write_json(folder / "found.json", {"dropped": dict(found.dropped), "inside": found.inside, "error": error})


def _read_found(folder: Path) -> _Found:
    found = read_json(folder / "found.json")
    return _Found(found["dropped"], found["inside"], found["error"] and RowError.at(*found["error"]))


def _load(folder: Path, asked: _Asked) -> tuple[Rows, _Found]:
    rows = load_rows(folder)
    for entry in rows.table:
        # Whoever hands out data may hand out such a folder with it: it leads nowhere that the rows could not.
        if isinstance(entry, str) and image_source(entry, asked.root, str(folder), "images") != Path(entry):
            raise ValueError(f"{entry} leads elsewhere now")
    return rows, _read_found(folder)
