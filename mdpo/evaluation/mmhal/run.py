"""``mdpo evaluate mmhal``: a file of responses, rated by a judge → a result."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..finish import described, finish, floats
from ..judge import Judge, Reply, Request
from ..judge_options import open_judge
from ..responses import some
from ..results import Metric, Response, Result
from .files import read_mmhal
from .ratings import TYPES, messages, parse, read_template, summarize

QUESTIONS = 96


def run_evaluate(options: argparse.Namespace) -> None:
    template = read_template(options.script)
    judge = open_judge(options)
    if options.dry_run:
        print(judge.estimate(requests(read_mmhal(options.responses, options.template), template)))
        return
    finish(run_mmhal(options.responses, judge=judge, template=template, answers_for=options.template), options)


def requests(records: Sequence[Mapping[str, Any]], template: str) -> list[Request]:
    return [Request(messages(record, template), temperature=0.0) for record in records]


def run_mmhal(responses: Path, *, judge: Judge, template: str, answers_for: Path | None = None) -> Result:
    """MMHal-Bench. template: the judge's. answers_for: the official template JSON, where responses are bare rows."""
    records = read_mmhal(responses, answers_for)
    replies = judge.ask(requests(records, template))
    ratings = [parse(reply.text) for reply in replies]
    score = summarize(ratings)
    lower, rating = "hallucinating", "rating"
    metrics = [
        Metric.of("Score", score.average, "higher", f"{rating}/answers", "mean rating, 0 to 6", scale=1.0),
        Metric.of(
            "Hallucination rate",
            score.hallucination_rate * 100,
            "lower",
            f"{lower}/answers",
            "ratings below 3 / ratings",
        ),
        Metric.of(
            "Informativeness",
            score.informativeness,
            "higher",
            "informative/most",
            "RLHF-V's: rating, less 3 from 3 on, / 3",
        ),
    ]
    result = Result(
        "MMHal-Bench",
        f"official rule, judged by {judge.options.model}",
        metrics,
        [_mmhal_response(index, *row) for index, row in enumerate(zip(records, replies, ratings, strict=True))],
        {"responses": len(records), "unparsed": score.unparsed},
        grouped="Score",
    )
    result.warnings.extend(_mmhal_warnings(records, ratings))
    return dataclasses.replace(result, judge=described(judge, replies, result))


def _mmhal_warnings(records: Sequence[Mapping[str, Any]], ratings: Sequence[int | None]) -> list[str]:
    warnings = []
    if len(records) != QUESTIONS:
        warnings.append(f"{len(records)} records; the official program insists on {QUESTIONS}: not comparable")
    unparsed = [index for index, rating in enumerate(ratings) if rating is None]
    if unparsed:
        warnings.append(f"replies without exactly one rating, counted as 0 as officially: {some(unparsed)}")
    empty = [index for index, record in enumerate(records) if not record["model_answer"].strip()]
    if empty:
        warnings.append(f"empty answers, judged as they are: {some(empty)}")
    return warnings


def _mmhal_response(index: int, record: Mapping[str, Any], reply: Reply, rating: int | None) -> Response:
    counted = rating or 0
    numbers = {
        "rating": counted,
        "hallucinating": counted < 3,
        "informative": counted - 3 if counted >= 3 else counted,
        "answers": 1,
        "most": 3,
    }
    return Response(
        str(index),
        record["model_answer"],
        floats(numbers),
        record["question"],
        group=TYPES[index % len(TYPES)],
        note=reply.text,
    )
