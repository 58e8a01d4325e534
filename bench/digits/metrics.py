"""How much of a caption is there and how much of it is made up, counted exactly: every digit in a scene is known.

Definitions follow CHAIR as Object HalBench takes it (Rohrbach et al. 2018; RLHF-V, Yu et al. 2024), each object once a
caption, and AMBER (Wang et al. 2023), with digits for objects. All are percentages over a whole set of captions, counts
summed before dividing. Rohrbach's own count of every mention stands beside it: there a caption that repeats itself to
the length limit weighs as much as ten others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


def score(captions: Sequence[str], digits: Sequence[Sequence[int]]) -> Scores:
    """Score one caption per picture against the digits that the picture shows."""
    named = wrong = mentions = wrong_mentions = partners = wrong_captions = shown = covered = 0
    for text, truth in zip(captions, digits, strict=True):
        invented = hallucinated(text, truth)
        mentions += len(mentioned(text))
        wrong_mentions += len(invented)
        named += len(set(mentioned(text)))
        wrong += len(set(invented))
        partners += sum(PARTNER[digit] in truth for digit in set(invented))
        wrong_captions += bool(invented)
        shown += len(truth)
        covered += len(set(mentioned(text)) & set(truth))
    return Scores(
        chair_i=_percent(wrong, named),
        chair_i_mentions=_percent(wrong_mentions, mentions),
        chair_s=_percent(wrong_captions, len(captions)),
        cover=_percent(covered, shown),
        partner_rate=_percent(partners, named),
    )


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0
