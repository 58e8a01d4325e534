"""Tables and plots from the records: `python -m bench.render DIR [--out FOLDER]`, writing RESULTS.md and PNG files.

Every number in them comes from a record; nothing is typed. FOLDER is DIR unless it is given.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.record import Record, read_records

ROLES = ("ours", "torch", "peer")


def render(folder: Path, out: Path) -> list[Path]:
    """Write RESULTS.md and the plots; returns what was written. ValueError if there are no records."""
    records = read_records(folder)
    if not records:
        raise ValueError(f"{folder}: holds no records; expected the --out folder of bench.suite")
    out.mkdir(parents=True, exist_ok=True)
    plots = {key: path for key, group in _by_operation(records).items() if (path := _plot(key, group, out))}
    written = out / "RESULTS.md"
    written.write_text(markdown(records, plots), encoding="utf-8")
    return [written, *plots.values()]


def markdown(records: Sequence[Record], plots: dict[tuple[str, str], Path] | None = None) -> str:
    """The whole report: conditions, then per operation its plot and one table per shape."""
    lines = ["# Measurements", "", "Made by `python -m bench.render` from the JSON records; do not edit.", ""]
    lines += _conditions(records)
    for key, group in _by_operation(records).items():
        lines += ["", f"## {key[0]}: {key[1]}", ""]
        if plots and key in plots:
            lines += [f"![{key[1]}]({plots[key].name})", ""]
        for case, rows in _by(group, lambda r: (r.case, r.dtype)).items():
            lines += [f"### {case[0].replace(',', ', ')}, {case[1]}", "", *table(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def table(records: Sequence[Record]) -> list[str]:
    """One shape: a row per implementation, fastest first, then those that were not measured with the reason."""
    measured = sorted((r for r in records if r.median_ms is not None), key=lambda r: r.median_ms or 0.0)
    ours = next((r.median_ms for r in measured if r.implementation == "ours"), None)
    names = sorted({name for record in measured for name in record.errors})
    header = ["implementation", "ms", "spread", "× floor", "rate", "MiB above inputs", "time / ours", *names]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)] if measured else []
    for record in measured:
        cells = [
            f"**{record.implementation}**" if record.role == "ours" else record.implementation,
            _number(record.median_ms),
            f"{_number(record.p20_ms)}–{_number(record.p80_ms)}",
            _number(record.ratio_to_floor),
            _rate(record),
            "" if record.peak_bytes is None else _number(record.peak_bytes / 2**20),
            "" if ours is None else _number((record.median_ms or 0.0) / ours),
            *("" if name not in record.errors else f"{record.errors[name]:.1e}" for name in names),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, *_remarks(records, measured)]


def _remarks(records: Sequence[Record], measured: Sequence[Record]) -> list[str]:
    """What the table's columns do not hold: the floor, notes, promises, and what is missing and why."""
    lines = [""]
    for floor in sorted({(r.floor, _number(r.floor_ms)) for r in measured[:1] if r.floor}):
        lines.append(f"- floor: {floor[0]}, {floor[1]} ms")
    for name, value in sorted({pair for record in records for pair in record.extra.items()}):
        lines.append(f"- {name}: {_number(value)}")
    lines += [f"- {r.implementation}: {r.note}" for r in measured if r.note]
    lines += [f"- {r.implementation}: {r.status}, {r.reason}" for r in records if r.status != "ok"]
    return lines if len(lines) > 1 else []


def _conditions(records: Iterable[Record]) -> list[str]:
    """Device, versions and commit; one paragraph for each set of conditions that occurs."""
    lines, seen = [], []
    for record in records:
        found = record.environment
        if found in seen:
            continue
        seen.append(found)
        versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
        threads = f", {found['threads']} threads" if found.get("device_type") == "cpu" else ""
        cuda = f", CUDA {found['cuda']}" if found.get("cuda") else ""
        lines.append(
            f"- {found.get('device', 'unknown device')}{threads}{cuda}, Python {found.get('python')}; {versions}; "
            f"commit {found.get('commit')}"
        )
    methods = sorted({r.memory_method for r in records if r.memory_method})
    return [*lines, *(f"- memory: {method}" for method in methods)]


def _plot(key: tuple[str, str], records: Sequence[Record], out: Path) -> Path | None:
    """Time and memory over the first numeric part of the shape that varies, a column per rest of the shape."""
    measured = [r for r in records if r.median_ms is not None]
    axis = _varying(measured)
    if axis is None:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _by(measured, lambda r: ", ".join(f"{k} {v}" for k, v in r.shape.items() if k not in (axis, "B")))
    panels = {name: rows for name, rows in panels.items() if len({r.shape[axis] for r in rows}) > 1}
    if not panels:
        return None
    figure, axes = pyplot.subplots(2, len(panels), figsize=(4.2 * len(panels), 7), squeeze=False, sharex="col")
    names = sorted({r.implementation for r in measured}, key=lambda n: (n != "ours", n))
    colours = {name: f"C{index}" for index, name in enumerate(names)}
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
    figure.suptitle(f"{key[1]} ({measured[0].environment.get('device')}, {measured[0].dtype})", fontsize=10)
    figure.tight_layout()
    path = out / f"{key[0]}-{key[1]}.png"
    # No software version in the file: the same records give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _draw(axes: Any, records: Sequence[Record], axis: str, colours: dict[str, str], value: Any) -> None:
    for name, rows in _by(records, lambda r: r.implementation).items():
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


def _varying(records: Sequence[Record]) -> str | None:
    for name in ("N", "R", "P"):
        if len({r.shape[name] for r in records if isinstance(r.shape.get(name), int)}) > 1:
            return name
    return None


def _by_operation(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    return _by(records, lambda r: (r.part, r.op))


def _by(records: Iterable[Record], key: Any) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in sorted(records, key=_order):
        groups[key(record)].append(record)
    return dict(groups)


def _order(record: Record) -> tuple[Any, ...]:
    """Parts and operations by name, shapes by their numbers, our rows first."""
    shape = tuple((isinstance(v, int), v if isinstance(v, int) else 0, str(v)) for v in record.shape.values())
    return record.part, record.op, shape, record.dtype, ROLES.index(record.role), record.implementation


def _rate(record: Record) -> str:
    if record.tflops_per_s is not None:
        small = record.tflops_per_s < 1
        return f"{_number(record.tflops_per_s * (1000 if small else 1))} {'GFLOP' if small else 'TFLOP'}/s"
    return "" if record.gbytes_per_s is None else f"{_number(record.gbytes_per_s)} GB/s"


def _number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.render", description=__doc__)
    parser.add_argument("folder", type=Path, help="the --out folder of bench.suite")
    parser.add_argument("--out", type=Path, help="where to write; the records' folder if not given")
    args = parser.parse_args(arguments)
    for path in render(args.folder, args.out or args.folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
