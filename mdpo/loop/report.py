"""The page over the rounds: the model before the first round against those after each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mdpo.answers.ranking.way import question_text
from mdpo.answers.records import Scored, length_unit, read_scored
from mdpo.evaluation.results import Metric, Response, Result
from mdpo.reports.runs import Run, load_history
from mdpo.reports.write import write_report

from .config import LoopConfig
from .stages import folder_of_round

_EVALUATED, _SAMPLED = "held-out questions, a greedy answer to each", "the training's own samples"


def write_rounds(config: LoopConfig, last: int, output: Path) -> list[Path]:
    """Writes the report of the rounds up to ``last``; returns its files. Raises as ``write_report``."""
    if config.evaluate is None:
        files = {number - 1: folder_of_round(config, number) / "scored.jsonl" for number in range(1, last + 1)}
        how = _SAMPLED
    else:
        files = {number: folder_of_round(config, number) / "evaluation" / "scored.jsonl" for number in range(last + 1)}
        how = _EVALUATED
    scored = {number: read_scored(path) for number, path in files.items()}
    before = _scores(scored[0])
    runs = []
    for number, answers in scored.items():
        result = result_of(answers, before, how)
        if config.evaluate is None and config.rank.get("by") == "self" and "model" not in config.rank:
            result.warnings.append(
                "each round's answers were scored by that round's own model, so that scores and win rates of two "
                "rounds do not compare; give held-out questions (evaluate), or one model to rank by"
            )
        history = load_history(folder_of_round(config, number) / "model") if number else []
        runs.append(
            Run(f"after round {number}" if number else "before", history, {(result.benchmark, result.variant): result})
        )
    return write_report(runs, output, title=f"{last} rounds on the model's own answers")


def result_of(scored: Sequence[Scored], before: Mapping[tuple[str, int], float], variant: str) -> Result:
    """What a report shows of a model's answers. before: scores of the answers that they are compared with, for the win
    rate.
    """
    by = scored[0].by
    told = [each for each in scored if each.score is not None]
    objects = all("named" in each.details for each in told)
    claims = all("claims" in each.details for each in told)
    unit = length_unit(each.answer for each in told)
    responses = [_response(each, before, unit, objects=objects, claims=claims) for each in told]
    metrics = [
        _metric(responses, f"score by {by}", "higher", "score/answers", "mean over answers", 1.0),
        _metric(
            responses,
            "win rate",
            "higher",
            "wins/compared",
            "answers scored higher than the one before training; equal: half",
        ),
    ]
    if objects:
        metrics += [
            _metric(responses, "CHAIR_s", "lower", "any/answers", "answers that name an object which is not there"),
            _metric(responses, "CHAIR_i", "lower", "hallucinated/named", "named objects that are not there"),
            _metric(responses, "cover", "higher", "found/present", "annotated objects that are named"),
        ]
    if claims:
        metrics.append(
            _metric(
                responses,
                "doubted claims",
                "lower",
                "doubted/claims",
                "claims to which the labeler says no rather than yes",
            )
        )
    metrics.append(_metric(responses, unit, "neither", "length/answers", "mean length of an answer", 1.0))
    without = len(scored) - len(told)
    warnings = [f"{without} of {len(scored)} answers have no score, as empty ones have none: no figure counts them"]
    return Result(
        "own answers",
        variant,
        metrics,
        responses,
        {"answers": len(scored), "without a score": without},
        warnings if without else [],
    )


def _metric(
    responses: Sequence[Response], name: str, better: str, ratio: str, definition: str, scale: float = 100.0
) -> Metric:
    top, _, bottom = ratio.partition("/")
    below = sum(response.numbers[bottom] for response in responses)
    value = scale * sum(response.numbers[top] for response in responses) / below if below else float("nan")
    return Metric.of(name, value, better, ratio, definition, scale)


def _response(
    scored: Scored, before: Mapping[tuple[str, int], float], unit: str, *, objects: bool, claims: bool
) -> Response:
    answer, score = scored.answer, scored.score or 0.0
    other = before.get((answer.row.id, answer.number))
    numbers = {
        "answers": 1.0,
        "score": score,
        "compared": float(other is not None),
        "wins": 0.0 if other is None else 0.5 if score == other else float(score > other),
        "length": float(answer.length(unit)),
    }
    marked: list[str] = []
    if objects:
        marked = list(map(str, scored.details["false"]))
        numbers |= {
            "named": float(len(scored.details["named"])),
            "hallucinated": float(len(marked)),
            "any": float(bool(marked)),
            "found": float(len(scored.details["found"])),
            "present": float(len(scored.details["present"])),
        }
    if claims:
        of_claims = scored.details["claims"]
        numbers |= {"claims": float(len(of_claims)), "doubted": float(sum(each["yes"] < 0.5 for each in of_claims))}
    return Response(f"{answer.row.id}/{answer.number}", answer.response, numbers, question_text(answer.row), marked)


def _scores(scored: Sequence[Scored]) -> dict[tuple[str, int], float]:
    return {(each.answer.row.id, each.answer.number): each.score for each in scored if each.score is not None}
