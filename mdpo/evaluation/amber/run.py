"""``mdpo evaluate amber``: a file of responses → a result. The language models are passed in."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .. import language
from ..files import read_text
from ..finish import finish, floats
from ..responses import some
from ..results import Metric, Response, Result
from .files import read_amber, read_amber_rules
from .metrics import AmberResponse, Similarity, score

FILES = ("annotations.json", "relation.json", "safe_words.txt")


def run_evaluate(options: argparse.Namespace) -> None:
    result = run_amber(
        options.responses,
        options.data,
        nouns=language.load_nouns(),
        similarity=language.load_similarity(),
        threshold=options.threshold,
        compat=not options.corrected,
    )
    finish(result, options)


def run_amber(
    responses: Path,
    data: Path,
    *,
    nouns: Callable[[str], list[str]],
    similarity: Similarity,
    threshold: float = 0.8,
    compat: bool = True,
) -> Result:
    """AMBER's generative part. data: the folder of the official files. Raises InputError naming file and id."""
    annotations, relation = read_amber_rules(data / FILES[0], data / FILES[1])
    safe_words = read_text(data / FILES[2]).split("\n")
    given, missing = read_amber(responses, annotations)
    found = score(
        given,
        annotations,
        relation,
        safe_words,
        nouns=nouns,
        similarity=similarity,
        threshold=threshold,
        compat=compat,
    )
    texts = {response["id"]: response["response"] for response in given}
    percent = Metric.of
    return Result(
        "AMBER",
        found.variant,
        [
            percent("CHAIR", found.chair, "lower", "hallucinated/counted", "hallucinated mentions / mentions"),
            percent("Cover", found.cover, "higher", "covered/truths", "annotated words mentioned / annotated words"),
            percent("Hal", found.hal, "lower", "any/answers", "responses with a hallucination / responses"),
            percent("Cog", found.cog, "lower", "expected/hallus", "words that people expect, mentioned / such words"),
        ],
        [_amber_response(response, texts[response.id]) for response in found.responses],
        {"responses": len(found.responses), "missing": len(missing), "not generative": found.passed_over},
        [f"no response to {some(missing)} generative questions: not comparable with published figures"]
        if missing
        else [],
    )


def _amber_response(response: AmberResponse, text: str) -> Response:
    numbers = {
        "hallucinated": len(response.hallucinated),
        "counted": response.counted,
        "covered": response.covered,
        "truths": response.truths,
        "any": bool(response.hallucinated),
        "answers": 1,
        "expected": response.expected,
        "hallus": response.hallus,
    }
    return Response(str(response.id), text, floats(numbers), marked=response.hallucinated)
