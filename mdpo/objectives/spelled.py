"""The setting `objective`: a preset's name, or terms spelled out."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mdpo.errors import InputError
from mdpo.shown import shown
from mdpo_kernels import Term
from mdpo_kernels.terms import LINKS, matrix_of

from .objective import Objective
from .presets import PRESETS, mdpo

_KEYS = ("name", "rows", "link", "weight", "offset")
_MOST_ROWS = 256  # of all terms: beyond it a list was made by mistake, and each row is a piece of the loss's kernel


def objective_of(args: Any) -> Objective:
    """The objective of a run. args: an ``MDPOConfig``."""
    if args.objective == "mdpo":
        return mdpo(args.conditional, tuple(args.anchors), args.anchor)
    if isinstance(args.objective, str):
        return PRESETS[args.objective]
    terms = [Term(**term) for term in args.objective]
    return Objective.of(*terms, source="the run's configuration")


def read_objective(value: Any) -> str | list[dict[str, Any]]:
    """The setting as a run keeps and records it: a preset's name, or its terms with every key, in plain values.

    value: a preset's name; terms, each a mapping (name, rows; link, weight, offset) or a ``Term``; or an ``Objective``,
        of which the branches count that its terms read.

    Raises InputError, "objective: what is wrong; what to do", for an unknown preset, key, link or branch with the
    nearest name, and for values that make no objective.
    """
    if isinstance(value, Objective):
        value = next((name for name, preset in PRESETS.items() if preset == value), value.terms)
    if isinstance(value, str):
        name = value.strip().lower()
        if name not in PRESETS:
            raise InputError(
                f"objective: {_shown(value)} is unknown; did you mean {_nearest(name, PRESETS)}? Choose from "
                f"{', '.join(PRESETS)}, or spell out a list of terms"
            )
        return name
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)) or not value:
        raise InputError(
            f"objective is {_shown(value)}; expected {', '.join(PRESETS)} or a list of terms such as "
            f"{{name: a, rows: {{chosen: 1, rejected: -1}}}}"
        )
    try:
        objective = Objective.of(*(_term(term, number) for number, term in enumerate(value, 1)), source="")
        rows = sum(len(term.matrix) for term in objective.terms)
        if rows > _MOST_ROWS:
            raise InputError(f"its terms have {rows} rows in all; at most {_MOST_ROWS} are read: leave some out")
        matrix_of(objective.terms, objective.branches)
    except ValueError as error:
        raise InputError(f"objective: {_cut(shown(error), 600)}") from error
    return [_plain(term) for term in objective.terms]


def _term(value: Any, number: int) -> Term:
    """number: of the term in the list, from 1."""
    if isinstance(value, Term):
        value = _plain(value)
    if not isinstance(value, Mapping):
        raise InputError(f"term {number} is {_shown(value)}; expected a mapping with name and rows")
    name, called = value.get("name"), f"term {number}"
    if "name" in value and (not isinstance(name, str) or not re.fullmatch(r"[\w.@-]{1,64}", name)):
        raise InputError(f"{called}: name is {_shown(name)}; give a word of letters, digits, _ . @ and -")
    called = f"term {name}" if name else called
    for key in value:
        if key not in _KEYS:
            raise InputError(f"{called}: key {_shown(key)} is unknown; did you mean {_nearest(str(key), _KEYS)}?")
    for key in _KEYS[:2]:
        if key not in value:
            raise InputError(f"{called}: key {key!r} is missing; a term has a name and rows")
    link = value.get("link", LINKS[0])
    if link not in LINKS:
        raise InputError(
            f"{called}: link {_shown(link)} is unknown; did you mean {_nearest(str(link), LINKS)}? Choose from "
            f"{', '.join(LINKS)}"
        )
    return Term(**value)


def _plain(term: Term) -> dict[str, Any]:
    """The term in what JSON can hold, with every key."""
    rows = [{branch: float(coefficient) for branch, coefficient in row.items()} for row in term.matrix]
    return {
        "name": term.name,
        "rows": rows if len(rows) > 1 else rows[0],
        "link": term.link,
        "weight": float(term.weight),
        "offset": float(term.offset),
    }


def _nearest(name: str, names: Collection[str]) -> str:
    return difflib.get_close_matches(name, names, 1, 0.0)[0]


def _shown(value: object) -> str:
    return _cut(shown(repr(value)), 80)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
