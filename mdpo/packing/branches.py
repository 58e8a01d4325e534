"""What a branch is called: a response read with a picture, ``response@picture``.

    chosen@image       short: chosen            rejected@image   short: rejected
    chosen@negative    short: image_rejected    chosen@negative_2, …: the row's further rejected pictures
    rejected@negative                           contrast@negative: the answer that is right for the rejected picture
    chosen@none        the question without its picture

One name each: the short one where there is one.
"""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from mdpo.errors import InputError

RESPONSES = ("chosen", "rejected", "contrast")
PICTURES = ("image", "negative", "none")
MDPO_BRANCHES = ("chosen", "rejected", "image_rejected")

_SHORT = {"chosen@image": "chosen", "rejected@image": "rejected", "chosen@negative": "image_rejected"}
_LONG = {short: long for long, short in _SHORT.items()}
_MOST_NEGATIVES = 64  # a mistyped number beyond it
_PICTURES = {*PICTURES, *(f"negative_{number}" for number in range(2, _MOST_NEGATIVES + 1))}


class Branch(NamedTuple):
    """A response read with a picture: chosen, rejected or contrast, with image, none, negative, negative_2, …"""

    response: str
    picture: str

    @property
    def name(self) -> str:
        long = f"{self.response}@{self.picture}"
        return _SHORT.get(long, long)

    @property
    def needs_image(self) -> bool:
        """Whether only an example with an image has it."""
        return self.picture != "image" or self.response == "contrast"

    @property
    def negative(self) -> int:
        """Which of the row's rejected pictures is read, counted from 1; 0 for none of them."""
        if not self.picture.startswith("negative"):
            return 0
        return int(self.picture.removeprefix("negative").removeprefix("_") or 1)


def branch_of(name: str) -> Branch:
    """The branch of a name, long or short. Raises InputError for another, with the nearest name."""
    response, _, picture = _LONG.get(name, name).partition("@")
    if response in RESPONSES and picture in _PICTURES:
        return Branch(response, picture)
    known = [*_LONG, *(f"{response}@{picture}" for response in RESPONSES for picture in (*PICTURES, "negative_2"))]
    near = difflib.get_close_matches(name, known, 1, 0.0)[0]
    raise InputError(
        f"branch {name!r} is unknown; did you mean {near}? A branch is response@image: {', '.join(RESPONSES)} "
        f"with image, negative, negative_2 ... negative_{_MOST_NEGATIVES} or none"
    )


def pictures_of(branches: Iterable[str]) -> dict[str, list[Branch]]:
    """The branches by the picture that they read, in the order in which each is first read."""
    found: dict[str, list[Branch]] = {}
    for branch in map(branch_of, branches):
        found.setdefault(branch.picture, []).append(branch)
    return found


def cost_of(branches: Iterable[str], *, packed: bool) -> str:
    """Tokens of an example with these branches, for a prompt of P and answers of R: each picture's prompt once where
    they are packed, else one for each branch."""
    pictures = pictures_of(branches)
    answers = sum(map(len, pictures.values()))
    prompts = len(pictures) if packed else answers
    return "+".join(f"{'' if count == 1 else count}{letter}" for count, letter in ((prompts, "P"), (answers, "R")))


def negatives_of(branches: Iterable[str]) -> int:
    """How many rejected pictures a row needs for these branches."""
    return max((branch_of(name).negative for name in branches), default=0)
