"""How much of a caption is there and how much of it is made up, counted exactly: every digit in a scene is known.

Definitions follow CHAIR as Object HalBench takes it (Rohrbach et al. 2018; RLHF-V, Yu et al. 2024), each object once a
caption, and AMBER (Wang et al. 2023), with digits for objects. All are percentages over a whole set of captions, counts
summed before dividing. Rohrbach's own count of every mention stands beside it: there a caption that repeats itself to
the length limit weighs as much as ten others.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.digits.world import PARTNER, mentioned


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    chair_i: float
    """Of the digits named, each once a caption, those that the picture does not show."""
    chair_i_mentions: float
    """The same over all mentions."""
    chair_s: float
    """Of the captions, those that name at least one digit that the picture does not show."""
    cover: float
    """Of the digits shown, those named."""
    partner_rate: float
    """Of the digits named, each once a caption, those that the picture does not show while it shows their partner
    (AMBER's "cognition")."""


def hallucinated(text: str, digits: Sequence[int]) -> list[int]:
    """The mentions of digits that a caption's picture does not show, each as often as it is named."""
    return [digit for digit in mentioned(text) if digit not in digits]


class Chair(NamedTuple):
    """Counts over a whole set of captions, each with the things that its picture shows."""

    captions: int
    mentions: int
    false_mentions: int
    named: int
    """Things named, each once a caption."""
    false: int
    false_captions: int
    shown: int
    covered: int

    @property
    def chair_i(self) -> float:
        return percent(self.false, self.named)

    @property
    def chair_s(self) -> float:
        return percent(self.false_captions, self.captions)

    @property
    def cover(self) -> float:
        return percent(self.covered, self.shown)


def chair(named: Sequence[Sequence[Hashable]], shown: Sequence[Sequence[Hashable]]) -> Chair:
    """Counts the things that each caption names, with repetitions, against those that its picture shows."""
    counts = []
    for mentions, truth in zip(named, shown, strict=True):
        false = [thing for thing in mentions if thing not in truth]
        right = set(mentions) & set(truth)
        counts.append(
            (1, len(mentions), len(false), len(set(mentions)), len(set(false)), bool(false), len(truth), len(right))
        )
    return Chair(*map(sum, zip(*counts, strict=True)))


def score(captions: Sequence[str], digits: Sequence[Sequence[int]]) -> Scores:
    """Score one caption per picture against the digits that the picture shows."""
    counts = chair([mentioned(text) for text in captions], digits)
    partners = sum(
        PARTNER[digit] in truth
        for text, truth in zip(captions, digits, strict=True)
        for digit in set(hallucinated(text, truth))
    )
    return Scores(
        chair_i=counts.chair_i,
        chair_i_mentions=percent(counts.false_mentions, counts.mentions),
        chair_s=counts.chair_s,
        cover=counts.cover,
        partner_rate=percent(partners, counts.named),
    )


def percent(part: float, whole: float) -> float:
    """0 where there is nothing to take a part of."""
    return 100.0 * part / whole if whole else 0.0
