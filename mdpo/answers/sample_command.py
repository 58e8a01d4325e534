"""``mdpo sample``: several answers of a model to each question, into a file that can be gone on with."""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from tqdm.auto import tqdm

from mdpo.data import PromptRow
from mdpo.data.canonical import Pictures
from mdpo.data.problem import shortened
from mdpo.data.sources import check_there
from mdpo.data.text_options import text_options
from mdpo.errors import InputError
from mdpo.evaluation.answer_options import (
    asked_rows,
    check_answer_options,
    memory_advice,
    open_model,
    source_of,
)
from mdpo.evaluation.answering import Source, resumed, settings_path
from mdpo.evaluation.endings import Written
from mdpo.evaluation.files import Journal
from mdpo.evaluation.generate import Writer
from mdpo.hub import base_of, folder_of
from mdpo.models import check_model
from mdpo.output_checks import Output
from mdpo.shown import say

from .draw import Item, Sampling, answer_of, draw
from .records import answer_columns
from .vllm_engine import VLLM, choose_engine, engine_versions, open_vllm

Drawer = Callable[[Sequence[Item]], Iterator[Written]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings(Source):
    """What a drawn answer depends on. How many there are to a question is not among it: more can be drawn later."""

    temperature: float
    top_p: float
    seed: int
    engine: str

    def digest(self) -> str:
        """A short name of all that decides on an answer, beside the question."""
        own = {name: value for name, value in asdict(self).items() if name != "data"}
        return hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=4).hexdigest()


def sampled_files(options: argparse.Namespace) -> list[Output]:
    return [Output("--output", path, resumed=True) for path in (options.output, settings_path(options.output))]


def check_sample(options: argparse.Namespace) -> Sampling:
    """How the options have answers drawn. Raises InputError where they cannot be used."""
    if options.output.suffix != ".jsonl":
        raise InputError(f"--output {options.output}: answers are written as JSONL; give a name that ends in .jsonl")
    sampling = Sampling(
        temperature=options.temperature, top_p=options.top_p, seed=options.seed, max_new_tokens=options.max_new_tokens
    )
    sampling.check_count(options.n)
    check_answer_options(options)
    check_there(options.data)
    return sampling


def run_sample(options: argparse.Namespace) -> None:
    sampling = check_sample(options)
    check_model(options.model)  # before the data is fetched
    engine = choose_engine(options.engine)
    rows = asked_rows(options)
    if rows.first_with_images() is None:
        raise InputError(f"{options.data}: no row has an image; give questions about images, or check --image-dir")
    settings = SampleSettings(
        **source_of(options), temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed, engine=engine
    )
    with resumed(options.output, options.output, settings, engine_versions(engine)) as journal:
        done = _done(journal, rows, options.n)
        todo = [(row, number) for row in rows for number in range(options.n) if (row.id, number) not in done]
        if done and todo:
            say(f"{len(done)} of {len(done) + len(todo)} answers are there; {len(todo)} to go")
        speed = ""
        if todo:
            with memory_advice(options):
                drawer = open_vllm(options, sampling, todo) if engine == VLLM else _open_writer(options, sampling)
                pictures = Pictures(options.output.expanduser().parent)
                speed = _drawn(todo, drawer, journal, _name(options, settings), pictures)
        say(f"wrote {options.output}: {_summary(journal)}{speed}")


def _open_writer(options: argparse.Namespace, sampling: Sampling) -> Drawer:
    writer = Writer(*open_model(options), text_options(options))
    return lambda items: draw(writer, items, sampling, options.batch_size)


def _drawn(todo: Sequence[Item], drawer: Drawer, journal: Journal, name: str, pictures: Pictures) -> str:
    """Draws the answers into the journal; returns how fast."""
    began, tokens = time.monotonic(), 0
    with tqdm(total=len(todo), desc="sampling", unit="answer", leave=False, disable=None) as bar:
        for item, written in zip(todo, drawer(todo), strict=True):
            journal.append(answer_columns(answer_of(item, written, name), pictures))
            tokens += written.tokens
            bar.update()
    return f", {tokens / (time.monotonic() - began):.0f} tokens a second"


def _summary(journal: Journal) -> str:
    answers = journal.records
    tokens = sum(answer["tokens"] for answer in answers) / len(answers)
    questions, cut = len({answer["id"] for answer in answers}), sum(not answer["whole"] for answer in answers)
    return f"{len(answers)} answers to {questions} questions, {tokens:.1f} tokens on average, {cut} cut at the limit"


def _name(options: argparse.Namespace, settings: SampleSettings) -> str:
    """The writer: what people call the model or its adapter, and what tells it from others that they call the same."""
    folder = folder_of(options.model)
    if options.adapter is not None:
        folder = folder_of(options.adapter, called="adapter")
    known, folder = base_of(folder), folder.resolve()
    name = folder.name if known is None else known.repo
    if name.startswith("checkpoint-"):  # as every run has them
        name = f"{folder.parent.name}/{name}"
    return f"{name}@{settings.digest()}"


def _done(journal: Journal, rows: Sequence[PromptRow], n: int) -> set[tuple[str, int]]:
    """The answers that are there, by the question's id and their number."""
    asked = {row.id for row in rows} if journal.records else set()
    done: set[tuple[str, int]] = set()
    for line, record in enumerate(journal.records, start=1):
        where = f"{journal.path}, line {line}"
        id, number = str(record.get("id")), record.get("answer")
        if not (
            isinstance(number, int) and isinstance(record.get("tokens"), int) and isinstance(record.get("whole"), bool)
        ):
            raise InputError(f"{where}: not an answer that mdpo sample wrote; give another --output")
        if id not in asked:
            raise InputError(f"{where}: id {shortened(id)} is not among the questions; give another --output")
        if (id, number) in done:
            raise InputError(f"{where}: answer {number} to {shortened(id)} appears twice; delete one of the two lines")
        done.add((id, number))
    most = max((number + 1 for _, number in done), default=0)
    if most > n:
        raise InputError(
            f"{journal.path} has {most} answers to a question already; give --n {most} or more, or another --output"
        )
    return done
