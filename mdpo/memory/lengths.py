"""How long the examples are: counted where the data is there, drawn from two numbers where it is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from mdpo.packing.branches import MDPO_BRANCHES, pictures_of

# Spread of the logarithm of a response's length. What bench/inputs/lengths.py takes for realistic: the middle half
# of the responses lies between 2/3 and 3/2 of the median.
SIGMA = 0.6
_DRAWN = 1024
# Steps from one pair's quantile to the next: coprime to the count, and near its golden section, so that every quantile
# of one response meets every one of another.
_STRIDES = {"chosen": 1, "rejected": 617, "contrast": 391}


class Picture(NamedTuple):
    """A picture as the processor hands it to the model. tokens: its placeholders. patches: what the tower makes of it
    at first; 0 where unknown. pixels: numbers in it."""

    tokens: int
    patches: int
    pixels: int


class Data(NamedTuple):
    """What was counted of the rows. lengths: tokens of each example as it is laid out. scored: of these, in answers;
    None where unknown. picture: the largest; None where there is none, or unknown."""

    lengths: Sequence[int]
    scored: Sequence[int] | None = None
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """What of the data decides the memory.

    Attributes:
        packed: Tokens of each example as it is laid out: a packed row, or its branches, all filled up to the longest.
        images: Of one example, the rejected ones included; where branches are read separately, as often as they are
            read.
        scored_share: At most this share of a row's tokens is scored by the head. Image tokens never are; the rest of
            the prompt counts as if it were, which makes the head's few bytes a little too many.
        branches: How many sequences an example has beside each other; 1 in a packed row.
        separate: Whether they are filled up.
    """

    packed: tuple[int, ...]
    images: int
    scored_share: float
    branches: int = 1
    separate: bool = False

    @property
    def longest(self) -> int:
        return max(self.packed)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that the attention sees as one."""
        return -(-self.longest // self.branches)


def from_lengths(
    packed: Sequence[int],
    *,
    images: int,
    image_tokens: int,
    branches: int = 1,
    separate: bool = False,
    scored: Sequence[int] | None = None,
) -> Examples:
    """Examples by their lengths.

    Args:
        packed: tokens of each example as it is laid out.
        images, branches, separate: as in ``Examples``.
        image_tokens: of one image; 0 where unknown.
        scored: tokens of each example that the head scores, where that is known; else all but the images'.
    """
    if scored is None:
        scored = [max(length - images * image_tokens, 1) for length in packed]
    share = max(part / length for part, length in zip(scored, packed, strict=True))
    return Examples(tuple(packed), images, share, branches, separate)


def log_normal(
    *,
    prompt_tokens: int,
    response_tokens_median: int,
    response_tokens_max: int,
    image_tokens: int,
    branches: Sequence[str] = MDPO_BRANCHES,
    with_images: bool = True,
    separate: bool = False,
) -> Examples:
    """Examples with a prompt of ``prompt_tokens`` (its image included) and log-normal responses, cut at their maximum.

    Quantiles instead of a random draw. Responses are paired without correlation. The longest of all of them at once is
    among the examples, because the plan has to hold for it.

    Args:
        prompt_tokens, response_tokens_median, response_tokens_max, image_tokens: in tokens.
        branches: the responses and pictures that are read.
        with_images: false where the prompts have none.
        separate: whether each branch is a sequence of its own, all of them filled up to an example's longest.
    """
    normal = NormalDist(math.log(response_tokens_median), SIGMA)
    responses = [
        min(max(1, round(math.exp(normal.inv_cdf((index + 0.5) / _DRAWN)))), response_tokens_max)
        for index in range(_DRAWN)
    ]
    pictures = pictures_of(branches)
    without = max(prompt_tokens - image_tokens, 1)
    prompts = {picture: without if picture == "none" else prompt_tokens for picture in pictures}
    read = [(prompts[picture], branch.response) for picture, readers in pictures.items() for branch in readers]
    # Of each pair the answers by name, and the longest of all of them at once.
    answers = [{name: responses[index * by % _DRAWN] for name, by in _STRIDES.items()} for index in range(_DRAWN)]
    answers.append(dict.fromkeys(_STRIDES, response_tokens_max))
    if separate:
        packed = [len(read) * max(prompt + pair[name] for prompt, name in read) for pair in answers]
    else:
        packed = [sum(prompts.values()) + sum(pair[name] for _, name in read) for pair in answers]
    images = sum(len(readers) if separate else 1 for picture, readers in pictures.items() if picture != "none")
    return from_lengths(
        packed,
        images=images if with_images else 0,
        image_tokens=image_tokens,
        branches=len(read) if separate else 1,
        separate=separate,
    )
