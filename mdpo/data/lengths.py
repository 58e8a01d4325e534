"""How many tokens each row takes: its parts, cut at ``max_length``, and its packed row."""

import logging
from collections.abc import Sequence

import numpy as np
from transformers import ProcessorMixin

from mdpo.packing.branches import branch_of, pictures_of

from .encode import EncodedRow
from .image_facts import RowFacts
from .image_tokens import ImageTokens
from .picture_size import sizes_of
from .problem import RowError
from .row import PreferenceRow
from .row_store import Rows
from .token_store import PARTS, WEIGHTED, Tokens

logger = logging.getLogger(__name__)

PROMPT, CHOSEN, REJECTED, CONTRAST, IMAGELESS = range(len(PARTS))
ANSWERS = slice(CHOSEN, CONTRAST + 1)


def kept_parts(
    parts: np.ndarray, rows: Rows, facts: RowFacts, image_tokens: ImageTokens, limit: int | None
) -> np.ndarray:
    """(N, parts) tokens of each row's prompt, its images expanded, and of its answers, cut at ``limit``.

    parts: (N, parts) tokens before that, see ``Tokens.lengths``; changed in place. How many answers were cut is logged.

    Raises RowError where the image processor refuses a size, or ``limit`` leaves nothing of the answers.
    """
    parts[:, PROMPT] += added_by_images(rows, facts, image_tokens)
    if limit is None:
        return parts
    room = limit - parts[:, PROMPT]
    if (room <= 0).any():
        index = int(np.flatnonzero(room <= 0)[0])
        response_room(rows[index], int(parts[index, PROMPT]), limit, image_tokens)
    answers = parts[:, ANSWERS]
    cut = int((answers > room[:, None]).sum())
    if cut:
        logger.warning(
            "max_length %d cuts %d of %d responses, which lose their end", limit, cut, int((answers > 0).sum())
        )
    parts[:, ANSWERS] = np.minimum(answers, room[:, None])
    return parts


def check_weights(tokens: Tokens, parts: np.ndarray, rows: Rows) -> None:
    """Raises RowError where what ``max_length`` leaves of an answer has no token that counts.

    parts: from ``kept_parts``.
    """
    cut = (parts[:, ANSWERS] < tokens.lengths()[:, ANSWERS]).any(axis=1)
    for index in np.flatnonzero(cut & tokens.weighted()).tolist():
        for at, (name, weights) in enumerate(zip(WEIGHTED, tokens.weights_of(index), strict=True), CHOSEN):
            kept = int(parts[index, at])
            if kept < len(weights) and not weights[:kept].any():
                problem = f"each of the {kept} tokens that max_length leaves has the weight 0"
                raise RowError.at(rows[index].where, f"{name}_weights", problem, "raise max_length, or drop the row")


def branches_there(parts: np.ndarray, with_images: np.ndarray, branches: Sequence[str]) -> dict[str, np.ndarray]:
    """Which rows have each branch, (N,) bool by its name: only a row with images has them replaced, or taken away, and
    only there is an answer right for another one.

    parts: (N, parts) tokens. with_images: (N,) bool.
    """
    there = {}
    for branch in map(branch_of, branches):
        there[branch.name] = (parts[:, PARTS.index(branch.response)] > 0) & (with_images | (not branch.needs_image))
    return there


def packed_lengths(parts: np.ndarray, with_images: np.ndarray, branches: Sequence[str]) -> np.ndarray:
    """(N,) int64 tokens of each packed row: every picture's prompt once, and the responses that are read with it.

    parts: (N, parts) tokens, such as from ``kept_parts``. with_images: (N,) bool.
    """
    there = branches_there(parts, with_images, branches)
    total = np.zeros(len(parts), np.int64)
    for picture, readers in pictures_of(branches).items():
        prompt = parts[:, IMAGELESS if picture == "none" else PROMPT]
        total += prompt * np.logical_or.reduce([there[branch.name] for branch in readers])
        for branch in readers:
            total += parts[:, PARTS.index(branch.response)] * there[branch.name]
    return total


def separate_lengths(parts: np.ndarray, with_images: np.ndarray, branches: Sequence[str]) -> np.ndarray:
    """(N,) int64 tokens of each row whose branches are sequences of their own, all filled up to its longest; as if it
    had every branch. As ``packed_lengths``.
    """
    there = branches_there(parts, with_images, branches)
    longest = np.zeros(len(parts), np.int64)
    for branch in map(branch_of, branches):
        prompt = parts[:, IMAGELESS if branch.picture == "none" else PROMPT]
        longest = np.maximum(longest, (prompt + parts[:, PARTS.index(branch.response)]) * there[branch.name])
    return longest * len(branches)


def added_by_images(rows: Rows, facts: RowFacts, image_tokens: ImageTokens) -> np.ndarray:
    """(N,) tokens that a row's images take beyond their placeholders. Raises RowError where a size is refused."""
    images = rows.images
    sizes, first, which = np.unique(facts.sizes[images.numbers], axis=0, return_index=True, return_inverse=True)
    added, refused = np.zeros(len(sizes), np.int64), {}
    for at, size in enumerate(sizes.tolist()):
        try:
            added[at] = len(image_tokens(*size)) - 1
        except ValueError as error:
            refused[int(first[at])] = error
    if refused:
        place, error = min(refused.items(), key=lambda item: item[0])
        where = rows[int(np.searchsorted(images.ends, place, side="right"))].where
        raise refused_size(where, error) from error
    total = np.concatenate([[0], np.cumsum(added[which.reshape(-1)])])
    return total[images.ends] - total[images.ends - images.counts()]


def prompt_length(
    row: PreferenceRow, encoded: EncodedRow, sizes: Sequence[tuple[int, int]], image_tokens: ImageTokens
) -> int:
    """The prompt's tokens with its images expanded. Raises RowError where the image processor refuses a size."""
    try:
        return len(encoded.prompt_ids) + sum(len(image_tokens(*size)) - 1 for size in sizes)
    except ValueError as error:
        raise refused_size(row.where, error) from error


def refused_size(where: str, error: ValueError) -> RowError:
    return RowError.at(where, "images", f"the image processor refuses the size: {error}", "crop it")


def can_shrink(row: PreferenceRow, processor: ProcessorMixin) -> bool:
    """Whether ``max_pixels`` can make the row's prompt shorter."""
    sizes = sizes_of(processor) if row.images else None
    return sizes is not None and len(sizes.choices()) > 1


def response_room(row: PreferenceRow, prompt: int, max_length: int | None, image_tokens: ImageTokens) -> int | None:
    """The tokens that ``max_length`` leaves a response, None without one. Raises RowError where it leaves nothing."""
    if max_length is None:
        return None
    if prompt >= max_length:
        problem = f"the prompt's {prompt} tokens leave nothing of the response within max_length {max_length}"
        smaller = ", set a smaller max_pixels" if can_shrink(row, image_tokens.processor) else ""
        raise RowError.at(row.where, "chosen", problem, f"raise max_length{smaller} or drop the row")
    return max_length - prompt
