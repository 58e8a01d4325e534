"""Pictures of one operation's records on one device: lines over a size, or bars where no size varies."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from bench.suite.record import Record, Role

ROLES = get_args(Role)


def by(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """The records in groups, in the report's order: parts and operations by name, shapes by their numbers,
    ours first.
    """
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in sorted(records, key=_order):
        groups[key(record)].append(record)
    return dict(groups)


def _order(record: Record) -> tuple[Any, ...]:
    shape = tuple((isinstance(v, int), v if isinstance(v, int) else 0, str(v)) for v in record.shape.values())
    return record.part, record.op, shape, record.dtype, ROLES.index(record.role), record.implementation


def plot(records: Sequence[Record], path: Path) -> bool:
    """Writes time and memory of one operation on one device; False where there is nothing to compare."""
    measured = [r for r in records if r.median_ms is not None]
    axis = _varying(measured)
    if axis is not None:
        return _lines(measured, axis, path)
    return _bars(measured, path)


def _lines(measured: Sequence[Record], axis: str, path: Path) -> bool:
    """Over the first numeric part of the shape that varies, a column per rest of the shape."""
    panels = by(measured, lambda r: ", ".join(f"{k} {v}" for k, v in r.shape.items() if k not in (axis, "B")))
    panels = {name: rows for name, rows in panels.items() if len({r.shape[axis] for r in rows}) > 1}
    if not panels:
        return False
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, len(panels), figsize=(4.2 * len(panels), 7), squeeze=False, sharex="col")
    colours = _colours(measured)
    for column, (panel, rows) in enumerate(panels.items()):
        _draw(axes[0][column], rows, axis, colours, lambda r: r.median_ms)
        floors = sorted({r.shape[axis]: r.floor_ms for r in rows if r.floor_ms}.items())
        if floors:
            axes[0][column].plot(*zip(*floors, strict=True), "k:", label="floor")
        _draw(axes[1][column], rows, axis, colours, lambda r: r.peak_bytes and r.peak_bytes / 2**20)
        axes[0][column].set_title(panel, fontsize=9)
        axes[1][column].set_xlabel(axis)
    axes[0][0].set_ylabel("ms, forward + backward")
    axes[1][0].set_ylabel("MiB above the inputs")
    axes[0][-1].legend(fontsize=7)
    _save(figure, measured[0], path)
    return True


def _bars(measured: Sequence[Record], path: Path) -> bool:
    """A row of bars per shape: time and memory of each implementation."""
    panels = {case: rows for case, rows in by(measured, lambda r: r.case).items() if len(rows) > 1}
    if not panels:
        return False
    pyplot = _pyplot()
    tall = max(1.2, 0.3 * max(len(rows) for rows in panels.values()))
    has_memory = any(r.peak_bytes for r in measured)
    size = (10, (0.9 + tall) * len(panels))
    figure, axes = pyplot.subplots(len(panels), 1 + has_memory, figsize=size, squeeze=False)
    colours = _colours(measured)
    for row, (case, rows) in zip(axes, panels.items(), strict=True):
        names = [r.implementation for r in reversed(rows)]
        bars = [colours[name] for name in names]
        row[0].barh(names, [r.median_ms for r in reversed(rows)], color=bars)
        if has_memory:
            row[1].barh(names, [(r.peak_bytes or 0) / 2**20 for r in reversed(rows)], color=bars)
            row[1].set_xlabel("MiB above the inputs", fontsize=8)
            row[1].set_yticks([])
        row[0].set_title(case.replace(",", ", "), fontsize=8, loc="left")
        row[0].set_xlabel("ms", fontsize=8)
        for axis in row:
            axis.tick_params(labelsize=8)
    _save(figure, measured[0], path)
    return True


def _draw(axes: Any, records: Sequence[Record], axis: str, colours: dict[str, str], value: Any) -> None:
    for name, rows in by(records, lambda r: r.implementation).items():
        points = sorted((r.shape[axis], y) for r in rows if (y := value(r)))
        if points:
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                markersize=3,
                color=colours[name],
                label=name,
                linewidth=2 if name == "ours" else 1,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _colours(records: Sequence[Record]) -> dict[str, str]:
    names = sorted({r.implementation for r in records}, key=lambda n: (not n.startswith("ours"), n))
    return {name: f"C{index}" for index, name in enumerate(names)}


def _varying(records: Sequence[Record]) -> str | None:
    for name in ("N", "R", "P", "V", "B"):
        if len({r.shape[name] for r in records if isinstance(r.shape.get(name), int)}) > 1:
            return name
    return None


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, record: Record, path: Path) -> None:
    figure.suptitle(f"{record.op} ({record.environment.get('device')}, {record.dtype})", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software version in the file: the same records give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)
