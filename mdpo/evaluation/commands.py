"""``mdpo generate`` and ``mdpo evaluate``: arguments in, files and a table out."""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdpo.data import PromptRow
from mdpo.data.text_options import text_options
from mdpo.errors import InputError
from mdpo.models import check_model
from mdpo.output_checks import Output
from mdpo.shown import say

from . import language, mmhal, objects
from .answer_options import (
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
from .chair import Lexicon
from .generate import generate
from .human import key_path, make_sheet, tally, write_sheet
from .judge_options import open_judge
from .questions import read_questions, write_answers
from .responses import read_answers, read_captions, read_mmhal
from .results import Result, result_mark

# Beams. RLHF-V's evaluation code searches with three.
PRESETS = {"greedy": 1, "rlhfv": 3}


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


def generated_files(options: argparse.Namespace) -> list[Output]:
    begun = settings_path(options.output).is_file()  # else a file in a benchmark's layout is somebody else's
    return [
        Output("--output", options.output, resumed=begun or options.benchmark is None),
        Output("--output", _journal(options), resumed=True),
        Output("--output", settings_path(options.output), resumed=True),
    ]


def result_files(options: argparse.Namespace) -> list[Output]:
    """What ``evaluate`` writes: a result that is there is replaced if it is of the same benchmark (``result_of``)."""
    found = []
    if options.output is not None:
        found.append(Output("--output", options.output, mark=result_mark(options.result_of)))
    if getattr(options, "judge", None) and not options.dry_run:
        found.append(Output("--cache", options.cache, resumed=True))
    return found


def _questions(options: argparse.Namespace) -> Sequence[PromptRow]:
    if options.benchmark is None:
        return asked_rows(options)
    if options.ignore_columns:
        raise InputError("--ignore-columns: a benchmark's file is read by its own columns; leave it out")
    return read_questions(options.data, options.benchmark, options.image_dir, allow_outside=options.allow_outside)


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


def run_evaluate_mmhal(options: argparse.Namespace) -> None:
    template = mmhal.read_template(options.script)
    judge = open_judge(options)
    if options.dry_run:
        print(judge.estimate(mmhal_requests(read_mmhal(options.responses, options.template), template)))
        return
    _finish(run_mmhal(options.responses, judge=judge, template=template, answers_for=options.template), options)


def sheet_files(options: argparse.Namespace) -> list[Output]:
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
