"""Preference objectives by name: the branches that each compares, and its terms over their rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mdpo.packing.branches import MDPO_BRANCHES, branch_of
from mdpo_kernels import Term, mdpo_terms


@dataclass(frozen=True)
class Objective:
    """branches: what a row has to be read as, by name. terms: over their rewards. source: the paper and its equation."""

    branches: tuple[str, ...]
    terms: tuple[Term, ...]
    source: str

    @classmethod
    def of(cls, *terms: Term, source: str) -> "Objective":
        """Of terms whose branches may have long names; branches in the order in which the terms use them."""
        used = dict.fromkeys(branch_of(name).name for term in terms for row in term.matrix for name in row)
        return cls(tuple(used), terms, source)


def mdpo(
    conditional: bool = True, anchors: Sequence[str] = ("chosen",), anchor: float | Sequence[float] = 0.0
) -> Objective:
    """mDPO's, with its own parameters; see ``mdpo_kernels.mdpo_terms``."""
    terms = mdpo_terms(conditional=conditional, anchors=anchors, anchor=anchor)
    return Objective(MDPO_BRANCHES, terms, "mDPO, Wang et al. 2024 (arXiv 2406.11839), eqs. 1 to 6")


PRESETS = {"mdpo": mdpo()}


def objective_of(args: Any) -> Objective:
    """The objective of a run. args: an ``MDPOConfig``."""
    return mdpo(args.conditional, tuple(args.anchors), args.anchor)
