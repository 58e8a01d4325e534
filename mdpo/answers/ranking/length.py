"""Whether scores reward length, and what is left of them without it.

All of it within questions: scores and lengths are taken as differences from their question's mean, so that questions
that ask for long answers do not look like a preference for them. A length is a number of tokens where every scored
answer has one, else of words.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..records import Scored, length_unit


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How scores go with lengths.

    unit: of lengths, "tokens" or "words".
    correlation: Pearson's, from -1 to 1; None where no question has two answers whose scores and lengths differ.
    slope: least squares' score per unit of length; 0 where all lengths are equal.
    best, worst: the mean length of each question's best and worst answers, over questions whose scores differ; None
        where there is no such question.
    """

    unit: str
    correlation: float | None
    slope: float
    best: float | None
    worst: float | None

    def __str__(self) -> str:
        if self.correlation is None:
            return f"length ({self.unit}) does not bear on the scores: no question has answers that differ in both"
        return (
            f"score and length correlate with r = {self.correlation:+.2f} within questions; the best answers have "
            f"{self.best:.1f} {self.unit} on average, the worst {self.worst:.1f}"
        )


def length_bias(scored: Sequence[Scored]) -> LengthBias:
    """The bias in scored answers; those without a score are passed over."""
    questions = _Questions(scored)
    lengths = [length for found in questions.found for length in found.lengths_off()]
    scores = [score for found in questions.found for score in found.scores_off()]
    product = math.fsum(one * other for one, other in zip(lengths, scores, strict=True))
    of_lengths, of_scores = (math.fsum(value * value for value in values) for values in (lengths, scores))
    spread = math.sqrt(of_lengths) * math.sqrt(of_scores)
    # What rounding leaves of equal values is no spread.
    largest = max((abs(each.score or 0.0) for each in scored), default=0.0)
    flat = of_scores <= len(scores) * (1e-12 * largest) ** 2 or not of_lengths
    ends = [found.ends() for found in questions.found if len(set(found.scores)) > 1]
    return LengthBias(
        questions.unit,
        None if flat else max(-1.0, min(1.0, product / spread)),
        product / of_lengths if of_lengths else 0.0,
        _mean([best for best, _ in ends]) if ends else None,
        _mean([worst for _, worst in ends]) if ends else None,
    )


def without_length(scored: Sequence[Scored]) -> list[Scored]:
    """The answers with what length alone predicts taken off their scores.

    From each score goes ``length_bias(scored).slope`` times what the answer is longer than its question's mean; details
    keep the score as ``raw_score``, and the length that was counted. With few answers the slope fits them too well: two
    answers to one single question end up equal.
    """
    questions = _Questions(scored)
    slope = length_bias(scored).slope
    result = list(scored)
    for found in questions.found:
        for at, length, off in zip(found.positions, found.lengths, found.lengths_off(), strict=True):
            each = scored[at]
            assert each.score is not None, "answers without a score are not among a question's"
            details = {**each.details, "raw_score": each.score, "length": length}
            result[at] = replace(each, score=each.score - slope * off, details=details)
    return result


class _Question:
    """The scored answers of one question: where they are, and their scores and lengths."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.scores: list[float] = []
        self.lengths: list[int] = []

    def scores_off(self) -> list[float]:
        return _off(self.scores)

    def lengths_off(self) -> list[float]:
        return _off(self.lengths)

    def ends(self) -> tuple[float, float]:
        """The mean lengths of the best and of the worst, which may be several."""
        pairs = list(zip(self.scores, self.lengths, strict=True))
        best, worst = max(self.scores), min(self.scores)
        return _mean([length for score, length in pairs if score == best]), _mean(
            [length for score, length in pairs if score == worst]
        )


class _Questions:
    """Scored answers by question. unit: of their lengths."""

    def __init__(self, scored: Sequence[Scored]) -> None:
        told = [(at, each) for at, each in enumerate(scored) if each.score is not None]
        self.unit = length_unit(each.answer for _, each in told)
        questions: dict[str, _Question] = defaultdict(_Question)
        for at, each in told:
            found = questions[each.answer.row.id]
            found.positions.append(at)
            found.scores.append(float(each.score or 0.0))
            found.lengths.append(each.answer.length(self.unit))
        self.found = list(questions.values())


def _off(values: Sequence[float]) -> list[float]:
    mean = _mean(values)
    return [value - mean for value in values]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
