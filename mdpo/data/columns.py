"""What the name of a column says about a row: read, harmless, or an error that names it.

A column that nobody reads may still change what a row means (a video, an earlier turn, a weight). So no column is
dropped in silence: it is read by the row's format, or it is on a list of names that only describe a row, or the row is
refused with the column's name, what to do, and the setting that ignores it (``ignore_columns``).
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from .problem import RowError, names

IMAGE_COLUMNS = ("img_path", "images", "image")
COMMON = frozenset(
    {
        "id",
        *IMAGE_COLUMNS,
        "rejected_images",
        "contrast",
        "chosen_weights",
        "rejected_weights",
        "system",
        "tools",
        "chat_template_kwargs",
    }
)
PROMPTS = ("prompt", "question", "conversations", "messages", "conversation", "instruction", "query")

# Names under which published preference data keeps notes about a row, never what a model is to see. Sources: the cards
# of openbmb/RLAIF-V-Dataset and RLHF-V-Dataset (ds_name, origin_*, idx), MMInstruction/VLFeedback (models),
# trl-lib/ultrafeedback_binarized and HuggingFaceH4/ultrafeedback_binarized (score_*, prompt_id), MMPR in its datasets
# form (dataset_name), wangclnlp/vision-feedback-mix-binarized (origin_pre_dataset); the rest are pandas' and datasets'.
HARMLESS = frozenset({
    "idx", "index", "__index_level_0__", "Unnamed: 0", "uid", "uuid", "prompt_id", "question_id", "sample_id",
    "image_id", "img_id", "task_id", "step_id", "hash", "ds_name", "dataset", "dataset_name", "data_source", "source",
    "source_name", "origin", "origin_dataset", "origin_split", "origin_split_inner_idx", "origin_pre_dataset", "split",
    "subset", "category", "subcategory", "task", "task_type", "question_type", "topic", "tags", "lang", "language",
    "license", "annotator", "created_at", "timestamp", "model", "models", "model_name", "chosen_model",
    "rejected_model", "generator", "score_chosen", "score_rejected", "chosen_score", "rejected_score",
    "chosen_rating", "rejected_rating", "width", "height", "image_width", "image_height", "image_size",
    "meta", "metadata", "meta_info", "comment", "comments", "note", "notes",
})  # fmt: skip

# What a question may bring along besides: answers to it, and how a trainer would weigh them. ``mdpo generate`` asks.
ANSWERS = frozenset({
    "chosen", "rejected", "rejected_images", "rejected_response", "rejected_messages", "rejected_conversations",
    "completions", "answer", "answers", "response", "responses", "output", "outputs", "label", "labels", "caption",
    "captions", "reference", "references", "ground_truth", "gt", "gt_answer", "target", "truth", "solution",
    "explanation", "rationale", "margin", "weight", "score",
})  # fmt: skip

_IMAGE_WORDS = {"img", "imgs", "image", "images", "picture", "pictures", "pic", "pics", "photo", "photos", "pixel",
                "pixels"}  # fmt: skip
_FILE_NAMES = {"file", "files", "filename", "file_name", "filepath", "file_path", "path", "paths"}
_MEDIA_WORDS = {"video", "videos", "audio", "audios", "frames", "sound", "speech", "voice"}
_CHANGES = {
    "history": ("holds earlier turns, which would be lost", "write them as messages into prompt"),
    "objects": ("holds boxes to be written into the text, which would be lost", "write them into the text"),
    "margin": ("asks for a margin between the answers, which the loss does not have", "drop the column"),
    "weight": ("asks for a weight of the row, which the loss does not have", "drop the column"),
    "label": ("judges a single answer; rows here are pairs", "give chosen and rejected"),
    "completions": ("holds rated answers beside chosen or rejected", "keep one of the two"),
}
_LIKE = {
    "prompt": {"question", "instruction", "query", "input", "text", "conversation", "user", "problem"},
    "chosen": {
        "response",
        "answer",
        "output",
        "chosen_response",
        "response_chosen",
        "preferred",
        "accepted",
        "winner",
        "completion",
        "y_w",
    },
    "rejected": {"rejected_response", "response_rejected", "dispreferred", "loser", "hallucinated", "y_l"},
}


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing: null, no text, NaN (pandas' null), or a container of such (Arrow's null struct)."""
    if value is None or isinstance(value, (str, bytes)):
        return not value
    if isinstance(value, float):
        return math.isnan(value)
    try:
        if isinstance(value, (list, tuple)):
            return all(map(is_empty, value))
        return isinstance(value, Mapping) and all(map(is_empty, value.values()))
    except RecursionError:  # nested about as deep as JSON can be read
        return False


def check_columns(columns: Mapping[str, Any], reads: Set[str], where: str, *, answers: bool) -> None:
    """Raises RowError where a column that says something is neither read nor harmless.

    Args:
        columns: The row.
        reads: The names that its format reads, besides COMMON.
        where: File and row.
        answers: False for a question alone, where answers are harmless.
    """
    harmless = HARMLESS if answers else HARMLESS | ANSWERS
    unread = [
        name
        for name, value in columns.items()
        if name not in COMMON and name not in reads and name not in harmless and not is_empty(value)
    ]
    if not unread:
        return
    problem, remedy = _meaning(unread[0], columns, reads)
    if len(unread) > 1:
        problem += f" (not read either: {names(unread[1:])})"
    remedy += f", or set ignore_columns (--ignore-columns {names(unread, separator=',')}) to read rows without it"
    raise RowError.at(where, unread[0], problem, remedy)


def missing(column: str, columns: Mapping[str, Any], needed: Sequence[str], where: str) -> RowError:
    """The error of a row without ``column``: whether it is null, what was found, and which name may be meant.

    Args:
        columns: The row as it came, nulls included.
        needed: The columns that rows need.
    """
    if column in columns:
        problem = f"column {column!r} is null"
    else:
        problem = f"column {column!r} is missing; found {names(columns)}"
    like = next((name for name in columns if str(name).lower() in {column, *_LIKE[column]} and name != column), None)
    if like is not None and not is_empty(columns[like]):
        return RowError.at(where, column, problem, f"rename {str(like)!r} to {column}")
    remedy = f"rows need {', '.join(needed)}, and img_path (mDPO) or images (TRL)"
    if column in columns:
        remedy = "give it a text, or drop the row"
    return RowError.at(where, column, problem, remedy)


def _meaning(name: str, columns: Mapping[str, Any], reads: Set[str]) -> tuple[str, str]:
    """The problem with a column that is not read, and the remedy."""
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    image = next((column for column in IMAGE_COLUMNS if not is_empty(columns.get(column))), None)
    prompt = next((column for column in PROMPTS if column in reads and column in columns), None)
    if name in PROMPTS and prompt is not None:
        return f"columns {prompt} and {name} both give the prompt", "keep one"
    if words & _MEDIA_WORDS:
        return "is video or sound, which is not read: the row would lose it", "drop the row or the column"
    if "rejected" in words and words & _IMAGE_WORDS:
        return "is not read", "rename it to rejected_images"
    if words & _IMAGE_WORDS or name.lower() in _FILE_NAMES:
        if image is not None:
            return f"columns {image} and {name} both seem to name images", "keep one"
        return "is not read, so the row would have no image", "rename it to image (one) or images (a list)"
    if name in _CHANGES:
        return _CHANGES[name]
    known = [*PROMPTS, "chosen", "rejected", *COMMON]
    if name in known:
        return f"is not read beside {names(sorted(reads & columns.keys()))}, which gives it too", "keep one"
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
    return "is not a known column", f"rename it to {near[0]}" if near else "rename it to what it is"


def without(columns: Mapping[str, Any], ignored: Iterable[str]) -> dict[str, Any]:
    """The row as if it did not have the ignored columns."""
    ignored = set(ignored)
    return {name: value for name, value in columns.items() if name not in ignored}
