"""``mdpo rank``: a score for each answer, by a judge, a rule, a function, a model's own doubts or the other answers."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mdpo.data import PromptRow, TextOptions
from mdpo.data.picture_size import size_options
from mdpo.data.text_options import text_options
from mdpo.errors import InputError
from mdpo.evaluation.answer_options import open_model, reader_of
from mdpo.evaluation.answering import fingerprint, settings_path
from mdpo.evaluation.judge_options import open_judge
from mdpo.evaluation.judge_requests import Estimate
from mdpo.models import check_model
from mdpo.output_checks import Output
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
        raise InputError(f"settings of text and images belong to --by self, not to --by {options.by}; leave them out")
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; expected a number above 0")
    if options.price is not None and not all(0 <= price < 1e9 for price in options.price):
        raise InputError(f"--price {' '.join(map(str, options.price))}: prices are numbers from 0 on")


def ranked_files(options: argparse.Namespace) -> list[Output]:
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
    line = f"{estimate} (images are counted as OpenAI does for GPT-4o)" if estimate.picture_tokens else str(estimate)
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
