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


def _tokens(objective: Objective, prompt: int, text: int, response: int) -> tuple[int, int]:
    pictures = objective.pictures
    prompts = {picture: text if picture == "none" else prompt for picture in pictures}
    responses = response * sum(pictures.values())
    return sum(prompts.values()) + responses, sum(prompts[m] * count for m, count in pictures.items()) + responses


def _brings(objective: Objective) -> str:
    """What a row needs beside its prompt and its two answers. contrast: the answer that is right for the rejected
    image.
    """
    count = objective.negatives
    parts = ["an image"] if count or "none" in objective.pictures else []
    parts += [f"{count} rejected image{'s' * (count > 1)}"] if count else []
    parts += ["contrast"] if objective.reads_contrast else []
    return ", ".join(parts) or "nothing more"
