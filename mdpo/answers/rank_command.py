"""``mdpo rank``: a score for each answer, by a judge, a rule, a function, a model's own doubts or the other answers."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mdpo.data import PromptRow, TextOptions
from mdpo.data.picture_size import add_size_options, size_options
from mdpo.data.text_options import add_text_options, text_options
from mdpo.errors import InputError
from mdpo.evaluation.answer_options import open_model, reader_of
from mdpo.evaluation.answering import fingerprint, settings_path
from mdpo.evaluation.judge_options import add_judge_options, open_judge
from mdpo.evaluation.judge_requests import Estimate
from mdpo.models import check_model
from mdpo.output_checks import Output
from mdpo.program import COMMANDS
from mdpo.shown import say

from .ranking import (
    SILKIE,
    USUAL_TOKENS,
    Agreement,
    Claims,
    Function,
    Judged,
    Objects,
    Rubric,
    Way,
    confirm,
    counts,
    length_bias,
    rank,
    table,
    without_length,
    write_scored,
)
from .records import Answer, Scored, read_answers

# The options that each way has of its own; the first of them it cannot do without.
_OWN = {
    "judge": ("judge", "base_url", "rubric", "price", "dry_run"),
    "chair": ("objects", "synonyms"),
    "function": ("function",),
    "self": ("model", "adapter"),
    "agreement": (),
}


def add_command(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers ``rank``; its parser's ``run`` takes the parsed options."""
    command = subparsers.add_parser(
        "rank",
        help=COMMANDS["rank"],
        description="What a judge or a model says is kept as it comes: the same command goes on where it was stopped.",
    )
    command.add_argument(
        "answers", type=Path, nargs="+", help=".jsonl of mdpo sample, or any with id, images, prompt, response"
    )
    command.add_argument("--by", choices=list(_OWN), required=True, help="the way of scoring: see the groups below")
    command.add_argument("--output", type=Path, required=True, help=".jsonl, a line per answer")
    command.add_argument(
        "--length-control", action="store_true", help="take off the scores what length alone predicts, within questions"
    )
    command.add_argument(
        "--allow-outside", action="store_true", help="images may lie outside the folders of the answers' files"
    )
    _add_ways(command)
    add_text_options(command)
    add_size_options(command)
    command.set_defaults(run=run_rank, results=_ranked, check=check_rank)


def _add_ways(command: argparse.ArgumentParser) -> None:
    group = add_judge_options(command, required=False)
    group.add_argument(
        "--rubric",
        type=Path,
        help=(
            "YAML with aspects, scale, weights, instructions (default: helpfulness, visual faithfulness, ethics, 1 "
            "to 5)"
        ),
    )
    group.add_argument(
        "--price",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="per million prompt and reply tokens: print the cost",
    )
    group = command.add_argument_group("chair", "F1 of the objects that an answer names against those in the picture")
    group.add_argument("--objects", type=Path, help=".json or .jsonl: id and objects, a list of words")
    group.add_argument("--synonyms", type=Path, help="text, a line for each object: its words, apart by ', '")
    group = command.add_argument_group("function", "a Python function of yours, run in this process")
    group.add_argument(
        "--function",
        metavar="MODULE:NAME",
        help="takes question, answer, images (PIL) and id; returns a number or None",
    )
    group = command.add_argument_group("self", "a model is asked back each claim; minus the number that it rejects")
    group.add_argument("--model", type=Path, help="folder, or owner/name[@revision] on the hub")
    group.add_argument("--adapter", type=Path, help="PEFT adapter: folder, or owner/name[@revision] on the hub")
    group.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    group.add_argument("--batch-size", type=int, default=8, help="claims at a time")


def check_rank(options: argparse.Namespace) -> None:
    """Raises InputError for what can be said of the options before there are answers: also of the files they name."""
    _check(options)
    if options.by != "self":  # whose model may be trained by then
        _WAYS[options.by](options)


def run_rank(options: argparse.Namespace) -> None:
    _check(options)
    way, plan = _WAYS[options.by](options)
    answers = read_answers(options.answers, allow_outside=options.allow_outside)
    if plan is not None:
        print(plan(answers))
        if options.dry_run:
            return
    raw = rank(answers, way)
    scored = without_length(raw) if options.length_control else raw
    print(table(scored))
    print(length_bias(raw))
    if options.length_control:
        print(f"under length control: {length_bias(scored)}")
    write_scored(options.output, scored, _about(options, way, raw))
    say(f"wrote {options.output}: {counts(scored)['scored']} scored answers")


def _about(options: argparse.Namespace, way: Way, raw: Sequence[Scored]) -> dict[str, Any]:
    """How the scores came about. raw: before any control of length."""
    bias = length_bias(raw)
    return {
        "by": way.name,
        "settings": dict(way.settings()),
        "answers": [fingerprint(path) for path in options.answers],
        "counts": counts(raw),
        "length": {"unit": bias.unit, "correlation": bias.correlation, "slope": bias.slope},
        "length_control": options.length_control,
    }


def _check(options: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together, and for values that cannot be used."""
    if options.output.suffix != ".jsonl":
        raise InputError(f"--output {options.output}: answers are written as JSONL; give a name that ends in .jsonl")
    for way, names in _OWN.items():
        given = [name for name in names if getattr(options, name) not in (None, False)]
        if way != options.by and given:
            raise InputError(
                f"--{given[0].replace('_', '-')} belongs to --by {way}, not to --by {options.by}; leave it out"
            )
    needed = _OWN[options.by][:1]
    if needed and getattr(options, needed[0]) is None:
        raise InputError(f"--by {options.by} needs --{needed[0]}")
    if options.by != "self" and (text_options(options) != TextOptions() or size_options(options).values()):
        raise InputError(f"settings of text and pictures belong to --by self, not to --by {options.by}; leave them out")
    if options.batch_size < 1:
        raise InputError(f"--batch-size is at least 1, found {options.batch_size}")
    if options.price is not None and not all(0 <= price < 1e9 for price in options.price):
        raise InputError(f"--price {' '.join(map(str, options.price))}: prices are numbers from 0 on")


def _ranked(options: argparse.Namespace) -> list[Output]:
    if options.dry_run:
        return []
    found = [Output("--output", options.output), Output("--output", settings_path(options.output), resumed=True)]
    if options.by == "judge":
        found.append(Output("--cache", options.cache, resumed=True))
    if options.by == "self":
        found.append(Output("--output", _claims_path(options.output), resumed=True))
    return found


def _claims_path(output: Path) -> Path:
    return output.with_name(output.name + ".claims.jsonl")


_Planned = Callable[[Sequence[Answer]], str] | None


def _judged(options: argparse.Namespace) -> tuple[Way, _Planned]:
    rubric = SILKIE if options.rubric is None else Rubric.read(options.rubric)
    way = Judged(open_judge(options), rubric)
    return way, lambda answers: _priced(way.estimate(answers), options.price)


def _priced(estimate: Estimate, price: Sequence[float] | None) -> str:
    """The line of the estimate, with what it costs if every request is asked once."""
    line = f"{estimate} (pictures are counted as OpenAI does for GPT-4o)" if estimate.picture_tokens else str(estimate)
    if price is None:
        return line
    assert estimate.reply_tokens is not None, "replies are limited"
    tokens = (estimate.prompt_tokens, USUAL_TOKENS * estimate.requests, estimate.reply_tokens)
    prompts, usual, most = (count * each / 1e6 for count, each in zip(tokens, (*price, price[1]), strict=True))
    return (
        f"{line}; about {prompts:.2f} for the prompts, {usual:.2f} for replies of {USUAL_TOKENS} tokens, and "
        f"{most:.2f} if all of them go to the limit"
    )


def _doubted(options: argparse.Namespace) -> tuple[Way, _Planned]:
    check_model(options.model)
    about, text = reader_of(options), text_options(options)

    def ask(rows: Sequence[PromptRow]) -> Iterator[float]:
        try:
            yield from confirm(*open_model(options), rows, batch_size=options.batch_size, text=text)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the GPU's memory is too small for {options.batch_size} claims at a time: lower --batch-size, then "
                "--max-pixels; the claims so far are kept"
            ) from error

    return Claims(ask, about, _claims_path(options.output)), None


_WAYS: Mapping[str, Callable[[argparse.Namespace], tuple[Way, _Planned]]] = {
    "judge": _judged,
    "chair": lambda options: (Objects.read(options.objects, options.synonyms), None),
    "function": lambda options: (Function.named(options.function), None),
    "self": _doubted,
    "agreement": lambda options: (Agreement(), None),
}
