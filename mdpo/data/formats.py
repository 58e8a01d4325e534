"""Other people's columns → the canonical ones, told apart by the columns that a row has.

Canonical, TRL's: ``id`` (optional), ``images`` (list), ``prompt``, ``chosen``, ``rejected``, plain or conversational,
``rejected_images`` for negatives that the user brings, ``contrast`` for the answer that is right for the first of them,
``chosen_weights`` and ``rejected_weights`` for spans of the answers that count more or less, and ``system``, ``tools``,
``chat_template_kwargs``, which go to the chat template. To read another format, write one function and put it into
FORMATS.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from .columns import IMAGE_COLUMNS, check_columns, is_empty, without
from .conversations import Columns, implicit_prompt, rows_of, shared_conversation, shared_start
from .problem import Dropped, RowError, shortened

Convert = Callable[[Columns, str], Columns | Dropped]

# The name, for reports, of TRL's format where the prompt is what both answers start with.
PROMPT_INSIDE = "TRL, prompt inside the answers"
# What a row gives the chat template beside its prompt.
TEMPLATE_COLUMNS = ("system", "tools", "chat_template_kwargs")
# What a row may bring beside its pair of answers.
BESIDE = ("rejected_images", "contrast", "chosen_weights", "rejected_weights")


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is recognised and read.

    name: for reports. has: columns that mark it. lacks: a column that rules it out. convert: (the columns that are not
    None, where) → canonical columns; a missing one is left out, and Dropped where the row holds no preference.
    reads: the columns that ``convert`` reads, or that say again what another one says. named: columns that mark it even
    where they say nothing in a row.
    """

    name: str
    has: tuple[str, ...]
    lacks: str | None
    convert: Convert
    reads: frozenset[str]
    named: tuple[str, ...] = ()

    def fits(self, columns: Mapping[str, Any], filled: set[str], names: set[str]) -> bool:
        """filled: of the columns, those that say something. names: all that the row has, null ones included."""
        return filled.issuperset(self.has) and names.issuperset(self.named) and self.lacks not in columns


def to_canonical(
    record: Any, where: str, *, ignore: Iterable[str] = (), answers: bool = True
) -> tuple[str, Columns | Dropped]:
    """The row's format by name, and its canonical columns: ``images`` is always there, as a list.

    Args:
        record: The row.
        where: File and row.
        ignore: Columns to read the row without.
        answers: False where the prompt alone is wanted; then columns of answers are harmless, and no row is dropped.

    Raises RowError where the record is no object, names its images twice, or has a column that is not known.
    """
    if not isinstance(record, Mapping):
        problem = f"is a {type(record).__name__}; expected an object with columns"
        raise RowError.at(where, "row", problem, "give a JSON object a row")
    columns = {str(name): value for name, value in record.items() if value is not None}
    columns = without(columns, ignore)
    filled = {name for name, value in columns.items() if not is_empty(value)}
    names = set(map(str, record)) - set(ignore)
    found = next(format for format in FORMATS if format.fits(columns, filled, names))
    canonical = found.convert(dict(columns), where)
    if isinstance(canonical, Dropped):
        if answers:
            check_columns(columns, found.reads, where, answers=True)
            return found.name, canonical
        canonical = _canonical(columns, where)
    # Of a text alone: beside an image, or as a null, a prompt is more likely to have been forgotten.
    if answers and found.name == "TRL" and not _images(columns, where) and not {"prompt"} & {*canonical, *record}:
        chosen, rejected = canonical.get("chosen"), canonical.get("rejected")
        if isinstance(chosen, str) and isinstance(rejected, str) and (shared := shared_start(chosen, rejected)):
            canonical |= shared
            found = replace(found, name=PROMPT_INSIDE)
    needed = ("prompt", "chosen", "rejected") if answers else ("prompt",)
    if all(name in canonical for name in needed):  # else the caller names what is missing, which says more
        check_columns(columns, _reads(found, columns), where, answers=answers)
    canonical.setdefault("images", _images(columns, where))
    canonical["rejected_images"] = as_list(canonical.get("rejected_images", []))
    return found.name, canonical


def _reads(found: Format, columns: Columns) -> frozenset[str]:
    # Published beside the image itself, image_path says where it came from; alone it would be the image.
    if "image_path" in found.reads and is_empty(columns.get("image")):
        return found.reads - {"image_path"}
    return found.reads


def _images(columns: Columns, where: str) -> list:
    present = [name for name in IMAGE_COLUMNS if name in columns]
    if len(present) > 1:  # an empty list beside the image is no second image
        present = [name for name in present if columns[name] not in ([], ())]
    if len(present) > 1:
        raise RowError.at(where, present[0], f"columns {' and '.join(present)} both name images", "keep one")
    return as_list(columns[present[0]]) if present else []


def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _canonical(columns: Columns, where: str) -> Columns:
    kept = ("id", "prompt", "chosen", "rejected", *BESIDE, *TEMPLATE_COLUMNS)
    return {name: columns[name] for name in kept if name in columns}


def _trl(columns: Columns, where: str) -> Columns:
    """TRL's, with the prompt in a column of its own, or as the start of both answers."""
    canonical = _canonical(columns, where)
    return canonical if "prompt" in canonical else implicit_prompt(canonical, where)


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
        problem = f"is a {type(text).__name__}; expected a JSON object"
        raise RowError.at(where, "text", problem, "give question, chosen and rejected")
    inner = {str(name): value for name, value in text.items() if value is not None}
    for name, value in inner.items():
        if name not in ("question", "chosen", "rejected") and not is_empty(value):
            problem = f"its {shortened(name, 40)} is not read"
            raise RowError.at(where, "text", problem, "give question, chosen and rejected alone")
    named = {"prompt": inner.pop("question")} if "question" in inner else {}
    return _canonical(columns, where) | inner | named


def _sharegpt(columns: Columns, where: str) -> Columns:
    """LLaMA-Factory's ShareGPT: ``conversations, chosen, rejected`` of ``{"from", "value"}``, and ``images``.

    Also POVID's and MMedPO's ``conversations`` and ``rejected_conversations``, whole ones (arXiv 2402.11411).
    """
    answers = shared_conversation(columns, where, "conversations", "rejected_conversations")
    return _canonical(columns, where) | answers


def _ms_swift(columns: Columns, where: str) -> Columns:
    """ms-swift: ``messages`` whose end is the chosen answer, and ``rejected_response`` or ``rejected_messages``.

    Source: docs/source_en/Customization/Custom-dataset.md of modelscope/ms-swift.
    """
    answers = shared_conversation(columns, where, "messages", "rejected_messages")
    return _canonical(columns, where) | answers


def _check_free(columns: Columns, taken: Iterable[str], mark: str, where: str) -> None:
    """Raises RowError where a column would say what the row's format says by others. mark: one of those."""
    twice = next((name for name in taken if not is_empty(columns.get(name))), None)
    if twice is not None:
        raise RowError.at(
            where, twice, f"columns {mark} and {twice} both say which images and answers there are", "keep one"
        )


def _symmpo(columns: Columns, where: str) -> Columns:
    """SymMPO (arXiv 2506.11712): ``question``, two similar pictures, and an answer that is right for each.

    The rejected answer to the second picture (``resp_2_l``) is in none of its terms. Source: muffin/data/datasets.py
    and muffin/train/trainers.py of Liuwq-bit/SymMPO, which publishes the data as Tanh01/SymMPO_Dataset.
    """
    _check_free(columns, (*IMAGE_COLUMNS, *BESIDE[:2]), "image_2", where)
    answers = {"chosen": columns["resp_1_w"], "rejected": columns["resp_1_l"], "contrast": columns["resp_2_w"]}
    pictures = {"images": [columns["image_1"]], "rejected_images": [columns["image_2"]]}
    return _canonical(columns, where) | {"prompt": columns["question"]} | answers | pictures


def _ic_vco(columns: Columns, where: str) -> Columns:
    """IC-VCO (arXiv 2605.31312), its preference part: two ``images``, ``chosen`` is right for the first and
    ``rejected`` for the second.

    ``chosen_response_spans`` and ``rejected_response_spans`` are its objective's own token mask, which is not read: no
    other objective has one. Source: src/icvco/cli/train_vco.py of OPPO-Mente-Lab/IC-VCO (OPPOer/IC-VCO-Dataset).
    """
    _check_free(columns, ("image", "img_path", *BESIDE[:2]), _IC_VCO[0], where)
    # An imagefolder's own file names them so; datasets calls them images.
    pictures = as_list(next((columns[name] for name in _PICTURES if name in columns), []))
    if len(pictures) != 2:
        problem = f"{len(pictures)} images, where a row of IC-VCO has two"
        raise RowError.at(where, "images", problem, "give the image that chosen is right for, then the other")
    beside = {"images": pictures[:1], "rejected_images": pictures[1:]}
    return _canonical(columns, where) | beside | ({"contrast": columns["rejected"]} if "rejected" in columns else {})


def _vlfeedback(columns: Columns, where: str) -> Columns | Dropped:
    """VLFeedback (Silkie, arXiv 2312.10665): ``prompt`` and rated ``completions``; the best rated against the worst.

    A completion's rating is the mean over its aspects, as in the authors' code. Completions without a text or with an
    aspect that has no number ("N/A") are left out; of equals the first is taken.
    """
    completions = rows_of(columns["completions"])
    if not isinstance(completions, list) or not all(isinstance(completion, Mapping) for completion in completions):
        problem = f"is {shortened(columns['completions'])}; expected a list of completions"
        raise RowError.at(where, "completions", problem, "give each its response and annotations")
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
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return mean(ratings) if all(map(math.isfinite, ratings)) else None


_PAIR = frozenset({"prompt", "chosen", "rejected"})
_SYMMPO = ("question", "image_1", "image_2", "resp_1_w", "resp_1_l", "resp_2_w")
_PICTURES = ("images", "images_file_names", "file_names")
_IC_VCO = ("chosen_response_spans", "rejected_response_spans")
_WHOLE = frozenset({"chosen", "rejected", "rejected_response"})
# The first that fits. Rows of the last two need no mark: what they lack is named as a missing column.
FORMATS: list[Format] = [
    Format("VLFeedback", ("completions",), "chosen", _vlfeedback, frozenset({"prompt", "completions"})),
    Format(
        "SymMPO", _SYMMPO, "prompt", _symmpo, frozenset({*_SYMMPO, "resp_2_l", "image_path_1", "image_path_2", "logps"})
    ),
    Format("IC-VCO", (), None, _ic_vco, _PAIR | {*_IC_VCO, *_PICTURES}, _IC_VCO),
    Format("ShareGPT", ("conversations",), "prompt", _sharegpt, _WHOLE | {"conversations", "rejected_conversations"}),
    Format("ms-swift", ("messages",), "prompt", _ms_swift, _WHOLE | {"messages", "rejected_messages"}),
    Format("RLHF-V", ("text",), "prompt", _rlhf_v, frozenset({"text", "image_path"})),
    Format("RLAIF-V", ("question",), "prompt", _rlaif_v, frozenset({"question", "chosen", "rejected", "image_path"})),
    Format("mDPO", ("img_path",), None, _trl, _PAIR),
    Format("TRL", (), None, _trl, _PAIR),
]
