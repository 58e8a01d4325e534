"""Runs side by side, benchmark by benchmark: values, intervals, and what changed against the first run."""

from collections.abc import Sequence
from dataclasses import dataclass

from mdpo.evaluation.intervals import Interval, bootstrap_difference, bootstrap_ratio
from mdpo.evaluation.results import Metric, Response, Result

from .runs import Run


@dataclass(frozen=True, slots=True)
class Change:
    """A run's figure less the first run's. interval: over the same responses of both, drawn together.

    verdict: "no clear change" where the interval holds 0, else "better" or "worse", and "changed" of a figure that is
        neither.
    """

    value: float
    interval: Interval
    verdict: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one run. value: None where the run lacks it or it is undefined. change: None for the first run."""

    value: float | None
    interval: Interval | None
    change: Change | None


@dataclass(frozen=True, slots=True)
class Row:
    """One metric over the runs."""

    metric: Metric
    cells: list[Cell]

    @property
    def digits(self) -> int:
        """As the official programs print: a digit of a percentage, two of a rating."""
        return 1 if self.metric.unit == "%" else 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """One benchmark in one variant. results: a run's result, or None. notes: what stands in the way of comparing."""

    benchmark: str
    variant: str
    runs: list[str]
    results: list[Result | None]
    rows: list[Row]
    notes: list[str]

    @property
    def title(self) -> str:
        return f"{self.benchmark} ({self.variant})"

    def groups(self) -> list[str]:
        """The question types, in order; empty where the benchmark has none."""
        responses = [response for result in self.results if result and result.grouped for response in result.responses]
        return list(dict.fromkeys(response.group for response in responses if response.group))


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """A comparison for every benchmark and variant that any of the runs has. Variants are never mixed."""
    keys = dict.fromkeys(key for run in runs for key in run.results)
    return [_compare(key, runs) for key in keys]


def _compare(key: tuple[str, str], runs: Sequence[Run]) -> Comparison:
    results = [run.results.get(key) for run in runs]
    present = [result for result in results if result]
    warnings = dict.fromkeys(text for result in present for text in result.warnings)
    notes = [_said_by(text, runs, results) for text in warnings]
    if results[0] and any(not _paired(results[0], result) for result in present):
        notes.append("the runs answered different questions, so no difference between them is given")
    settings = {str(result.settings.get("settings", {}).get(name)) for result in present for name in ("num_beams",)}
    if len(settings - {"None"}) > 1:
        notes.append(f"the runs' answers were decoded differently (beams: {', '.join(sorted(settings))})")
    names = [metric.name for metric in present[0].metrics]
    return Comparison(*key, [run.name for run in runs], results, [_row(name, results) for name in names], notes)


def _said_by(text: str, runs: Sequence[Run], results: Sequence[Result | None]) -> str:
    """A warning with the names of the runs that it is about; without, where it is about all."""
    names = [run.name for run, result in zip(runs, results, strict=True) if result and text in result.warnings]
    return text if len(names) == len(runs) else f"{', '.join(names)}: {text}"


def _paired(first: Result, other: Result) -> bool:
    return [response.id for response in first.responses] == [response.id for response in other.responses]


def _row(name: str, results: Sequence[Result | None]) -> Row:
    found = [_metric(result, name) if result else None for result in results]
    metric = next(metric for metric in found if metric)
    cells = []
    for result, own in zip(results, found, strict=True):
        if result is None or own is None or own.value is None:
            cells.append(Cell(None, None, None))
            continue
        change = None
        first, before = results[0], found[0]
        if result is not first and first is not None and before is not None and before.value is not None:
            change = _change(before, first, own, result)
        cells.append(Cell(own.value, interval_of(own, result.responses), change))
    return Row(metric, cells)


def _metric(result: Result, name: str) -> Metric | None:
    return next((metric for metric in result.metrics if metric.name == name), None)


def interval_of(metric: Metric, responses: Sequence[Response]) -> Interval | None:
    """The metric's own interval, or one by bootstrap over the responses."""
    if metric.interval is not None:
        return Interval(*metric.interval)
    return bootstrap_ratio(*_sums(metric, responses), scale=metric.scale)


def _sums(metric: Metric, responses: Sequence[Response]) -> tuple[list[float], list[float]]:
    numbers = [response.numbers for response in responses]
    return [row[metric.top] for row in numbers], [row[metric.bottom] for row in numbers]


def _change(before: Metric, first: Result, after: Metric, result: Result) -> Change | None:
    if not _paired(first, result) or before.value is None or after.value is None:
        return None
    interval = bootstrap_difference(_sums(before, first.responses), _sums(after, result.responses), scale=after.scale)
    if interval is None:
        return None
    if interval.low <= 0 <= interval.high:
        verdict = "no clear change"
    elif after.better == "neither":
        verdict = "changed"
    else:
        verdict = "better" if (interval.low > 0) == (after.better == "higher") else "worse"
    return Change(after.value - before.value, interval, verdict)


def by_group(result: Result, group: str) -> tuple[float, Interval | None]:
    """(value, interval) of the result's grouped metric over the responses of one question type."""
    metric = _metric(result, result.grouped)
    assert metric is not None, f"{result.benchmark} names a metric {result.grouped!r} that it has not"
    responses = [response for response in result.responses if response.group == group]
    tops, bottoms = _sums(metric, responses)
    return metric.scale * sum(tops) / sum(bottoms), bootstrap_ratio(tops, bottoms, scale=metric.scale)
