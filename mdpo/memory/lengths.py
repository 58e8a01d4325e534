"""How long the examples are: counted where the data is there, drawn from two numbers where it is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

# Spread of the logarithm of a response's length. What bench/plan.py takes for realistic: the middle half of the
# responses lies between 2/3 and 3/2 of the median.
SIGMA = 0.6
_DRAWN = 1024


@dataclass(frozen=True, slots=True)
class Examples:
    """packed: tokens of each example's packed row. images: of one example, the rejected image included.

    scored_share: at most this share of a row's tokens is scored by the head. Image tokens never are; the rest of the
    prompt counts as if it were, which makes the head's few bytes a little too many.
    """

    packed: tuple[int, ...]
    images: int
    scored_share: float

    @property
    def longest(self) -> int:
        return max(self.packed)


def from_lengths(packed: Sequence[int], *, images: int, image_tokens: int) -> Examples:
    """packed: of each example. image_tokens: of one image, 0 where unknown. All in tokens."""
    scored = (max(length - images * image_tokens, 1) / length for length in packed)
    return Examples(tuple(packed), images, max(scored))


def log_normal(
    *, prompt_tokens: int, response_tokens_median: int, response_tokens_max: int, images: int, image_tokens: int
) -> Examples:
    """Examples with a prompt of ``prompt_tokens`` (its image included) and log-normal responses, cut at their maximum.

    Quantiles instead of a random draw. Chosen and rejected are paired without correlation. The longest response of
    both at once is among them, because the plan has to hold for it.
    """
    normal = NormalDist(math.log(response_tokens_median), SIGMA)
    responses = [
        min(max(1, round(math.exp(normal.inv_cdf((index + 0.5) / _DRAWN)))), response_tokens_max) for index in range(_DRAWN)
    ]
    stride = 617  # coprime to the count, and near its golden section: every quantile meets every other
    branches = 2 if images > 1 else 1
    packed = [
        branches * (prompt_tokens + chosen) + responses[index * stride % _DRAWN] for index, chosen in enumerate(responses)
    ]
    packed.append(branches * (prompt_tokens + response_tokens_max) + response_tokens_max)
    return from_lengths(packed, images=images, image_tokens=image_tokens)
