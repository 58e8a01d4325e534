"""``mdpo evaluate amber | object-halbench | mmhal | human``."""

import argparse
from pathlib import Path
from typing import Any

from .answers import add_judge_options
from .choices import BENCHMARKS, CHAIR_VARIANTS
from .later import Later
from .rows import RESULT, add_row_options

_RESULTS = Later("mdpo.evaluation.finish:result_files")


def add_evaluate(commands: "argparse._SubParsersAction[Any]") -> None:
    evaluate = commands.add_parser(
        "evaluate", help="evaluate answers: AMBER, Object HalBench, MMHal-Bench, human raters"
    )
    benchmarks = evaluate.add_subparsers(required=True, metavar="BENCHMARK")
    _add_amber(benchmarks)
    _add_object_halbench(benchmarks)
    _add_mmhal(benchmarks)
    _add_human(benchmarks)


def _add_amber(benchmarks: "argparse._SubParsersAction[Any]") -> None:
    command = benchmarks.add_parser("amber", help="AMBER's generative part: CHAIR, Cover, Hal, Cog")
    _responses(command, 'responses as the official program reads them: [{"id", "response"}]')
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder of the official annotations.json, relation.json and safe_words.txt",
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        help="similarity above which two words count as one (default: %(default)s)",
    )
    command.add_argument(
        "--corrected", action="store_true", help="leave out the official program's quirks; not comparable"
    )
    command.set_defaults(run=Later("mdpo.evaluation.amber.run:run_evaluate"), results=_RESULTS, result_of="AMBER")


def _add_object_halbench(benchmarks: "argparse._SubParsersAction[Any]") -> None:
    command = benchmarks.add_parser("object-halbench", help="CHAIR: RLHF-V's Object HalBench, or Rohrbach et al.'s")
    _responses(command, "responses: JSONL with image_id, prompt and text")
    command.add_argument("--instances", type=Path, nargs="+", required=True, help="COCO's instances_*.json")
    command.add_argument("--captions", type=Path, nargs="+", required=True, help="COCO's captions_*.json")
    command.add_argument("--synonyms", type=Path, required=True, help="official synonym file of the variant")
    command.add_argument(
        "--variant", choices=CHAIR_VARIANTS, default="rlhfv", help="rules to count by (default: %(default)s)"
    )
    command.add_argument("--questions", type=Path, help="question file, for responses without image_id")
    _judge(command, required=False, script="eval_gpt_obj_halbench.py")
    command.set_defaults(
        run=Later("mdpo.evaluation.chair.run:run_evaluate"),
        results=_RESULTS,
        result_of="Object HalBench",
    )


def _add_mmhal(benchmarks: "argparse._SubParsersAction[Any]") -> None:
    command = benchmarks.add_parser("mmhal", help="MMHal-Bench, rated by a judge")
    _responses(command, "responses: the official template with model_answer filled in, or rows of id and response")
    command.add_argument("--template", type=Path, help="official template JSON, for rows of id and response")
    _judge(command, required=True, script="eval_gpt4.py (RLHF-V's eval_gpt_mmhal.py)")
    command.set_defaults(run=Later("mdpo.evaluation.mmhal.run:run_evaluate"), results=_RESULTS, result_of="MMHal-Bench")


def _responses(command: argparse.ArgumentParser, layout: str) -> None:
    command.add_argument("responses", type=Path, help=layout)
    command.add_argument("--output", type=Path, help=RESULT)


def _judge(command: argparse.ArgumentParser, *, required: bool, script: str) -> None:
    group = add_judge_options(command, required=required)
    group.add_argument("--script", type=Path, required=required, help=f"your copy of {script}, or its prompt as text")


def _add_human(benchmarks: "argparse._SubParsersAction[Any]") -> None:
    human = benchmarks.add_parser("human", help="pairwise comparison by human raters: a blind sheet, then its tally")
    steps = human.add_subparsers(required=True, metavar="STEP")
    sheet = steps.add_parser("sheet", help="write an HTML page of image, question and two answers")
    sheet.add_argument("data", type=Path, help="questions")
    sheet.add_argument("first", type=Path, help="answers to compare against (before)")
    sheet.add_argument("second", type=Path, help="answers of interest (after)")
    sheet.add_argument("--benchmark", choices=BENCHMARKS, help="benchmark whose official question file DATA is")
    add_row_options(sheet)
    sheet.add_argument(
        "--names", nargs=2, metavar=("FIRST", "SECOND"), help="names of the two models (default: their files' names)"
    )
    sheet.add_argument("--seed", type=int, default=0, help="seed of order and sides (default: %(default)s)")
    sheet.add_argument("--output", type=Path, required=True, help=".html file; its key is written beside it")
    sheet.set_defaults(
        run=Later("mdpo.evaluation.human.run:run_sheet"), results=Later("mdpo.evaluation.human.run:sheet_files")
    )
    count = steps.add_parser("tally", help="count wins, ties and losses in the raters' saved answers")
    count.add_argument("key", type=Path, help="the sheet's .key.json")
    count.add_argument("answers", type=Path, nargs="+", help="saved answers, a file for each rater")
    count.add_argument("--output", type=Path, help=RESULT)
    count.set_defaults(run=Later("mdpo.evaluation.human.run:run_tally"), results=_RESULTS, result_of="Human preference")
