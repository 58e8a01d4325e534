"""Two commits side by side: what was measured on both, on one device with the same versions."""

import json
from collections.abc import Sequence
from pathlib import Path

from bench.commit import ROOT, git
from bench.render.plots import by
from bench.render.report import COMMITTED, FILES, number, records_below
from bench.suite.record import Record
from bench.suite.shelf import Shelf


def records_of(other: str, folder: Path, scratch: Path) -> list[Record]:
    """Those of another folder, or those that `folder` held at a commit, which are written to `scratch`.

    Raises ValueError where it is neither, or holds none.
    """
    if Path(other).is_dir():
        found = records_below(Path(other))
    else:
        _write_files_at(other, folder.resolve(), scratch)
        try:
            found = Shelf(scratch).records()
        except ValueError as error:
            raise ValueError(
                f"{other}: its records have another form than today's; give a commit after that, or a folder of records"
            ) from error
    if not found:
        raise ValueError(f"{other}: holds no records; give another folder of records, or a commit that has some")
    return found


def _write_files_at(commit: str, folder: Path, scratch: Path) -> None:
    if not folder.is_relative_to(ROOT) or git(ROOT, "rev-parse", "--verify", f"{commit}^{{commit}}") is None:
        raise ValueError(
            f"{commit}: is no folder, and no commit at which {folder} can be looked up; give a folder of records"
        )
    listed = git(ROOT, "ls-tree", "-r", "-z", "--name-only", commit, folder.relative_to(ROOT).as_posix()) or b""
    names = [name for name in listed.decode().split("\0") if name.endswith(".json")]
    for name in names:
        content = git(ROOT, "show", f"{commit}:{name}")
        if content is not None and (folder != COMMITTED or Path(name).stem in FILES):
            path = scratch / Path(name).relative_to(folder.relative_to(ROOT))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def comparison(records: Sequence[Record], others: Sequence[Record]) -> list[str]:
    """A row for what both have, where nothing but the commit differs in what they were measured with: how many times
    as fast it has become, and how the floor, which no commit changes, has moved in the same two runs; memory, now over
    then.
    """
    then = {(record.measurement, _conditions(record)): record for record in others if record.median_ms}
    pairs = [(record, then.get((record.measurement, _conditions(record)))) for record in records if record.median_ms]
    compared = {id(record): other for record, other in pairs if other is not None}
    lines = ["| | then, ms | now, ms | speed | floor | memory |", "|---|---|---|---|---|---|"]
    both = [record for record, other in pairs if other is not None]
    for rows in by(both, lambda record: (record.part, record.op, record.case, record.dtype)).values():
        for now in rows:
            before = compared[id(now)]
            name = f"{now.op}, {now.case.replace(',', ', ')}, {now.dtype}: {now.implementation}"
            cells = [number(before.median_ms), number(now.median_ms), _ratio(before.median_ms, now.median_ms)]
            floor = _ratio(before.floor_ms, now.floor_ms) if before.floor == now.floor else ""
            lines.append(f"| {' | '.join([name, *cells, floor, _ratio(now.peak_bytes, before.peak_bytes)])} |")
    known = {record.measurement for record in others if record.median_ms}
    differing = sum(other is None and record.measurement in known for record, other in pairs)
    alone = len(pairs) - len(both) - differing
    counts = f"{len(both)} compared; {differing} measured with other versions or on another device; {alone} only here"
    return [*lines, "", f"{counts}."] if both else [f"{counts}."]


def _conditions(record: Record) -> str:
    """All but the commit, which is what is compared."""
    return json.dumps({**record.environment, "commit": None}, sort_keys=True)


def _ratio(one: float | None, other: float | None) -> str:
    return f"{one / other:.2f}" if one and other else ""
