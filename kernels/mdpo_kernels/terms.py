"""A preference objective as a matrix: terms over the rewards of branches.

A branch is a response read with a picture, and Δ_b = β(π_b − ρ_b) is its reward (π policy, ρ reference). An example's
loss is a sum of terms,

    loss = Σ_t weight_t · f_t(u_t),    u_t = Σ_b C[t, b]·Δ_b − offset_t

with the links f

    log_sigmoid   −log σ(u); of several rows u_1 … u_K, log(1 + Σ_k exp(−u_k)): better than all of these
    square        u²
    linear        −u
"""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, NamedTuple, get_args

import torch

from .checks import is_finite

Link = Literal["log_sigmoid", "square", "linear"]
LINKS: tuple[str, ...] = get_args(Link)
LOG_SIGMOID, SQUARE, LINEAR = range(3)

_TINY = torch.finfo(torch.float32).tiny
# mDPO's.
BRANCHES = ("chosen", "rejected", "image_rejected")


@dataclass(frozen=True)
class Term:
    """One term of an objective.

    An example that lacks one of a term's branches goes without the term.

    Attributes:
        name: of its values among a loss's terms.
        rows: {branch: coefficient}, or for log_sigmoid several of them, as Plackett and Luce rank one above all others.
        link: "log_sigmoid", "square" or "linear".
        weight: at least 0.
        offset: in reward units, subtracted in every row.

    Raises:
        ValueError: what is none of these.
    """

    name: str
    rows: Mapping[str, float] | Sequence[Mapping[str, float]] = field(hash=False)
    _: KW_ONLY
    link: Link = "log_sigmoid"
    weight: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a term's name is {self.name!r}; expected a text")
        if self.link not in LINKS:
            raise ValueError(f"term {self.name}: link is {self.link!r}; expected one of {', '.join(LINKS)}")
        if not is_finite(self.weight) or self.weight < 0:
            raise ValueError(f"term {self.name}: weight is {self.weight!r}; expected a finite number, at least 0")
        if not is_finite(self.offset):
            raise ValueError(f"term {self.name}: offset is {self.offset!r}; expected a finite number")
        # Copies: what the caller does with its own afterwards is another objective.
        rows = tuple(map(dict, self._checked_rows()))
        object.__setattr__(self, "rows", rows[0] if isinstance(self.rows, Mapping) else rows)
        if len(rows) > 1 and self.link != "log_sigmoid":
            raise ValueError(
                f"term {self.name}: {len(rows)} rows with link {self.link}; only log_sigmoid takes several"
            )

    @property
    def matrix(self) -> tuple[Mapping[str, float], ...]:
        """The rows, also where there is one."""
        return (self.rows,) if isinstance(self.rows, dict) else self.rows  # pyright: ignore[reportReturnType]

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that the term reads, each once, in the order in which the rows name them."""
        return tuple(dict.fromkeys(branch for row in self.matrix for branch in row))

    def _checked_rows(self) -> Sequence[Mapping[str, float]]:
        rows = (self.rows,) if isinstance(self.rows, Mapping) else self.rows
        several = isinstance(rows, Sequence) and not isinstance(rows, str) and len(rows) > 0
        if not several or not all(isinstance(row, Mapping) and row for row in rows):
            raise ValueError(
                f"term {self.name}: rows is {self.rows!r}; expected {{branch: coefficient}}, or several of them"
            )
        for branch, coefficient in ((branch, value) for row in rows for branch, value in row.items()):
            if not isinstance(branch, str) or not is_finite(coefficient) or abs(coefficient) < _TINY:
                raise ValueError(
                    f"term {self.name}: {branch!r} has the coefficient {coefficient!r}; expected a branch's name "
                    "and a finite number other than 0 in float32"
                )
        return rows


class Matrix(NamedTuple):
    """Terms over K branches, as a kernel takes them. names, links, sizes (in rows), weights and offsets: of each of T
    terms.
    coefficients: of each of all rows, K by K."""

    branches: tuple[str, ...]
    names: tuple[str, ...]
    links: tuple[int, ...]
    sizes: tuple[int, ...]
    coefficients: tuple[float, ...]
    weights: tuple[float, ...]
    offsets: tuple[float, ...]

    @property
    def rows(self) -> list[list[list[tuple[int, float]]]]:
        """Of each term each row's coefficients other than 0, with their branch."""
        width, values = len(self.branches), self.coefficients
        rows = [[(b, c) for b, c in enumerate(values[i : i + width]) if c] for i in range(0, len(values), width)]
        each = iter(rows)
        return [list(itertools.islice(each, size)) for size in self.sizes]


def matrix_of(terms: Sequence[Term], branches: Sequence[str]) -> Matrix:
    """Raises ValueError where terms and branches do not fit one another, with the nearest name."""
    listed = isinstance(branches, Sequence) and not isinstance(branches, str) and len(branches) > 0
    if not listed or not all(isinstance(name, str) for name in branches) or len(set(branches)) != len(branches):
        raise ValueError(f"branches is {branches!r}; expected names, each once, as in {BRANCHES}")
    if not isinstance(terms, Sequence) or not terms or not all(isinstance(term, Term) for term in terms):
        raise ValueError(f"terms is {terms!r}; expected a sequence of Term, as mdpo_terms() returns")
    names = [term.name for term in terms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"terms has two by the name {twice!r}; expected each once")
    for term in terms:
        for branch in term.branches:
            if branch not in branches:
                near = difflib.get_close_matches(branch, branches, 1, 0.0)[0]
                raise ValueError(
                    f"term {term.name}: branch {branch!r} is none of {', '.join(branches)}; did you mean {near}?"
                )
    return Matrix(
        branches=tuple(branches),
        names=tuple(names),
        links=tuple(LINKS.index(term.link) for term in terms),
        sizes=tuple(len(term.matrix) for term in terms),
        coefficients=tuple(float(row.get(name, 0.0)) for term in terms for row in term.matrix for name in branches),
        weights=tuple(float(term.weight) for term in terms),
        offsets=tuple(float(term.offset) for term in terms),
    )


def mdpo_terms(
    *, conditional: bool = True, anchors: Sequence[str] = ("chosen",), anchor: float | Sequence[float] = 0.0
) -> tuple[Term, ...]:
    """mDPO's terms over the branches chosen, rejected, image_rejected.

        response_preference         −log σ(Δchosen − Δrejected)           DPO (Rafailov et al. 2023, eq. 7)
        image_preference            −log σ(Δchosen − Δimage_rejected)     CoPO (mDPO, Wang et al. 2024, section 3)
        anchor_x, for x in anchors  −log σ(s·(Δx − δx))                   AncPO; s = +1 for chosen, −1 for the others

    Args:
        conditional: with the image preference; without it, and with anchors=(), this is DPO.
        anchors: the branches to anchor.
        anchor: their offsets δ in reward units, a number for all or one per entry.

    Raises:
        ValueError: names and numbers that are none of these.
    """
    terms = [Term("response_preference", {"chosen": 1.0, "rejected": -1.0})]
    if conditional:
        terms.append(Term("image_preference", {"chosen": 1.0, "image_rejected": -1.0}))
    for name, offset in zip(anchors, _offsets(anchors, anchor), strict=True):
        sign = 1.0 if name == "chosen" else -1.0
        terms.append(Term(f"anchor_{name}", {name: sign}, offset=sign * offset))
    return tuple(terms)


def _offsets(anchors: Sequence[str], anchor: float | Sequence[float]) -> list[float]:
    """One for each of the anchors."""
    if isinstance(anchors, str):
        raise ValueError(f"anchors is the string {anchors!r}; expected a sequence of names, as in ({anchors!r},)")
    if not isinstance(anchors, Sequence):
        raise ValueError(f"anchors is {anchors!r}; expected a sequence of names out of {BRANCHES}")
    unknown = [name for name in anchors if name not in BRANCHES]
    if unknown or len(set(anchors)) != len(anchors):
        raise ValueError(f"anchors is {anchors!r}; expected names out of {BRANCHES}, each at most once")
    given = list(anchor) if isinstance(anchor, Sequence) else [anchor] * len(anchors)
    if not is_finite(*given) or len(given) != len(anchors) or not (isinstance(anchor, Sequence) or is_finite(anchor)):
        raise ValueError(f"anchor is {anchor!r}; expected a finite number, or one for each of anchors={anchors!r}")
    return [float(offset) for offset in given]
