"""Claims: what an answer says, asked back one by one, after RLAIF-V (Yu et al. 2024).

An answer is cut into claims, each of which a model is asked to confirm with yes or no while it looks at the picture.
The score is RLAIF-V's: minus the number of claims that are rejected, which are those whose probability of yes is not
above that of no. There a language model writes the claims and their questions; here claims are the answer's own
sentences, and the question quotes them beside what was asked.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdpo.data import PromptRow
from mdpo.data.images import Use, content_digest
from mdpo.data.problem import shortened
from mdpo.errors import InputError
from mdpo.evaluation.files import Journal
from mdpo.shown import say

from ..records import Answer, Scored
from .way import question_text, score_each

QUESTION = (
    "Somebody was asked: {question}\nThe answer says: {claim}\n"
    "Look at the picture. Is what the answer says true? Answer with yes or no."
)
_LONG = 20  # words from which on a sentence is cut where it joins two
_ENDS = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_JOINTS = re.compile(r"; |, and ")
_MARKER = re.compile(r"^(?:[-*•#>]+|\d{1,3}[.)])\s+")
_SHORT = 2  # words; what is shorter belongs to what follows: "Mr.", "e.g.", "1."

Confirm = Callable[[Sequence[PromptRow]], Iterable[float]]


def claims_of(answer: str) -> list[str]:
    """An answer's claims, in order: its sentences and list items, and of those of more than 20 words the parts that ";"
    and ", and" join. A sentence of one word, such as an abbreviation's, goes with the next one."""
    claims: list[str] = []
    held = ""
    for sentence in _ENDS.split(answer):
        # Behind what was held back: "1." ends like a sentence.
        text = _MARKER.sub("", " ".join(f"{held} {sentence}".split()))
        if 0 < len(text.split()) < _SHORT:
            held = text
            continue
        held = ""
        parts = _JOINTS.split(text) if len(text.split()) > _LONG else [text]
        claims += [part for part in parts if part]
    return [*claims, held] if held else claims


@dataclass(frozen=True, slots=True)
class _Claim:
    row: PromptRow
    text: str
    key: str


class Claims:
    """Scores answers by the claims that a model confirms.

    confirm: yields the probability of yes, of yes and no together, for each of the questions, in order.
    about: what the probabilities depend on, such as the model; the same claim is asked again where it has changed.
    journal: JSONL that keeps each probability as it comes; a run that was stopped goes on there.
    """

    name = "self"

    def __init__(self, confirm: Confirm, about: Mapping[str, Any], journal: Path) -> None:
        self._confirm, self._about, self._journal = confirm, dict(about), journal

    def __call__(self, answers: Sequence[Answer]) -> list[Scored]:
        """Raises InputError where the journal is not one of claims, and RowError where a picture cannot be read."""
        digests: dict[str, str] = {}
        claims = {answer.key: list(self._claims(answer, digests)) for answer in answers}
        yes = self._probabilities([claim for each in claims.values() for claim in each])

        def score(answer: Answer) -> tuple[float | None, dict[str, Any]]:
            own = claims[answer.key]
            rejected = sum(not yes[claim.key] > 0.5 for claim in own)
            details = [{"claim": claim.text, "yes": yes[claim.key]} for claim in own]
            return -float(rejected), {"rejected": rejected, "claims": details}

        return score_each(answers, self.name, score)

    def settings(self) -> dict[str, Any]:
        return {**self._about, "question": QUESTION, "score": "minus the number of claims without P(yes) > P(no)"}

    def _claims(self, answer: Answer, digests: dict[str, str]) -> Iterator[_Claim]:
        """digests: of the pictures of questions met so far, by id; added to."""
        row = answer.row
        for text in claims_of(answer.response):
            if row.id not in digests:
                digests[row.id] = " ".join(content_digest(Use(image, row.where, "images")) for image in row.images)
            asked = QUESTION.format(question=question_text(row), claim=text)
            content = json.dumps([self._about, digests[row.id], asked], sort_keys=True)
            key = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
            parts = [{"type": "image"}] * len(row.images) + [{"type": "text", "text": asked}]
            prompt = [{"role": "user", "content": parts}]
            yield _Claim(PromptRow(f"{row.id}/{key[:8]}", row.where, row.images, prompt), text, key)

    def _probabilities(self, claims: Sequence[_Claim]) -> dict[str, float]:
        """By key; those that the journal lacks are asked."""
        with Journal(self._journal) as journal:
            known = dict(map(_recorded, journal.records, [journal.path] * len(journal.records)))
            asked = {claim.key: claim for claim in claims}
            missing = [claim for key, claim in asked.items() if key not in known]
            if missing:
                if len(missing) < len(asked):
                    say(f"{len(asked) - len(missing)} of {len(asked)} claims are answered; {len(missing)} to go")
                for claim, yes in zip(missing, self._confirm([claim.row for claim in missing]), strict=True):
                    journal.append({"key": claim.key, "claim": claim.text, "yes": yes})
                    known[claim.key] = yes
        return known


def _recorded(record: Mapping[str, Any], path: Path) -> tuple[str, float]:
    key, yes = record.get("key"), record.get("yes")
    if not isinstance(key, str) or isinstance(yes, bool) or not isinstance(yes, (int, float)) or not 0 <= yes <= 1:
        raise InputError(
            f"{path} contains {shortened(dict(record), 60)}, which is not the answer to a claim; move the file away"
        )
    return key, float(yes)
