"""Means over seeds and how far to trust them."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t


class Interval(NamedTuple):
    """A mean and half the width of its interval, by Student's t over seeds; nan for a single seed."""

    mean: float
    half: float

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half

    def text(self, digits: int = 1, *, signed: bool = False) -> str:
        return f"{self.mean:{'+' if signed else ''}.{digits}f} ± {self.half:.{digits}f}"


def interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Of a score's values, one a seed."""
    if len(values) < 2:
        return Interval(mean(values), float("nan"))
    return Interval(mean(values), t.ppf((1 + confidence) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5)


def difference(values: Sequence[float], others: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Of ``values`` − ``others``, paired: the same seed has the same data in both."""
    return interval([value - other for value, other in zip(values, others, strict=True)], confidence=confidence)
