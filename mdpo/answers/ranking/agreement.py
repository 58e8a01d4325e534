"""Agreement: how much an answer has in common with the other answers to its question.

The score of an answer is its mean unigram F1 with each of the others, whoever wrote them: the expected gain of minimum
Bayes risk decoding (Kumar and Byrne 2004) where a question's answers stand for what the model could say. What only one
answer claims is more often made up than what all of them claim. It needs neither a judge nor annotations, and knows
nothing of the picture: what all answers make up, it rewards.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..records import Answer, Scored
from .way import by_question, is_empty

_WORD = re.compile(r"[^\W_]+")


class Agreement:
    """Scores 0 to 1; None where a question has fewer than two answers with words."""

    name = "agreement"

    def __call__(self, answers: Sequence[Answer]) -> list[Scored]:
        scored = [Scored(answer, None, self.name) for answer in answers]
        for positions in by_question(answers).values():
            told = [at for at in positions if not is_empty(answers[at])]
            if len(told) < 2:
                continue
            words = [Counter(_WORD.findall(answers[at].response.lower())) for at in told]
            gains = [[unigram_f1(one, other) for other in words] for one in words]
            for place, at in enumerate(told):
                others = gains[place][:place] + gains[place][place + 1 :]
                mean = sum(others) / len(others)
                scored[at] = Scored(answers[at], mean, self.name, {"others": len(others)})
        return scored

    def settings(self) -> dict[str, Any]:
        return {"similarity": "unigram F1, mean over a question's other answers"}


def unigram_f1(one: Counter[str], other: Counter[str]) -> float:
    """2 · |one ∩ other| / (|one| + |other|) over words with their counts; 0 where neither has a word."""
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 0.0
