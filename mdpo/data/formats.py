"""Other people's columns → the canonical ones, told apart by the columns that a row has.

Canonical, TRL's: ``id`` (optional), ``images`` (list), ``prompt``, ``chosen``, ``rejected``, plain or conversational,
and ms-swift's ``rejected_images`` for negatives that the user brings. To read another format, write one function and
put it into FORMATS.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .problem import Dropped, RowError

Columns = dict[str, Any]
Convert = Callable[[Columns, str], Columns | Dropped]

# What a row gives the chat template beside its prompt.
TEMPLATE_COLUMNS = ("system", "tools", "chat_template_kwargs")
_IMAGE_COLUMNS = ("img_path", "images", "image")
_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is recognised and read.

    name: for reports. has: columns that mark it. lacks: a column that rules it out. convert: (the columns that are not
    None, where) → canonical columns; a missing one is left out, and Dropped where the row holds no preference.
    """

    name: str
    has: tuple[str, ...]
    lacks: str | None
    convert: Convert

    def fits(self, columns: Mapping[str, Any]) -> bool:
        return all(name in columns for name in self.has) and self.lacks not in columns


def to_canonical(record: Any, where: str) -> tuple[str, Columns | Dropped]:
    """The row's format by name, and its canonical columns: ``images`` is always there, as a list.

    Raises RowError where the record is no object, or names its images twice.
    """
    if not isinstance(record, Mapping):
        problem = f"expected an object with columns, found a {type(record).__name__}"
        raise RowError.at(where, "row", problem, "give a JSON object a row")
    columns = {str(name): value for name, value in record.items() if value is not None}
    found = next(format for format in FORMATS if format.fits(columns))
    canonical = found.convert(columns, where)
    if not isinstance(canonical, Dropped):
        canonical["images"] = _images(columns, where)
        canonical["rejected_images"] = as_list(columns.get("rejected_images", []))
        canonical |= {name: columns[name] for name in TEMPLATE_COLUMNS if name in columns}
    return found.name, canonical


def _images(columns: Columns, where: str) -> list:
    present = [name for name in _IMAGE_COLUMNS if name in columns]
    if len(present) > 1:
        raise RowError.at(where, present[0], f"columns {' and '.join(present)} both name images", "keep one")
    return as_list(columns[present[0]]) if present else []


def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _canonical(columns: Columns, where: str) -> Columns:
    return {name: columns[name] for name in ("id", "prompt", "chosen", "rejected") if name in columns}


def _rlaif_v(columns: Columns, where: str) -> Columns:
    """RLAIF-V (arXiv 2405.17220): ``image, question, chosen, rejected``."""
    return _canonical(columns, where) | {"prompt": columns["question"]}


def _rlhf_v(columns: Columns, where: str) -> Columns:
    """RLHF-V (arXiv 2312.00849): ``text`` is a JSON string of ``question, chosen, rejected``."""
    text = columns["text"]
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RowError.at(where, "text", f"not JSON: {error}", "give question, chosen and rejected") from error
    if not isinstance(text, Mapping):
        problem = f"expected a JSON object, found a {type(text).__name__}"
        raise RowError.at(where, "text", problem, "give question, chosen and rejected")
    inner = {name: value for name, value in text.items() if value is not None}
    named = {"prompt": inner["question"]} if "question" in inner else {}
    return _canonical(columns, where) | _canonical(inner, where) | named


def _sharegpt(columns: Columns, where: str) -> Columns:
    """LLaMA-Factory's ShareGPT: ``conversations, chosen, rejected`` of ``{"from", "value"}``, and ``images``."""
    canonical = _canonical(columns, where)
    turns = rows_of(columns["conversations"])
    if not isinstance(turns, list):
        problem = f"expected a list of turns, found a {type(turns).__name__}"
        raise RowError.at(where, "conversations", problem, 'give [{"from": "human", "value": …}]')
    canonical["prompt"] = [_turn(turn, where, "conversations") for turn in turns]
    for name in ("chosen", "rejected"):
        if isinstance(canonical.get(name), Mapping):
            canonical[name] = [_turn(canonical[name], where, name)]
    return canonical


def _turn(turn: Any, where: str, field: str) -> dict[str, Any]:
    if isinstance(turn, Mapping):
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if isinstance(role, str) and role in _ROLES and isinstance(content, str):
            return {"role": _ROLES[role], "content": content}
    raise RowError.at(where, field, f"a turn needs from ({', '.join(_ROLES)}) and value", f"found {turn!r:.80}")


def _vlfeedback(columns: Columns, where: str) -> Columns | Dropped:
    """VLFeedback (Silkie, arXiv 2312.10665): ``prompt`` and rated ``completions``; the best rated against the worst.

    A completion's rating is the mean over its aspects, as in the authors' code. Completions without a text or with an
    aspect that has no number ("N/A") are left out; of equals the first is taken.
    """
    completions = rows_of(columns["completions"])
    if not isinstance(completions, list) or not all(isinstance(completion, Mapping) for completion in completions):
        problem = "expected a list of completions with response and annotations"
        raise RowError.at(where, "completions", problem, f"found {columns['completions']!r:.80}")
    rated = [(_rating(completion.get("annotations")), completion.get("response")) for completion in completions]
    rated = [(rating, text) for rating, text in rated if rating is not None and isinstance(text, str) and text.strip()]
    if not rated:
        return Dropped(where, "no completion has a rating for every aspect")
    best, worst = (choose(rated, key=lambda pair: pair[0]) for choose in (max, min))
    if best[0] == worst[0]:
        return Dropped(where, "all completions are rated the same")
    return _canonical(columns, where) | {"chosen": best[1], "rejected": worst[1]}


def _rating(annotations: Any) -> float | None:
    if not isinstance(annotations, Mapping) or not annotations:
        return None
    try:
        ratings = [float(annotation["Rating"]) for annotation in annotations.values()]
    except (TypeError, KeyError, ValueError):
        return None
    return mean(ratings) if all(map(math.isfinite, ratings)) else None


def rows_of(value: Any) -> Any:
    """A list of dicts that ``datasets`` turned into a dict of lists, turned back; anything else as it is."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(column, list) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) != 1:
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]


# The first that fits. Rows of the last two need no mark: what they lack is named as a missing column.
FORMATS: list[Format] = [
    Format("VLFeedback", ("completions",), "chosen", _vlfeedback),
    Format("ShareGPT", ("conversations",), "prompt", _sharegpt),
    Format("RLHF-V", ("text",), "prompt", _rlhf_v),
    Format("RLAIF-V", ("question",), "prompt", _rlaif_v),
    Format("mDPO", ("img_path",), None, _canonical),
    Format("TRL", (), None, _canonical),
]
