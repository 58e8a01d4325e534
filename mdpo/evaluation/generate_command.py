"""``mdpo generate``: questions in, a model's answers out."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdpo.data import PromptRow
from mdpo.data.text_options import text_options
from mdpo.models import check_model
from mdpo.output_checks import Output
from mdpo.shown import say

from .answer_options import check_answer_options, memory_advice, open_model, questions_of, source_of
from .answering import Settings, answer_all, settings_path
from .generate import generate
from .questions import write_answers

# Beams. RLHF-V's evaluation code searches with three.
PRESETS = {"greedy": 1, "rlhfv": 3}


def run_generate(options: argparse.Namespace) -> None:
    check_answer_options(options)
    check_model(options.model)  # before the data is fetched
    rows = questions_of(options)
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
