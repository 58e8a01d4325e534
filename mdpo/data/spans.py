"""How much stretches of an answer count: from a row's columns, or from what differs between its two answers."""

import difflib
import itertools
import math
import re
from typing import Any

from .problem import RowError, shortened

# Start and end in characters (code points) of the answer's text, and how much the tokens between them count.
Span = tuple[int, int, float]

_WORD = re.compile(r"\S+")
_SHORTEST = 3  # words in common: a shorter run between two changes is part of the change


def parse_spans(value: Any, text: str, where: str, field: str) -> tuple[Span, ...]:
    """The spans of a column, in order. text: the answer's. Empty where the column says nothing.

    Raises RowError for what is not a list of [start, end, weight], a span outside of the answer or over another one, a
    weight that is negative or not finite, and weights that leave nothing of the answer.
    """
    if value is None:
        return ()
    remedy = "give [[start, end, weight], ...] in characters of the answer"
    if not isinstance(value, (list, tuple)):
        raise RowError.at(where, field, f"is {shortened(value, 40)}; expected a list of spans", remedy)
    spans = sorted(_span(entry, text, where, field, remedy) for entry in value)
    for (_, end, _), (start, _, _) in itertools.pairwise(spans):
        if start < end:
            raise RowError.at(where, field, f"two spans overlap at character {start}", "give each character one weight")
    kept = list(text)
    for start, end, weight in spans:
        if not weight:
            kept[start:end] = [""] * (end - start)
    if not "".join(kept).strip():
        raise RowError.at(
            where, field, "every character has the weight 0", "leave something that counts, or drop the row"
        )
    return tuple(spans)


def _span(entry: Any, text: str, where: str, field: str, remedy: str) -> Span:
    numbers = isinstance(entry, (list, tuple)) and len(entry) == 3
    if not numbers or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in entry):
        raise RowError.at(where, field, f"a span is {shortened(entry, 40)}", remedy)
    start, end, weight = entry  # of a table, all three may be floats
    if not math.isfinite(weight) or weight < 0:
        raise RowError.at(where, field, f"a weight is {weight}", "give a finite number, at least 0")
    if not (math.isfinite(start) and math.isfinite(end)) or start != int(start) or end != int(end):
        raise RowError.at(where, field, f"a span is {shortened(entry, 40)}", remedy)
    if not 0 <= start < end <= len(text):
        problem = f"the span from {int(start)} to {int(end)} is not inside the answer's {len(text)} characters"
        raise RowError.at(where, field, problem, remedy)
    return int(start), int(end), float(weight)


def changed_spans(chosen: str, rejected: str, weight: float) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """What differs between two answers, as spans of each that count ``weight`` times.

    As RLHF-V's dense DPO (arXiv 2312.00849, eq. 3 with γ = ``weight``) and its authors' code: what both answers have in
    common are runs of at least three; between two of them stands a change, where both answers have something there.
    Their code compares tokens, this one words, whatever the tokenizer. They divide the log-prob by the sum of the
    weights; here it is their sum, as every other log-prob of this project is.
    """
    words = [[match.span() for match in _WORD.finditer(text)] for text in (chosen, rejected)]
    first, second = (
        [text[slice(*word)] for word in found] for text, found in zip((chosen, rejected), words, strict=True)
    )
    matcher = difflib.SequenceMatcher(
        None, first, second, autojunk=False
    )  # which would skip frequent words of long texts
    *blocks, last = matcher.get_matching_blocks()
    spans: tuple[list[Span], list[Span]] = ([], [])
    at = (0, 0)
    for block in [*(block for block in blocks if block.size >= _SHORTEST), last]:
        if at[0] < block.a and at[1] < block.b:
            for side, (begin, stop) in enumerate(((at[0], block.a), (at[1], block.b))):
                spans[side].append((words[side][begin][0], words[side][stop - 1][1], weight))
        at = (block.a + block.size, block.b + block.size)
    return tuple(spans[0]), tuple(spans[1])
