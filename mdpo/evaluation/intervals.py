"""How sure a figure is: bootstrap over responses, and Wilson's interval for a share."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAMPLES = 2000
_Z = 1.959963984540054  # 97.5% quantile of the normal distribution


class Interval(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


def bootstrap_ratio(
    tops: Sequence[float], bottoms: Sequence[float], *, scale: float = 1.0, samples: int = SAMPLES, seed: int = 0
) -> Interval | None:
    """Percentile interval of scale · Σ tops / Σ bottoms, responses being drawn anew; None where that is undefined.

    tops, bottoms: a number per response. A draw whose bottoms sum to 0 says nothing, and is left out.
    """
    values = _drawn(tops, bottoms, scale, samples, seed)
    return _percentiles(values)


def bootstrap_difference(
    before: tuple[Sequence[float], Sequence[float]],
    after: tuple[Sequence[float], Sequence[float]],
    *,
    scale: float = 1.0,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of after − before, each (tops, bottoms) over the *same* responses in the same order.

    Both are drawn together: what makes a question hard is common to them, and does not blur the difference.
    """
    if len(before[0]) != len(after[0]):
        raise ValueError(f"paired responses differ in number: {len(before[0])} and {len(after[0])}")
    first = _drawn(*before, scale, samples, seed)
    return _percentiles(_drawn(*after, scale, samples, seed) - first)


def _drawn(tops: Sequence[float], bottoms: Sequence[float], scale: float, samples: int, seed: int) -> np.ndarray:
    """(samples,) ratios; NaN where a draw has nothing to divide by."""
    table = np.stack([np.asarray(tops, float), np.asarray(bottoms, float)], axis=1)  # (responses, 2)
    count = len(table)
    if not count:
        return np.full(samples, np.nan)
    generator = np.random.default_rng(seed)
    sums = np.empty((samples, 2))
    # In blocks, so that 2,000 draws of 1,000 responses need not be held at once.
    for start in range(0, samples, 200):
        chosen = generator.integers(count, size=(min(200, samples - start), count))
        sums[start : start + len(chosen)] = table[chosen].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[:, 1] != 0, scale * sums[:, 0] / sums[:, 1], np.nan)


def _percentiles(values: np.ndarray) -> Interval | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def wilson(successes: float, trials: int) -> Interval:
    """Wilson's score interval of a share. successes: may be a fraction, where a trial is the mean of several votes.

    Raises ValueError unless 0 ≤ successes ≤ trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    share, z2 = successes / trials, _Z * _Z
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))
