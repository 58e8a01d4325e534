"""Response files → results, one function a benchmark. The language models and the judge are passed in."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from . import amber, chair, mmhal, objects
from .files import read_text
from .judge import Estimate, Judge, Reply, Request, describe
from .responses import read_amber, read_amber_rules, read_coco, read_mmhal, some
from .results import Metric, Response, Result

AMBER_FILES = ("annotations.json", "relation.json", "safe_words.txt")
OBJECT_HALBENCH_IMAGES = 300
MMHAL_QUESTIONS = 96


def run_amber(
    responses: Path,
    data: Path,
    *,
    nouns: Callable[[str], list[str]],
    similarity: amber.Similarity,
    threshold: float = 0.8,
    compat: bool = True,
) -> Result:
    """AMBER's generative part. data: the folder of the official files. Raises InputError naming file and id."""
    annotations, relation = read_amber_rules(data / AMBER_FILES[0], data / AMBER_FILES[1])
    safe_words = read_text(data / AMBER_FILES[2]).split("\n")
    given, missing = read_amber(responses, annotations)
    score = amber.score(
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
        score.variant,
        [
            percent("CHAIR", score.chair, "lower", "hallucinated/counted", "hallucinated mentions / mentions"),
            percent("Cover", score.cover, "higher", "covered/truths", "annotated words mentioned / annotated words"),
            percent("Hal", score.hal, "lower", "any/answers", "responses with a hallucination / responses"),
            percent("Cog", score.cog, "lower", "expected/hallus", "words that people expect, mentioned / such words"),
        ],
        [_amber_response(response, texts[response.id]) for response in score.responses],
        {"responses": len(score.responses), "missing": len(missing), "not generative": score.passed_over},
        [f"no response to {some(missing)} generative questions: not comparable with published figures"]
        if missing
        else [],
    )


def _amber_response(response: amber.AmberResponse, text: str) -> Response:
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
    return Response(str(response.id), text, _floats(numbers), marked=response.hallucinated)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coco:
    """Ground truth of the images: paths of COCO's instance and caption files, and the words for their objects."""

    instances: Sequence[Path]
    captions: Sequence[Path]
    lexicon: chair.Lexicon
    lemmas: chair.Lemmas

    def classes(self, image_ids: set[Any]) -> dict[Any, set[str]]:
        """Raises InputError where an image is in none of the files."""
        instances = read_coco(self.instances, "annotations", "categories")
        captions = read_coco(self.captions, "annotations")
        known = {annotation["image_id"] for file in (*instances, *captions) for annotation in file["annotations"]}
        unknown = sorted(image_ids - known)
        if unknown:
            raise InputError(f"images that no COCO file describes: {some(unknown)}; give the files of every split used")
        return chair.ground_truth(instances, captions, image_ids, lexicon=self.lexicon, lemmas=self.lemmas)


def run_object_halbench(captions: Sequence[Mapping[str, Any]], coco: Coco) -> Result:
    """CHAIR by string matching. captions: of ``read_captions``."""
    truth = coco.classes({row["image_id"] for row in captions})
    score = chair.score(captions, truth, lexicon=coco.lexicon, lemmas=coco.lemmas)
    return _chair_result(score, captions, {"responses": len(captions)})


def run_object_halbench_judged(
    captions: Sequence[Mapping[str, Any]], coco: Coco, *, judge: Judge, template: str, tagger: objects.Tagger
) -> Result:
    """CHAIR over the objects that a judge finds. Rows whose replies stay malformed are left out, and counted."""
    truth = coco.classes({row["image_id"] for row in captions})
    found, replies = objects.extract(captions, judge, template, coco.lexicon, tagger)
    rows = [
        dict(row, objects=names, position=index)
        for index, (row, names) in enumerate(zip(captions, found, strict=True))
        if names is not None
    ]
    malformed = [index for index, names in enumerate(found) if names is None]
    score = chair.score_objects(rows, truth, lexicon=coco.lexicon)
    result = _chair_result(score, rows, {"responses": len(rows), "unparsed": len(malformed)})
    if malformed:
        result.warnings.append(f"malformed replies of the judge, and so left out: rows {some(malformed)}")
    return dataclasses.replace(result, judge=_described(judge, replies, result))


def estimate_object_halbench(captions: Sequence[Mapping[str, Any]], judge: Judge, template: str) -> Estimate:
    return judge.estimate(list(objects.requests(captions, template).values()))


def _chair_result(score: chair.ChairScore, rows: Sequence[Mapping[str, Any]], counts: dict[str, int]) -> Result:
    def percent(name: str, value: float, better: str, ratio: str, definition: str) -> Metric:
        return Metric.of(name, value * 100, better, ratio, definition)

    return Result(
        "Object HalBench",
        score.variant,
        [
            percent("CHAIRs", score.chair_s, "lower", "any/answers", "hallucinated responses / responses"),
            percent(
                "CHAIRs_refine", score.chair_s_refine, "lower", "any/naming", "… / responses that name a COCO object"
            ),
            percent("CHAIRi", score.chair_i, "lower", "hallucinated/mentions", "hallucinated objects / objects named"),
            percent("Object recall", score.recall, "higher", "found/present", "objects found / objects in the images"),
        ],
        [
            _chair_response(response, row, row.get("position", index))
            for index, (response, row) in enumerate(zip(score.responses, rows, strict=True))
        ],
        counts,
        _chair_warnings(rows),
    )


def _chair_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(rows) == OBJECT_HALBENCH_IMAGES:
        return []
    return [f"{len(rows)} responses; RLHF-V's setting, which published figures use, has {OBJECT_HALBENCH_IMAGES}"]


def _chair_response(response: chair.ChairResponse, row: Mapping[str, Any], position: int) -> Response:
    numbers = {
        "any": bool(response.hallucinated),
        "answers": 1,
        "naming": bool(response.mentions),
        "hallucinated": len(response.hallucinated),
        "mentions": len(response.mentions),
        "found": response.found,
        "present": response.present,
    }
    id = f"{position}:{response.image_id}"
    return Response(id, row["caption"], _floats(numbers), row.get("question", ""), marked=response.hallucinated)


def mmhal_requests(records: Sequence[Mapping[str, Any]], template: str) -> list[Request]:
    return [Request(mmhal.messages(record, template), temperature=0.0) for record in records]


def run_mmhal(responses: Path, *, judge: Judge, template: str, answers_for: Path | None = None) -> Result:
    """MMHal-Bench. template: the judge's. answers_for: the official template JSON, where responses are bare rows."""
    records = read_mmhal(responses, answers_for)
    replies = judge.ask(mmhal_requests(records, template))
    ratings = [mmhal.parse(reply.text) for reply in replies]
    score = mmhal.summarize(ratings)
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
    return dataclasses.replace(result, judge=_described(judge, replies, result))


def _mmhal_warnings(records: Sequence[Mapping[str, Any]], ratings: Sequence[int | None]) -> list[str]:
    warnings = []
    if len(records) != MMHAL_QUESTIONS:
        warnings.append(f"{len(records)} records; the official program insists on {MMHAL_QUESTIONS}: not comparable")
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
        _floats(numbers),
        record["question"],
        group=mmhal.TYPES[index % len(mmhal.TYPES)],
        note=reply.text,
    )


def _described(judge: Judge, replies: Sequence[Reply], result: Result) -> dict[str, Any]:
    """The judge's description; another name than the one asked for is a warning: figures follow the judge."""
    description = describe(judge.options, replies)
    others = [name for name in description["returned"] if name != judge.options.model]
    if others:
        result.warnings.append(f"asked for {judge.options.model}, the endpoint answered as {', '.join(others)}")
    return description


def _floats(numbers: Mapping[str, float]) -> dict[str, float]:
    assert all(math.isfinite(value) for value in numbers.values())
    return {name: float(value) for name, value in numbers.items()}
