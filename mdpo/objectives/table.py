"""What each preset costs and asks of a row, counted from its branches."""

from typing import NamedTuple

from .objective import Objective
from .presets import PRESETS

# A usual pair: the prompt with its picture, the prompt without it, and a response.
PROMPT, TEXT, RESPONSE = 650, 50, 100


class Row(NamedTuple):
    """packed: tokens of a pair whose branches share their pictures' prompts.

    unshared: with a prompt for every branch.
    """

    name: str
    branches: tuple[str, ...]
    packed: int
    unshared: int
    brings: str


def rows(prompt: int = PROMPT, text: int = TEXT, response: int = RESPONSE) -> list[Row]:
    """A row for each preset. prompt: tokens of a prompt with its picture; text: without it; response: of an answer."""
    return [
        Row(name, each.branches, *_tokens(each, prompt, text, response), _brings(each))
        for name, each in PRESETS.items()
    ]


def help_table() -> str:
    """The rows as `mdpo train --help` prints them."""
    head = ("preset", "packed", "unshared", "a row brings", "branches")
    lines = [
        head,
        *((row.name, f"{row.packed:,}", f"{row.unshared:,}", row.brings, ", ".join(row.branches)) for row in rows()),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = "\n".join(
        f"  {line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:<{widths[3]}}  {line[4]}"
        for line in lines
    )
    return (
        f"objectives, as objective: NAME; tokens of a pair with a prompt of {PROMPT} tokens ({TEXT} without its "
        f"picture) and answers of {RESPONSE},\npacked as here and with a prompt for every branch:\n{text}\n"
        "or a list of terms, each with name and rows, and link, weight and offset where they are not log_sigmoid, 1 "
        "and 0"
    )


def _tokens(objective: Objective, prompt: int, text: int, response: int) -> tuple[int, int]:
    pictures = objective.pictures
    prompts = {picture: text if picture == "none" else prompt for picture in pictures}
    responses = response * sum(pictures.values())
    return sum(prompts.values()) + responses, sum(prompts[m] * count for m, count in pictures.items()) + responses


def _brings(objective: Objective) -> str:
    """What a row needs beside its prompt and its two answers."""
    count = objective.negatives
    parts = ["a picture"] if count or "none" in objective.pictures else []
    parts += [f"{count} rejected picture{'s' * (count > 1)}"] if count else []
    parts += ["the answer that is right for it"] if objective.reads_contrast else []
    return ", ".join(parts) or "nothing more"
