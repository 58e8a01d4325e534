"""What an evaluation writes and a report reads: figures with the name of their variant, and the counts behind them.

Every metric is a ratio of two sums over responses, so that a reader can draw responses anew and say how sure it is.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.shown import shown

from .files import as_json, read_json, write_json

SCHEMA = "mdpo-result-1"
_SAID = {"lower": "lower is better; ", "higher": "higher is better; ", "neither": ""}


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. value: None where it is undefined. unit: "%", or "" for a plain number. better: lower, higher or
    neither.

    top, bottom: names of ``Response.numbers``: value ≈ scale · Σ top / Σ bottom; official programs add a grain of salt.
    definition: a sentence for the reader. interval: 95%, in the value's unit, where the benchmark knows a better one
    than drawing responses anew.
    """

    name: str
    value: float | None
    unit: str
    better: str
    top: str
    bottom: str
    scale: float
    definition: str
    interval: list[float] | None = None

    @classmethod
    def of(cls, name: str, value: float, better: str, ratio: str, definition: str, scale: float = 100.0) -> "Metric":
        """ratio: "top/bottom". A NaN becomes None; a scale of 100 a percentage."""
        top, _, bottom = ratio.partition("/")
        unit = "%" if scale == 100.0 else ""
        return cls(name, None if math.isnan(value) else value, unit, better, top, bottom, scale, definition)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. numbers: what the metrics' sums are made of. marked: words of the text that are not in the image.

    group: the question's type, where the benchmark has types. note: the judge's words.
    """

    id: str
    text: str
    numbers: dict[str, float]
    question: str = ""
    marked: list[str] = field(default_factory=list)
    group: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A benchmark's result. variant: whose algorithm, said with every figure. warnings: why it may not be comparable.

    counts: of responses, and of what was missing or unparsed. grouped: the metric that is shown by ``Response.group``.
    settings: how the answers were generated; judge: who judged. Both are empty where nobody said.
    """

    benchmark: str
    variant: str
    metrics: list[Metric]
    responses: list[Response]
    counts: dict[str, int]
    warnings: list[str] = field(default_factory=list)
    grouped: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        write_json(path, {"schema": SCHEMA} | dataclasses.asdict(self))

    def table(self) -> str:
        """For the terminal: a line per figure, then what to know of them."""
        lines = [f"{self.benchmark} ({self.variant}), {len(self.responses)} responses"]
        for metric in self.metrics:
            value = "undefined: nothing to divide by" if metric.value is None else f"{metric.value:.2f}{metric.unit}"
            lines.append(f"  {metric.name:<24}{value:>9}   {_SAID[metric.better]}{metric.definition}")
            if metric.interval is not None:
                lines.append("  {:<24}{:>9}   95% interval {:.1f} to {:.1f}".format("", "", *metric.interval))
        return "\n".join(map(shown, [*lines, *(f"  note: {warning}" for warning in self.warnings)]))


def result_mark(benchmark: str) -> bytes:
    """What a file starts with that ``Result.write`` wrote for a benchmark."""
    return as_json({"schema": SCHEMA, "benchmark": benchmark}).removesuffix("\n}\n").encode()


def is_result(content: Any) -> bool:
    """Whether parsed JSON is what ``Result.write`` wrote."""
    return isinstance(content, Mapping) and content.get("schema") == SCHEMA


def read_result(path: str | Path) -> Result:
    """Raises InputError where the file is not a result."""
    content = read_json(path)
    if not is_result(content):
        raise InputError(f"{path} is not a result of mdpo evaluate")
    content = {name: value for name, value in content.items() if name != "schema"}
    try:
        content["metrics"] = [_typed(Metric(**metric)) for metric in content["metrics"]]
        content["responses"] = [_typed(Response(**response)) for response in content["responses"]]
        result = _typed(Result(**content))
        _check_metrics(result)
        return result
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a damaged result: {error}; evaluate again") from error


def _typed(record: Any) -> Any:
    """The dataclass instance. Raises TypeError where a field of it is not what its annotation says."""
    for name, kind in typing.get_type_hints(type(record)).items():
        if not _is(getattr(record, name), kind):
            raise TypeError(f"{name} of a {type(record).__name__.lower()} is not {kind}")
    return record


def _is(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_is(entry, inner[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(entry, inner[1]) for entry in value.values())
    if inner:  # X | None
        return any(_is(value, one) for one in inner)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _check_metrics(result: Result) -> None:
    """Raises ValueError where a figure cannot be shown, or its sums cannot be made."""
    if not result.metrics:
        raise ValueError("it has no metrics")
    for metric in result.metrics:
        if metric.better not in _SAID or metric.interval is not None and len(metric.interval) != 2:
            raise ValueError(f"the metric {metric.name!r} is not whole")
        lacking = [
            r.id
            for r in result.responses
            if metric.interval is None and not {metric.top, metric.bottom} <= r.numbers.keys()
        ]
        if lacking:
            raise ValueError(f"the response {lacking[0]!r} has no {metric.top} or no {metric.bottom}")
