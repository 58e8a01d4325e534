"""Scores by seed, base and row, and what of them is compared."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bench.scenes.rows import SECTIONS
from bench.study.statistics import Interval, interval

COMPARED = {"chair_s": "CHAIR_s", "looking": "looking"}
"""What two rows are compared by."""
CUT = "cut tuned"
"""Stands for a row in a comparison: the tuned model's captions, cut until they cover as much as the row's."""


class Comparison(NamedTuple):
    """One row less another of the same base, by a score. other: a row's name, or CUT."""

    base: str
    one: str
    other: str
    score: str


class Table:
    """What results.json holds."""

    def __init__(self, seeds: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> None:
        self.seeds = seeds

    def by_seed(self, base: str, row: str, score: str) -> dict[str, float]:
        """The score of each seed that has it."""
        found = {seed: bases.get(base, {}).get(row, {}).get(score) for seed, bases in self.seeds.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def level(self, base: str, row: str, score: str) -> Interval | None:
        """The mean over seeds, None where no seed has it."""
        return _over(self.by_seed(base, row, score).values())

    def gaps(self, comparison: Comparison) -> dict[str, float]:
        """The difference in each seed that has both."""
        base, one, other, score = comparison
        less = self.by_seed(base, one, f"cut_{score}") if other == CUT else self.by_seed(base, other, score)
        return {seed: value - less[seed] for seed, value in self.by_seed(base, one, score).items() if seed in less}

    def gap(self, comparison: Comparison, tests: int = 1) -> Interval | None:
        """The mean difference, paired by seed. tests: at how many at once its interval holds."""
        return _over(self.gaps(comparison).values(), tests)

    def other_gap(self, one: Comparison, other: Comparison, tests: int = 1) -> Interval | None:
        """How much larger one difference is than another, paired by seed."""
        less = self.gaps(other)
        return _over((gap - less[seed] for seed, gap in self.gaps(one).items() if seed in less), tests)


def _over(values: Iterable[float], tests: int = 1) -> Interval | None:
    found = list(values)
    return interval(found, confidence=1 - 0.05 / tests) if found else None


def of_sections() -> Iterator[Comparison]:
    """What the tables compare: each row with some of the others, and with the tuned model's cut captions."""
    for section in SECTIONS:
        for name in section.rows:
            for other in section.against(name):
                yield from (Comparison(section.base, name, other, score) for score in COMPARED)
            yield Comparison(section.base, name, CUT, "chair_s")


def cell(value: Interval | None, *, digits: int = 1, signed: bool = False, sure: bool = False) -> str:
    """A mean with half of its interval, – for none. sure: in bold."""
    if value is None:
        return "–"
    if math.isnan(value.half):
        return f"{value.mean:{'+' if signed else ''}.{digits}f}"
    text = value.text(digits, signed=signed)
    return f"**{text}**" if sure else text


def head(first: str, columns: Iterable[str]) -> list[str]:
    """The first two lines of a table."""
    names = [first, *columns]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
