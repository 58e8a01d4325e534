"""Answers worth reading: where a run changed most against the first, for better and for worse."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mdpo.evaluation.results import Response
from mdpo.shown import html_text

from .compare import Comparison

_LONGEST = 1200  # characters of an answer that are shown


@dataclass(frozen=True, slots=True)
class Example:
    """The answers of the first run and of another to one question. gain: how much less the other one hallucinates."""

    id: str
    question: str
    before: tuple[str, Response]
    after: tuple[str, Response]
    gain: float


def choose(comparison: Comparison, *, improved: int = 3, worsened: int = 1) -> list[Example]:
    """The examples that improved most and those that got worse most; the last run against the first.

    Both kinds are shown on purpose: a page of improvements alone would not be honest.
    """
    first, last = comparison.results[0], comparison.results[-1]
    if first is None or last is None or first is last:
        return []
    old = {response.id: response for response in first.responses}
    names = comparison.runs[0], comparison.runs[-1]
    examples = [
        Example(
            new.id,
            new.question,
            (names[0], old[new.id]),
            (names[1], new),
            _badness(old[new.id]) - _badness(new),
        )
        for new in last.responses
        if new.id in old and new.text and new.text != old[new.id].text
    ]
    examples.sort(key=lambda example: (-example.gain, example.id))
    better = [example for example in examples[:improved] if example.gain > 0]
    worse = [example for example in reversed(examples[-worsened:]) if example.gain < 0] if worsened else []
    return better + worse


def _badness(response: Response) -> float:
    """Hallucinated mentions, how far a rating is from the best, or a score with its sign turned."""
    numbers = response.numbers
    if "rating" in numbers:
        return 6 - numbers["rating"]
    return numbers["hallucinated"] if "hallucinated" in numbers else -numbers.get("score", 0.0)


def marked_html(response: Response) -> str:
    """The answer as HTML, words that are not in the image in ``<mark>``. Plurals of a marked word are marked too."""
    text = response.text if len(response.text) <= _LONGEST else response.text[:_LONGEST].rstrip() + " …"
    pattern = _pattern(response.marked)
    if pattern is None:
        return html_text(text)
    pieces, end = [], 0
    for match in pattern.finditer(text):
        pieces += [html_text(text[end : match.start()]), f"<mark>{html_text(match.group())}</mark>"]
        end = match.end()
    return "".join([*pieces, html_text(text[end:])])


def unmarked(response: Response) -> list[str]:
    """Hallucinated words that do not stand in the answer as such, for instance because their plural is irregular."""
    missing = []
    for word in dict.fromkeys(response.marked):
        pattern = _pattern([word])
        if pattern is not None and not pattern.search(response.text[:_LONGEST]):
            missing.append(word)
    return missing


def _pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    if not words:
        return None
    # Longest first, so that "traffic light" is not marked as "traffic".
    listed = sorted({re.escape(word).replace(r"\ ", r"\s+") for word in words}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(listed)})(?:s|es)?\b", re.IGNORECASE)
