"""MMHal-Bench: the judge's prompt, its ratings, and the official sums.

Facts of the official program (MMHal-Bench's ``eval_gpt4.py``; RLHF-V ships it as ``eval/eval_gpt_mmhal.py``):

- The prompt is ``template.format(contents joined by ", ", question, gt_answer, model_answer)``, one user message,
  temperature 0.
- A reply's rating is the one s in 0…6 with "rating: s" in the lower-cased reply; none or several of them count as 0.
- A rating below 3 is a hallucination. The question type is the index modulo 8.
- RLHF-V's ``eval/summarize_gpt_mmhal_review.py`` adds informativeness: 3 is taken from ratings of 3 and more, and the
  mean is a percentage of 3.
"""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from ..files import read_literal

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
FIELDS = ("image_content", "question", "gt_answer", "model_answer")


@dataclass(frozen=True, slots=True)
class MMHalScore:
    """average: mean rating, 0…6. hallucination_rate: fraction of ratings below 3. informativeness: percent.

    per_type: mean rating of the eight types in the order of ``TYPES``; NaN for a type without a rating.
    unparsed: replies without a rating, which count as 0.
    """

    average: float
    hallucination_rate: float
    per_type: list[float]
    informativeness: float
    unparsed: int


def parse(text: str) -> int | None:
    """The rating in a judge's reply, or None where there is not exactly one."""
    lowered = text.lower()
    ratings = [rating for rating in range(7) if f"rating: {rating}" in lowered]
    return ratings[0] if len(ratings) == 1 else None


def summarize(ratings: Sequence[int | None]) -> MMHalScore:
    """The official sums over ratings in the benchmark's order; None is an unparsed reply.

    Raises InputError for no ratings, or one outside 0…6.
    """
    if not ratings:
        raise InputError("no ratings to summarise")
    for index, rating in enumerate(ratings):
        if rating is not None and rating not in range(7):
            raise InputError(f"rating {index} is {rating!r}; ratings are 0 to 6")
    counted = [0 if rating is None else rating for rating in ratings]
    return MMHalScore(
        average=_mean(counted),
        hallucination_rate=_mean([rating < 3 for rating in counted]),
        per_type=[_mean(counted[index :: len(TYPES)]) for index in range(len(TYPES))],
        informativeness=_mean([rating - 3 if rating >= 3 else rating for rating in counted]) / 3 * 100,
        unparsed=sum(rating is None for rating in ratings),
    )


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else math.nan


def messages(record: Mapping[str, Any], template: str) -> list[dict[str, str]]:
    """The chat messages that ask for a rating of one record of the official template JSON, its answer filled in.

    Raises InputError for a record that lacks a field, and for a template without four ``{}``.
    """
    for field in FIELDS:
        if record.get(field) is None:
            raise InputError(
                f"an MMHal-Bench record needs {', '.join(FIELDS)}; {field} is missing from one with the keys "
                f"{', '.join(map(str, record)) or 'none'}. Is this another benchmark's file?"
            )
    content = record["image_content"]
    if not isinstance(content, (list, tuple)) or not all(isinstance(name, str) for name in content):
        raise InputError(f"image_content is {record['image_content']!r:.80}; expected a list of names")
    check_template(template)
    contents = ", ".join(record["image_content"])
    prompt = template.format(contents, record["question"], record["gt_answer"], record["model_answer"])
    return [{"role": "user", "content": prompt}]


def read_template(path: str | Path) -> str:
    """The judge's prompt from the user's copy of the official script (the literal ``template``) or a text file."""
    template = read_literal(path, "template")
    try:
        check_template(template)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return template


def check_template(template: str) -> None:
    """Raises InputError unless the template has exactly the four places ``{}`` that the official one has."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise InputError(f"the judge's template is not a format string: {error}") from error
    if fields != [""] * len(FIELDS):
        raise InputError(f"the judge's template needs four {{}}, for {', '.join(FIELDS)}; found {fields}")
