"""``mdpo evaluate object-halbench``: a file of responses → a result. Language models and judge are passed in."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from .. import language
from ..finish import described, finish, floats
from ..judge import Estimate, Judge
from ..judge_options import open_judge
from ..responses import some
from ..results import Metric, Response, Result
from . import objects
from .files import read_captions, read_coco
from .metrics import ChairResponse, ChairScore, Lemmas, Lexicon, ground_truth, score, score_objects

IMAGES = 300  # of RLHF-V's setting


def run_evaluate(options: argparse.Namespace) -> None:
    lexicon = Lexicon.load(options.synonyms, options.variant)
    captions = read_captions(options.responses, options.questions)
    judge = template = None
    if options.judge is not None:
        if options.variant != "rlhfv" or options.script is None:
            raise InputError("--judge is part of RLHF-V's variant, and needs its prompt: --variant rlhfv --script FILE")
        judge, template = open_judge(options), objects.read_template(options.script)
        if options.dry_run:
            print(estimate(captions, judge, template))
            return
    elif options.dry_run:
        raise InputError("--dry-run says what a judge would be sent; give --judge too")
    coco = Coco(
        instances=options.instances,
        captions=options.captions,
        lexicon=lexicon,
        lemmas=language.load_lemmas(options.variant),
    )
    if judge is None or template is None:
        result = run_matched(captions, coco)
    else:
        tagger = language.load_tagger()
        result = run_judged(captions, coco, judge=judge, template=template, tagger=tagger)
    finish(result, options)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coco:
    """Ground truth of the images: paths of COCO's instance and caption files, and the words for their objects."""

    instances: Sequence[Path]
    captions: Sequence[Path]
    lexicon: Lexicon
    lemmas: Lemmas

    def classes(self, image_ids: set[Any]) -> dict[Any, set[str]]:
        """Raises InputError where an image is in none of the files."""
        instances = read_coco(self.instances, "annotations", "categories")
        captions = read_coco(self.captions, "annotations")
        known = {annotation["image_id"] for file in (*instances, *captions) for annotation in file["annotations"]}
        unknown = sorted(image_ids - known)
        if unknown:
            raise InputError(f"images that no COCO file describes: {some(unknown)}; give the files of every split used")
        return ground_truth(instances, captions, image_ids, lexicon=self.lexicon, lemmas=self.lemmas)


def run_matched(captions: Sequence[Mapping[str, Any]], coco: Coco) -> Result:
    """CHAIR by string matching. captions: of ``read_captions``."""
    truth = coco.classes({row["image_id"] for row in captions})
    found = score(captions, truth, lexicon=coco.lexicon, lemmas=coco.lemmas)
    return _chair_result(found, captions, {"responses": len(captions)})


def run_judged(
    captions: Sequence[Mapping[str, Any]], coco: Coco, *, judge: Judge, template: str, tagger: objects.Tagger
) -> Result:
    """CHAIR over the objects that a judge finds. Rows whose replies stay malformed are left out, and counted."""
    truth = coco.classes({row["image_id"] for row in captions})
    named, replies = objects.extract(captions, judge, template, coco.lexicon, tagger)
    rows = [
        dict(row, objects=names, position=index)
        for index, (row, names) in enumerate(zip(captions, named, strict=True))
        if names is not None
    ]
    malformed = [index for index, names in enumerate(named) if names is None]
    found = score_objects(rows, truth, lexicon=coco.lexicon)
    result = _chair_result(found, rows, {"responses": len(rows), "unparsed": len(malformed)})
    if malformed:
        result.warnings.append(f"malformed replies of the judge, and so left out: rows {some(malformed)}")
    return dataclasses.replace(result, judge=described(judge, replies, result))


def estimate(captions: Sequence[Mapping[str, Any]], judge: Judge, template: str) -> Estimate:
    return judge.estimate(list(objects.requests(captions, template).values()))


def _chair_result(score: ChairScore, rows: Sequence[Mapping[str, Any]], counts: dict[str, int]) -> Result:
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
    if len(rows) == IMAGES:
        return []
    return [f"{len(rows)} responses; RLHF-V's setting, which published figures use, has {IMAGES}"]


def _chair_response(response: ChairResponse, row: Mapping[str, Any], position: int) -> Response:
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
    return Response(id, row["caption"], floats(numbers), row.get("question", ""), marked=response.hallucinated)
