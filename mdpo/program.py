"""The program's name, commands and version: what ``mdpo --help`` shows, without the seconds that loading
PyTorch takes.
"""

import argparse
from typing import TypeVar

from mdpo import __doc__ as description
from mdpo import __version__

Parser = TypeVar("Parser", bound=argparse.ArgumentParser)

COMMANDS = {
    "train": "train a model on preference data, or by a YAML file; any setting is --key value",
    "plan": "what takes memory, and the settings that fit; model, data and settings as in train",
    "merge": "an adapter into its base model's weights, with a model card",
    "score": "log-probs and rewards of every row of a preference file",
    "convert": "bring an official checkpoint into transformers' layout",
    "data": "check, preview or sample a data file before training on it",
    "generate": "a model's answers to a file of questions; goes on where it was interrupted",
    "evaluate": "score answers: AMBER, Object HalBench, MMHal-Bench, human raters",
    "sample": "several answers of a model to each question, drawn at random; goes on where it was interrupted",
    "rank": (
        "a score for each answer: by a judge, annotated objects, a function, a model's own doubts, the other answers"
    ),
    "pairs": "preference pairs from scored answers: of each question the best against the worst",
    "loop": "rounds of sample, rank, pairs and train, each from the last model; goes on where it was interrupted",
    "report": "one page (HTML, PNG, Markdown) of what training and evaluation came to",
}
"""What each command does."""


def program(kind: type[Parser]) -> Parser:
    """The parser that the commands are added to. kind: of it, and so of theirs."""
    parser = kind(
        prog="mdpo",
        description=description,
        epilog="Results are written whole or not at all, and never over something else: a report, picture or result "
        "of the same command is replaced, answers are added to, any other file that is there is refused.",
    )
    parser.add_argument("--version", action="version", version=f"mdpo {__version__}")
    return parser


def outline() -> argparse.ArgumentParser:
    """The program with commands that take nothing: for its own help."""
    parser = program(argparse.ArgumentParser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, does in COMMANDS.items():
        commands.add_parser(name, help=does)
    return parser
