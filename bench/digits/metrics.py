"""How much of a caption is there and how much of it is made up, counted exactly: every digit in a scene is known.

Definitions follow CHAIR (Rohrbach et al. 2018) and AMBER (Wang et al. 2023), with digits for objects. All are
percentages over a whole set of captions, counts summed before dividing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.digits.world import PARTNER, mentioned


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    chair_i: float
    """Of the digits named, those that the picture does not show."""
    chair_s: float
    """Of the captions, those that name at least one digit that the picture does not show."""
    cover: float
    """Of the digits shown, those named."""
    partner_rate: float
    """Of the digits named, those that the picture does not show while it shows their partner (AMBER's "cognition")."""


def hallucinated(text: str, digits: Sequence[int]) -> list[int]:
    """The digits that a caption names and its picture does not show, each as often as it is named."""
    return [digit for digit in mentioned(text) if digit not in digits]


def score(captions: Sequence[str], digits: Sequence[Sequence[int]]) -> Scores:
    """Score one caption per picture against the digits that the picture shows."""
    named = wrong = partners = wrong_captions = shown = covered = 0
    for text, truth in zip(captions, digits, strict=True):
        invented = hallucinated(text, truth)
        named += len(mentioned(text))
        wrong += len(invented)
        partners += sum(PARTNER[digit] in truth for digit in invented)
        wrong_captions += bool(invented)
        shown += len(truth)
        covered += len(set(mentioned(text)) & set(truth))
    return Scores(
        chair_i=_percent(wrong, named),
        chair_s=_percent(wrong_captions, len(captions)),
        cover=_percent(covered, shown),
        partner_rate=_percent(partners, named),
    )


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0
