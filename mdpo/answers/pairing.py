"""Scored answers → preference pairs: of each question the best answer against the worst."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mdpo.data.problem import shortened
from mdpo.errors import InputError

from .ranking.way import by_question
from .records import Scored

# Why answers and questions make no pair, as reports say it.
NULL, EMPTY, CUT, SAME = "without a score", "empty", "cut at the limit of tokens", "the same words as another answer's"
FEW, NEAR, BELOW, ABOVE = (
    "fewer than two answers left",
    "scores nearer to each other than the margin",
    "no answer scored as high as --above",
    "no answer scored as low as --below",
)


class Pair(NamedTuple):
    """Two answers to one question.

    number: among the question's pairs, from 1; the widest apart in score is the first.
    """

    chosen: Scored
    rejected: Scored
    number: int

    @property
    def gap(self) -> float:
        return _score(self.chosen) - _score(self.rejected)


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a pair.

    Attributes:
        margin: The least difference of the scores; equal scores never make one.
        per_question: At most so many pairs; each answer is in one of them at most.
        above: The least score of a chosen answer.
        below: The greatest score of a rejected one.
    """

    margin: float = 0.0
    per_question: int = 1
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise InputError(f"--margin is {self.margin:g}; expected a number from 0 on")
        for name, score in (("above", self.above), ("below", self.below)):
            if score is not None and not math.isfinite(score):
                raise InputError(f"--{name} is {score:g}; expected a score, which is a number")
        if self.per_question < 1:
            raise InputError(f"--per-question is {self.per_question}; expected a number above 0")
        if self.above is not None and self.below is not None and self.above < self.below:
            raise InputError(
                f"--above {self.above:g} is less than --below {self.below:g}; an answer could be chosen and rejected"
            )


@dataclass(frozen=True, slots=True)
class Paired:
    """The pairs, and what made none. answers, questions: how many, by reason. asked: questions in all."""

    pairs: list[Pair]
    answers: Mapping[str, int]
    questions: Mapping[str, int]
    asked: int


def make_pairs(scored: Sequence[Scored], rules: Rules | None = None) -> Paired:
    """Pairs of answers to the same question, the questions in the order in which they first come.

    The best answer is paired with the worst, then the second best with the second worst, and so on, as far as ``rules``
    (the defaults without them) allow. Left out are answers without a score, empty ones, those cut at the limit of
    tokens, whose end would be trained as an answer's end, and of those with the same words, case and spaces apart, all
    but the first.

    Raises InputError where the answers to one question were scored in different ways.
    """
    rules = rules or Rules()
    pairs: list[Pair] = []
    answers: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    grouped = by_question([each.answer for each in scored])
    for id, positions in grouped.items():
        group = [scored[at] for at in positions]
        ways = dict.fromkeys(each.by for each in group)
        if len(ways) > 1:
            named = " and ".join(map(shortened, list(ways)[:2]))
            raise InputError(
                f"question {shortened(id)}: its answers were scored by {named}, which cannot be compared; pair "
                "them separately"
            )
        usable = list(_usable(group, answers))
        found = list(_pairs(usable, rules))
        pairs += found
        if not found:
            questions[_reason(usable, rules)] += 1
    return Paired(pairs, dict(answers), dict(questions), len(grouped))


def _usable(group: Iterable[Scored], left_out: Counter[str]) -> Iterable[Scored]:
    seen: set[str] = set()
    for each in group:
        words = " ".join(each.answer.response.split()).casefold()
        reason = (
            EMPTY
            if not words
            else CUT
            if not each.answer.whole
            else NULL
            if each.score is None
            else SAME
            if words in seen
            else None
        )
        if reason is not None:
            left_out[reason] += 1
            continue
        seen.add(words)
        yield each


def _pairs(usable: Sequence[Scored], rules: Rules) -> Iterable[Pair]:
    ranked = sorted(usable, key=_score, reverse=True)  # sorted is stable: of equal scores, the first answer leads
    for number in range(1, min(rules.per_question, len(ranked) // 2) + 1):
        pair = Pair(ranked[number - 1], ranked[-number], number)
        if not _fits(pair, rules):
            return  # those inside are nearer to each other
        yield pair


def _fits(pair: Pair, rules: Rules) -> bool:
    far = pair.gap > 0 and pair.gap >= rules.margin
    high = rules.above is None or _score(pair.chosen) >= rules.above
    low = rules.below is None or _score(pair.rejected) <= rules.below
    return far and high and low


def _reason(usable: Sequence[Scored], rules: Rules) -> str:
    if len(usable) < 2:
        return FEW
    scores = list(map(_score, usable))
    if rules.above is not None and max(scores) < rules.above:
        return ABOVE
    if rules.below is not None and min(scores) > rules.below:
        return BELOW
    return NEAR


def _score(scored: Scored) -> float:
    assert scored.score is not None, "answers without a score are left out before"
    return scored.score
