"""``mdpo generate | score | sample | rank | pairs``: a model's answers, and what becomes of them."""

import argparse
from pathlib import Path
from typing import Any

from .choices import BEAMS, BENCHMARKS, ENGINES, OBJECTIVE_NAMES, RANKINGS
from .later import Later
from .rows import ADAPTER, DTYPE, MODEL, add_row_options, add_size_options, add_text_options


def add_generate(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser(
        "generate",
        help="write a model's answers to a file of questions; resumable",
        description="Answers that are already in --output are kept. Started again with other settings, it refuses.",
    )
    _add_answer_options(command, batch_size=8)
    command.add_argument(
        "--output", type=Path, required=True, help=".jsonl file, a line for each row, or the benchmark's layout"
    )
    command.add_argument(
        "--benchmark", choices=BENCHMARKS, help="benchmark whose official question file DATA is, and layout OUTPUT gets"
    )
    command.add_argument(
        "--preset",
        choices=BEAMS,
        default="greedy",
        help="decoding: greedy, or rlhfv for three beams as in RLHF-V's code (default: %(default)s)",
    )
    command.set_defaults(
        run=Later("mdpo.evaluation.generate_command:run_generate"),
        results=Later("mdpo.evaluation.generate_command:generated_files"),
    )


def add_sample(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser(
        "sample",
        help="draw several answers of a model to each question; resumable",
        description="Answers that are already in --output are kept, and a larger --n adds to them. Started again with "
        "other settings, it refuses.",
    )
    _add_answer_options(command, batch_size=16)
    command.add_argument("--output", type=Path, required=True, help=".jsonl file, a line for each answer")
    command.add_argument("--n", type=int, default=6, help="answers per question (default: %(default)s)")
    command.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="divisor of the logits; 0 takes the likeliest token (default: %(default)s)",
    )
    command.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="share of the probability to draw from, likeliest tokens first (default: %(default)s)",
    )
    command.add_argument("--seed", type=int, default=42, help="seed of the random numbers (default: %(default)s)")
    command.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="library that runs the model; auto is vllm if it is installed and there is a GPU (default: %(default)s)",
    )
    command.set_defaults(
        run=Later("mdpo.answers.sample_command:run_sample"),
        results=Later("mdpo.answers.sample_command:sampled_files"),
        check=Later("mdpo.answers.sample_command:check_sample"),
    )


def _add_answer_options(command: argparse.ArgumentParser, *, batch_size: int) -> None:
    """For a command in which a model answers questions. batch_size: the default, in answers."""
    command.add_argument("model", type=Path, help=MODEL)
    command.add_argument("data", type=Path, help="questions: .json or .jsonl file")
    command.add_argument("--adapter", type=Path, help=ADAPTER)
    add_row_options(command)
    command.add_argument("--dtype", default="auto", help=DTYPE)
    command.add_argument(
        "--max-new-tokens", type=int, default=1024, help="length at which answers are cut (default: %(default)s)"
    )
    command.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        help="number of answers at a time with transformers (default: %(default)s)",
    )
    add_text_options(command)
    add_size_options(command)


def add_score(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser("score", help="write the log-probs and rewards of every preference row")
    command.add_argument("model", type=Path, help=MODEL)
    command.add_argument("data", type=Path, help="preference rows: file, folder or hub dataset, as for mdpo data")
    command.add_argument("--adapter", type=Path, help=ADAPTER)
    add_row_options(command)
    command.add_argument("--output", type=Path, required=True, help=".jsonl file, a line for each row")
    command.add_argument("--dtype", default="auto", help=DTYPE)
    command.add_argument("--beta", type=float, default=0.1, help="β of the rewards (default: %(default)s)")
    command.add_argument(
        "--objective",
        choices=OBJECTIVE_NAMES,
        default="mdpo",
        help="objective whose branches are scored (default: %(default)s)",
    )
    command.add_argument(
        "--changed-weight",
        type=float,
        help="weight of the words in which the two answers differ, as in training (default: the same as all words)",
    )
    command.add_argument("--negative", default="crop_0_20", help="kind of rejected image (default: %(default)s)")
    command.add_argument("--seed", type=int, default=42, help="seed of the rejected images (default: %(default)s)")
    command.add_argument(
        "--token-budget",
        type=int,
        default=16384,
        help="maximum number of packed tokens in a micro-batch (default: %(default)s)",
    )
    command.add_argument("--reference", type=Path, help="folder of a reference cache to fill for training")
    command.add_argument(
        "--no-check-start",
        action="store_true",
        help="skip the comparison of the first rows with the model's own forward",
    )
    add_text_options(command)
    add_size_options(command)
    command.set_defaults(
        run=Later("mdpo.evaluation.score_command:run_score"),
        results=Later("mdpo.evaluation.score_command:scored_files"),
    )


def add_rank(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser(
        "rank",
        help="score answers by a judge, annotated objects, a function, the model itself or the other answers",
        description="What a judge or a model says is kept as it comes: the same command continues where it stopped.",
    )
    command.add_argument(
        "answers",
        type=Path,
        nargs="+",
        help=".jsonl files of mdpo sample, or others with id, images, prompt, response",
    )
    command.add_argument("--by", choices=RANKINGS, required=True, help="way of scoring: see the groups below")
    command.add_argument("--output", type=Path, required=True, help=".jsonl file, a line for each answer")
    command.add_argument(
        "--length-control",
        action="store_true",
        help="subtract from the scores what length alone predicts within a question",
    )
    command.add_argument(
        "--allow-outside", action="store_true", help="let image paths lead out of the folders of the answers' files"
    )
    _add_ways(command)
    add_text_options(command)
    add_size_options(command)
    command.set_defaults(
        run=Later("mdpo.answers.rank_command:run_rank"),
        results=Later("mdpo.answers.rank_command:ranked_files"),
        check=Later("mdpo.answers.rank_command:check_rank"),
    )


def _add_ways(command: argparse.ArgumentParser) -> None:
    group = add_judge_options(command, required=False)
    group.add_argument(
        "--rubric",
        type=Path,
        help="YAML file with aspects, scale, weights and instructions (default: helpfulness, visual faithfulness and "
        "ethics, from 1 to 5)",
    )
    group.add_argument(
        "--price", type=float, nargs=2, metavar=("IN", "OUT"), help="prices per million prompt and reply tokens"
    )
    group = command.add_argument_group("chair", "F1 of the objects that an answer names against those in the image")
    group.add_argument("--objects", type=Path, help=".json or .jsonl file: id and objects, a list of words")
    group.add_argument("--synonyms", type=Path, help="text file: a line for each object, its words separated by ', '")
    group = command.add_argument_group("function", "a Python function of yours, run in this process")
    group.add_argument(
        "--function",
        metavar="MODULE:NAME",
        help="function of question, answer, images (PIL) and id that returns a number or None",
    )
    group = command.add_argument_group("self", "the model is asked about each claim; minus the number that it rejects")
    group.add_argument("--model", type=Path, help="model to ask: folder, or owner/name[@revision] on the hub")
    group.add_argument("--adapter", type=Path, help=ADAPTER)
    group.add_argument("--dtype", default="auto", help=DTYPE)
    group.add_argument("--batch-size", type=int, default=8, help="number of claims at a time (default: %(default)s)")


def add_judge_options(command: argparse.ArgumentParser, *, required: bool) -> "argparse._ArgumentGroup":
    """For commands that ask a judge; ``mdpo.evaluation.judge_options`` reads them back.

    Returns the group, for a command's own options. required: the command does nothing without a judge.
    """
    group = command.add_argument_group(
        "judge", "any OpenAI-compatible endpoint; replies are cached and never paid for twice"
    )
    group.add_argument("--judge", metavar="MODEL", required=required, help="name of the judge's model")
    group.add_argument("--base-url", help="endpoint URL (default: OpenAI)")
    group.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="environment variable that contains the key (default: %(default)s)",
    )
    group.add_argument(
        "--cache",
        type=Path,
        default=Path("judge-cache.jsonl"),
        help="file of replies, which only grows (default: %(default)s)",
    )
    group.add_argument(
        "--concurrency", type=int, default=8, help="number of requests at the same time (default: %(default)s)"
    )
    group.add_argument("--attempts", type=int, default=6, help="attempts per request (default: %(default)s)")
    group.add_argument(
        "--timeout", type=float, default=120.0, help="seconds to wait for a reply (default: %(default)s)"
    )
    group.add_argument("--dry-run", action="store_true", help="print how much would be sent, and send nothing")
    return group


def add_pairs(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser(
        "pairs",
        help="make preference pairs from scored answers: the best against the worst",
        description="Writes the pairs as mdpo train reads them, and beside them what each was made from "
        "(.origins.jsonl) and how (.record.json).",
    )
    command.add_argument("scored", type=Path, help="scored answers, as mdpo rank writes them")
    command.add_argument("--output", type=Path, required=True, help=".jsonl file to train on")
    command.add_argument(
        "--margin",
        type=float,
        default=0.0,
        help="minimum difference of the two scores; equal scores never make a pair (default: %(default)s)",
    )
    command.add_argument(
        "--per-question",
        type=int,
        default=1,
        help="maximum number of pairs for a question, each answer in one of them (default: %(default)s)",
    )
    command.add_argument("--above", type=float, help="minimum score of a chosen answer (default: no limit)")
    command.add_argument("--below", type=float, help="maximum score of a rejected answer (default: no limit)")
    command.add_argument(
        "--allow-outside", action="store_true", help="let image paths and links lead out of the file's folder"
    )
    command.set_defaults(
        run=Later("mdpo.answers.pairs_command:run_pairs"),
        results=Later("mdpo.answers.pairs_command:paired_files"),
        check=Later("mdpo.answers.pairs_command:check_pairs"),
    )
