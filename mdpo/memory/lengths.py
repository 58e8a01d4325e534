"""How long the examples are: counted where the data is there, drawn from two numbers where it is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from mdpo.packing.branches import MDPO_BRANCHES, pictures_of

# Spread of the logarithm of a response's length. What bench/plan.py takes for realistic: the middle half of the
# responses lies between 2/3 and 3/2 of the median.
SIGMA = 0.6
_DRAWN = 1024
# Steps from one pair's quantile to the next: coprime to the count, and near its golden section, so that every quantile of
# one response meets every one of another.
_STRIDES = {"chosen": 1, "rejected": 617, "contrast": 391}


@dataclass(frozen=True, slots=True)
class Examples:
    """packed: tokens of each example's packed row. images: of one example, the rejected ones included.

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
    *,
    prompt_tokens: int,
    response_tokens_median: int,
    response_tokens_max: int,
    image_tokens: int,
    branches: Sequence[str] = MDPO_BRANCHES,
    with_images: bool = True,
) -> Examples:
    """Examples with a prompt of ``prompt_tokens`` (its image included) and log-normal responses, cut at their maximum.

    branches: the responses and pictures that are packed. with_images: false where the prompts have none.

    Quantiles instead of a random draw. Responses are paired without correlation. The longest of all of them at once is among
    the examples, because the plan has to hold for it.
    """
    normal = NormalDist(math.log(response_tokens_median), SIGMA)
    responses = [
        min(max(1, round(math.exp(normal.inv_cdf((index + 0.5) / _DRAWN)))), response_tokens_max) for index in range(_DRAWN)
    ]
    pictures = pictures_of(branches)
    without = max(prompt_tokens - image_tokens, 1)
    prompts = sum(without if picture == "none" else prompt_tokens for picture in pictures)
    read = [branch.response for readers in pictures.values() for branch in readers]
    packed = [
        prompts + sum(responses[index * _STRIDES[response] % _DRAWN] for response in read) for index in range(_DRAWN)
    ]
    packed.append(prompts + len(read) * response_tokens_max)
    images = sum(picture != "none" for picture in pictures) if with_images else 0
    return from_lengths(packed, images=images, image_tokens=image_tokens)
