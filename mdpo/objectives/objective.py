"""An objective: the branches that it compares, and its terms over their rewards."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mdpo.errors import InputError
from mdpo.packing.branches import branch_of, negatives_of, pictures_of
from mdpo_kernels import Term


@dataclass(frozen=True)
class Objective:
    """branches: what a row has to be read as, by name. terms: over their rewards.

    source: the paper and its equation.
    """

    branches: tuple[str, ...]
    terms: tuple[Term, ...]
    source: str

    @classmethod
    def of(cls, *terms: Term, source: str) -> "Objective":
        """Of terms whose branches may have long names; branches in the order in which the terms use them.

        Raises InputError for an unknown branch, with the nearest name, where a row names one branch twice, and where a
        rejected picture is read while one before it is not: all up to the last one would be made.
        """
        named = tuple(replace(term, rows=[_short(term.name, row) for row in term.matrix]) for term in terms)
        branches = _used(named)
        _check_negatives(branches)
        return cls(branches, named, source)

    @property
    def read(self) -> tuple[str, ...]:
        """The branches that a term reads, in the order of `branches`; mDPO's third has no reader without its
        two terms.
        """
        used = _used(self.terms)
        return tuple(branch for branch in self.branches if branch in used)

    @property
    def images(self) -> int:
        """Of an example: the row's own and its rejected ones, as far as a term reads them."""
        return sum(picture != "none" for picture in pictures_of(self.read))

    @property
    def negatives(self) -> int:
        """Rejected pictures that a row needs."""
        return negatives_of(self.read)

    @property
    def reads_contrast(self) -> bool:
        """Whether a row needs the answer that is right for its rejected picture."""
        return any(branch_of(name).response == "contrast" for name in self.read)

    @property
    def pictures(self) -> dict[str, int]:
        """How many responses read each picture, as pictures are shared by them: `image`, `negative`, …, `none`."""
        return {picture: len(branches) for picture, branches in pictures_of(self.read).items()}


def _used(terms: tuple[Term, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for term in terms for name in term.branches))


def _check_negatives(branches: tuple[str, ...]) -> None:
    last = max(branches, key=lambda name: branch_of(name).negative, default="")
    read = {branch_of(name).negative for name in branches}
    for number in range(1, negatives_of(branches)):
        if number not in read:
            missing = "negative" if number == 1 else f"negative_{number}"
            raise InputError(
                f"branch {last!r} is read, and none with {missing}; number the rejected images without a gap: "
                "negative, negative_2, ..."
            )


def _short(term: str, row: Mapping[str, float]) -> dict[str, float]:
    """The row by the branches' short names. term: whose it is, for messages."""
    try:
        names = [branch_of(name).name for name in row]
    except InputError as error:
        raise InputError(f"term {term}: {error}") from error
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"term {term}: a row names the branch {twice} twice, by its short and its long name; keep one")
    return dict(zip(names, row.values(), strict=True))
