"""``mdpo generate`` and ``mdpo evaluate``: arguments in, files and a table out."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mdpo.data import PromptRow
from mdpo.data.commands import add_row_options
from mdpo.data.text_options import text_options
from mdpo.errors import InputError
from mdpo.models import check_model
from mdpo.output_checks import Output
from mdpo.program import COMMANDS
from mdpo.shown import say

from . import language, mmhal, objects
from .answer_options import (
    add_answer_options,
    asked_rows,
    check_answer_options,
    memory_advice,
    open_model,
    source_of,
)
from .answering import Settings, answer_all, read_settings, settings_path
from .benchmarks import (
    Coco,
    estimate_object_halbench,
    mmhal_requests,
    run_amber,
    run_mmhal,
    run_object_halbench,
    run_object_halbench_judged,
)
from .chair import VARIANTS, Lexicon
from .generate import generate
from .human import key_path, make_sheet, tally, write_sheet
from .judge_options import add_judge_options, open_judge
from .questions import BENCHMARKS, read_questions, write_answers
from .responses import read_answers, read_captions, read_mmhal
from .results import Result, result_mark

# Beams. RLHF-V's evaluation code searches with three.
PRESETS = {"greedy": 1, "rlhfv": 3}


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers ``generate`` and ``evaluate``; each parser's ``run`` takes the parsed options."""
    _add_generate(subparsers)
    evaluate = subparsers.add_parser("evaluate", help=COMMANDS["evaluate"])
    benchmarks = evaluate.add_subparsers(required=True, metavar="BENCHMARK")
    _add_amber(benchmarks)
    _add_object_halbench(benchmarks)
    _add_mmhal(benchmarks)
    _add_human(benchmarks)


def _add_generate(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = subparsers.add_parser(
        "generate",
        help=COMMANDS["generate"],
        description="Answers that are in --output already are kept; started again with other settings, it refuses.",
    )
    add_answer_options(command, batch_size=8)
    command.add_argument("--output", type=Path, required=True, help=".jsonl, a line per row, or the benchmark's layout")
    command.add_argument(
        "--benchmark", choices=BENCHMARKS, help="DATA is the official question file, OUTPUT its layout"
    )
    command.add_argument("--preset", choices=PRESETS, default="greedy", help="rlhfv: three beams, as in RLHF-V's code")
    command.set_defaults(run=run_generate, results=_generated)


def run_generate(options: argparse.Namespace) -> None:
    check_answer_options(options)
    check_model(options.model)  # before the data is fetched
    rows = _questions(options)
    settings = Settings(**source_of(options), num_beams=PRESETS[options.preset])

    def answerer(todo: Sequence[PromptRow]) -> Iterable[str]:
        model, processor = open_model(options)
        return generate(
            model,
            processor,
            todo,
            max_new_tokens=settings.max_new_tokens,
            batch_size=options.batch_size,
            num_beams=settings.num_beams,
            text=text_options(options),
        )

    with memory_advice(options):
        answers = answer_all(rows, answerer, settings, _journal(options), options.output)
    if options.benchmark is not None:
        write_answers(options.output, options.benchmark, options.data, answers)
    say(f"wrote {options.output}: {len(answers)} answers")


def _journal(options: argparse.Namespace) -> Path:
    """Where answers are kept as they come: a benchmark's layout is written when all of them are there."""
    if options.benchmark is None:
        return options.output
    return options.output.with_name(options.output.name + ".journal.jsonl")


def _generated(options: argparse.Namespace) -> list[Output]:
    begun = settings_path(options.output).is_file()  # else a file in a benchmark's layout is somebody else's
    return [
        Output("--output", options.output, resumed=begun or options.benchmark is None),
        Output("--output", _journal(options), resumed=True),
        Output("--output", settings_path(options.output), resumed=True),
    ]


def _evaluated(benchmark: str) -> Callable[[argparse.Namespace], list[Output]]:
    """What ``evaluate`` writes: a result that is there is replaced where it is of the same benchmark."""

    def outputs(options: argparse.Namespace) -> list[Output]:
        found = []
        if options.output is not None:
            found.append(Output("--output", options.output, mark=result_mark(benchmark)))
        if getattr(options, "judge", None) and not options.dry_run:
            found.append(Output("--cache", options.cache, resumed=True))
        return found

    return outputs


def _questions(options: argparse.Namespace) -> Sequence[PromptRow]:
    if options.benchmark is None:
        return asked_rows(options)
    if options.ignore_columns:
        raise InputError("--ignore-columns: of a benchmark's file its own columns alone are read; leave it out")
    return read_questions(options.data, options.benchmark, options.image_dir, allow_outside=options.allow_outside)


def _add_amber(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = benchmarks.add_parser("amber", help="AMBER's generative part: CHAIR, Cover, Hal, Cog")
    _responses(command, '[{"id", "response"}], as the official program reads it')
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder of the official annotations.json, relation.json, safe_words.txt",
    )
    command.add_argument("--threshold", type=float, default=0.8, help="similarity above which two words are one")
    command.add_argument(
        "--corrected", action="store_true", help="without the official program's quirks; not comparable"
    )
    command.set_defaults(run=run_evaluate_amber, results=_evaluated("AMBER"))


def run_evaluate_amber(options: argparse.Namespace) -> None:
    result = run_amber(
        options.responses,
        options.data,
        nouns=language.load_nouns(),
        similarity=language.load_similarity(),
        threshold=options.threshold,
        compat=not options.corrected,
    )
    _finish(result, options)


def _add_object_halbench(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = benchmarks.add_parser("object-halbench", help="CHAIR: RLHF-V's Object HalBench, or Rohrbach et al.'s")
    _responses(command, "JSONL of image_id, prompt and text")
    command.add_argument("--instances", type=Path, nargs="+", required=True, help="COCO's instances_*.json")
    command.add_argument("--captions", type=Path, nargs="+", required=True, help="COCO's captions_*.json")
    command.add_argument("--synonyms", type=Path, required=True, help="the variant's official synonym file")
    command.add_argument("--variant", choices=VARIANTS, default="rlhfv")
    command.add_argument("--questions", type=Path, help="question file, for responses without image_id")
    _judge(command, required=False, script="eval_gpt_obj_halbench.py")
    command.set_defaults(run=run_evaluate_object_halbench, results=_evaluated("Object HalBench"))


def run_evaluate_object_halbench(options: argparse.Namespace) -> None:
    lexicon = Lexicon.load(options.synonyms, options.variant)
    captions = read_captions(options.responses, options.questions)
    judge = template = None
    if options.judge is not None:
        if options.variant != "rlhfv" or options.script is None:
            raise InputError("--judge is part of RLHF-V's variant, and needs its prompt: --variant rlhfv --script FILE")
        judge, template = open_judge(options), objects.read_template(options.script)
        if options.dry_run:
            print(estimate_object_halbench(captions, judge, template))
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
        result = run_object_halbench(captions, coco)
    else:
        tagger = language.load_tagger()
        result = run_object_halbench_judged(captions, coco, judge=judge, template=template, tagger=tagger)
    _finish(result, options)


def _add_mmhal(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = benchmarks.add_parser("mmhal", help="MMHal-Bench, rated by a judge")
    _responses(command, "the official template with model_answer filled in, or rows of id and response")
    command.add_argument("--template", type=Path, help="the official template JSON, where RESPONSES are bare rows")
    _judge(command, required=True, script="eval_gpt4.py (RLHF-V's eval_gpt_mmhal.py)")
    command.set_defaults(run=run_evaluate_mmhal, results=_evaluated("MMHal-Bench"))


def run_evaluate_mmhal(options: argparse.Namespace) -> None:
    template = mmhal.read_template(options.script)
    judge = open_judge(options)
    if options.dry_run:
        print(judge.estimate(mmhal_requests(read_mmhal(options.responses, options.template), template)))
        return
    _finish(run_mmhal(options.responses, judge=judge, template=template, answers_for=options.template), options)


def _responses(command: argparse.ArgumentParser, layout: str) -> None:
    command.add_argument("responses", type=Path, help=layout)
    command.add_argument(
        "--output", type=Path, help="JSON for mdpo report, replaced if there; put it in the run's folder"
    )


def _judge(command: argparse.ArgumentParser, *, required: bool, script: str) -> None:
    group = add_judge_options(command, required=required)
    group.add_argument("--script", type=Path, required=required, help=f"your copy of {script}, or its prompt as text")


def _add_human(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    human = benchmarks.add_parser("human", help="pairwise, by human raters: a blind sheet, then its tally")
    steps = human.add_subparsers(required=True, metavar="STEP")
    sheet = steps.add_parser("sheet", help="an HTML page of image, question and two answers")
    sheet.add_argument("data", type=Path, help="the questions")
    sheet.add_argument("first", type=Path, help="answers to compare against (before)")
    sheet.add_argument("second", type=Path, help="answers of interest (after)")
    sheet.add_argument("--benchmark", choices=BENCHMARKS, help="DATA is the official question file")
    add_row_options(sheet)
    sheet.add_argument(
        "--names", nargs=2, metavar=("FIRST", "SECOND"), help="of the two; their files' names without it"
    )
    sheet.add_argument("--seed", type=int, default=0, help="of order and sides")
    sheet.add_argument("--output", type=Path, required=True, help=".html; its key is written beside it")
    sheet.set_defaults(run=run_sheet, results=_sheet_files)
    count = steps.add_parser("tally", help="wins, ties and losses from the raters' saved answers")
    count.add_argument("key", type=Path, help="the sheet's .key.json")
    count.add_argument("answers", type=Path, nargs="+", help="one file a rater")
    count.add_argument("--output", type=Path, help="JSON for mdpo report, replaced if there")
    count.set_defaults(run=run_tally, results=_evaluated("Human preference"))


def _sheet_files(options: argparse.Namespace) -> list[Output]:
    return [Output("--output", options.output), Output("--output", key_path(options.output))]


def run_sheet(options: argparse.Namespace) -> None:
    names = tuple(options.names or (options.first.stem, options.second.stem))
    sheet = make_sheet(
        _questions(options),
        read_answers(options.first),
        read_answers(options.second),
        names=names,
        seed=options.seed,
    )
    key = write_sheet(options.output, sheet)
    say(f"wrote {options.output} for the raters, and {key}, which they must not see")


def run_tally(options: argparse.Namespace) -> None:
    _print_and_write(tally(options.key, options.answers), options.output)


def _finish(result: Result, options: argparse.Namespace) -> None:
    _print_and_write(dataclasses.replace(result, settings=read_settings(options.responses)), options.output)


def _print_and_write(result: Result, output: Path | None) -> None:
    print(result.table())
    if output is not None:
        result.write(output)
        say(f"wrote {output}")
