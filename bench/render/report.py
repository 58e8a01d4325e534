"""The report: RESULTS.md, its tables made of the records alone, and its pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.blocks import ROOT
from bench.render.plots import by, plot
from bench.render.targets import RATIOS, TARGET_CARDS, Ratio, columns
from bench.suite.cards import file_word
from bench.suite.parts import PARTS
from bench.suite.record import Record
from bench.suite.shelf import Shelf, read_records
from mdpo.shown import markdown as shown  # reasons and notes quote what libraries and drivers say

COMMITTED = ROOT / "bench" / "results"
FILES = (*PARTS, "profile", "session")
"""Names of a device's files there."""


def record_paths(folder: Path) -> list[Path]:
    """The files of a report: all under `folder`; of bench/results those of devices, since a study's lie there too."""
    if folder.resolve() != COMMITTED:
        return Shelf(folder).files()
    return sorted(path for name in FILES for path in COMMITTED.glob(f"*/{name}.json"))


def records_below(folder: Path) -> list[Record]:
    """Those of a report. Raises ValueError, naming the file, where one holds none."""
    return [record for path in record_paths(folder) for record in read_records(path)]


def render(folder: Path, out: Path) -> list[Path]:
    """Write RESULTS.md and the plots into `out`; returns what was written. ValueError if there are no records."""
    records = records_below(folder)
    if not records:
        raise ValueError(f"{folder}: holds no records; expected the --out folder of bench.suite")
    return write_report(records, out)


def write_report(records: Sequence[Record], out: Path) -> list[Path]:
    """RESULTS.md and the plots of `records`, below `out`; returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    plots = [path for group in by(records, _operation).values() if plot(group, path := out / _picture(group[0]))]
    written = out / "RESULTS.md"
    written.write_text(markdown(records, {path.relative_to(out).as_posix() for path in plots}), encoding="utf-8")
    return [written, *plots]


def _operation(record: Record) -> tuple[str, str, str]:
    return str(record.environment.get("device")), record.part, record.op


def _picture(record: Record) -> str:
    words = f"{record.environment.get('device')} {record.part} {record.op}"
    return f"plots/{file_word(words)}.png"


def markdown(records: Sequence[Record], plots: Iterable[str] = ()) -> str:
    """The whole report: the ratios; then per device its conditions, and per operation its plot and a table per shape.

    plots: paths of the pictures there are, relative to the report.
    """
    lines = ["# Measurements", "", "Made by `python -m bench.render` from the JSON records; do not edit.", ""]
    lines += ratios(records)
    for device, of_device in by(records, lambda r: str(r.environment.get("device"))).items():
        lines += ["", f"## {device}", "", *_conditions(of_device)]
        for group in by(of_device, _operation).values():
            lines += ["", f"### {group[0].part}: {group[0].op}", ""]
            if (picture := _picture(group[0])) in plots:
                lines += [f"![{group[0].op}]({picture})", ""]
            for case, rows in by(group, lambda r: (r.case, r.dtype)).items():
                lines += [f"#### {case[0].replace(',', ', ')}, {case[1]}", "", *table(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def ratios(records: Sequence[Record]) -> list[str]:
    """A table of every named ratio: a column per device, and what the cards with targets have to reach."""
    devices = columns(records) | {
        name: rows
        for name, rows in by(records, lambda r: str(r.environment.get("device"))).items()
        if rows[0].environment.get("device_type") != "cuda"
    }
    lines = ["## Ratios", "", "Speed: the other's time over ours. Memory: ours over the other's.", ""]
    header = ["ours: against", f"target ({' and '.join(TARGET_CARDS)})", *devices]
    lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for ratio in RATIOS:
        cells = [_ratio_cell(ratio, rows, name in TARGET_CARDS) for name, rows in devices.items()]
        lines.append(f"| {' | '.join([ratio.name, ratio.target_text, *cells])} |")
    return lines


def _ratio_cell(ratio: Ratio, records: Sequence[Record], judged: bool) -> str:
    """A number per model, and on a card with targets whether it meets them."""
    verdicts = {True: ", met", False: ", missed", None: ""}
    found = [
        f"{model} {value:.2f}{verdicts[ratio.met(value) if judged else None]}"
        for model, value in ratio.of(records).items()
    ]
    return "; ".join(found) or "not measured yet"


def table(records: Sequence[Record]) -> list[str]:
    """One shape: a row per implementation, fastest first (of a profile the largest share), then those that were not
    measured with the reason."""
    if records[0].part == "session":
        return _session_table(records)
    measured = sorted((r for r in records if r.median_ms is not None), key=lambda r: r.median_ms or 0.0)
    if records[0].part == "profile":
        measured.reverse()
    mine = [r for r in measured if r.role == "ours"]
    ours = next((r.median_ms for r in mine if r.implementation == "ours"), mine[0].median_ms if mine else None)
    names = sorted({name for record in measured for name in record.errors})
    rates = list(dict.fromkeys(name for record in measured for name in record.rates))
    header = ["implementation", "ms", "spread", "× floor", "rate", "MiB above inputs", "time / ours", *rates, *names]
    compared = ours is not None and len(mine) < len(measured)
    rows = []
    for record in measured:
        spread = f"{number(record.p20_ms)}–{number(record.p80_ms)}"
        relative = number((record.median_ms or 0.0) / ours) if ours and compared else ""
        rows.append(
            [
                f"**{record.implementation}**" if record.role == "ours" and compared else record.implementation,
                number(record.median_ms),
                "" if record.p20_ms is None else spread,
                number(record.ratio_to_floor),
                _rate(record),
                "" if record.peak_bytes is None else number(record.peak_bytes / 2**20),
                relative,
                *(number(record.rates.get(name)) for name in rates),
                *("" if name not in record.errors else f"{record.errors[name]:.1e}" for name in names),
            ]
        )
    lines = []
    if rows:
        filled = [index for index in range(len(header)) if any(row[index] for row in rows)]
        table = [header, ["---"] * len(header), *rows]
        lines = [f"| {' | '.join(row[index] for index in filled)} |" for row in table]
    return [*lines, *_remarks(records, measured)]


def _session_table(records: Sequence[Record]) -> list[str]:
    """What became of a session's stages, or what its first contact with the device found."""
    lines = ["| | outcome | s | found |", "|---|---|---|---|"]
    for record in records:
        numbers = [f"{number(value)} {unit}" for unit, value in record.rates.items() if unit != "seconds"]
        found = "; ".join(text for text in (shown(record.reason), shown(record.note), ", ".join(numbers)) if text)
        lines.append(f"| {record.implementation} | {record.status} | {number(record.rates['seconds'])} | {found} |")
    return lines


def _remarks(records: Sequence[Record], measured: Sequence[Record]) -> list[str]:
    """What the table's columns do not hold: the floor, notes, promises, and what is missing and why."""
    lines = [""]
    for floor in sorted({(r.floor, number(r.floor_ms)) for r in measured[:1] if r.floor}):
        lines.append(f"- floor: {shown(floor[0])}, {floor[1]} ms")
    for name, value in sorted({pair for record in records for pair in record.extra.items()}):
        lines.append(f"- {name}: {number(value)}")
    lines += [f"- {r.implementation}: {shown(r.note)}" for r in measured if r.note]
    lines += [f"- {r.implementation}: {r.status}, {shown(r.reason)}" for r in records if r.status != "ok"]
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
    return [*lines, *(f"- memory: {shown(method)}" for method in methods)]


def _rate(record: Record) -> str:
    if record.tflops_per_s is not None:
        small = record.tflops_per_s < 1
        return f"{number(record.tflops_per_s * (1000 if small else 1))} {'GFLOP' if small else 'TFLOP'}/s"
    return "" if record.gbytes_per_s is None else f"{number(record.gbytes_per_s)} GB/s"


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
