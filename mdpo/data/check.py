"""A look at a whole data file before any GPU is touched: what is broken, what is odd, how long the branches are."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import ProcessorMixin

from mdpo.packing.branches import MDPO_BRANCHES, branch_of

from .encode import EncodedRow, Encoder
from .image_sources import ImageRoot
from .image_tokens import ImageTokens
from .images import CHUNK, ImageFacts, Inspector, image_uses
from .lengths import packed_lengths, prompt_length, response_room
from .problem import Dropped, RowError
from .rows import Checked, PreferenceRow, check_rows
from .seen import FirstSeen
from .show import Shown, show
from .sources import open_source
from .text_options import TextOptions
from .token_store import PARTS

Inspected = tuple[PreferenceRow, list[ImageFacts]]  # a row, and what its images and rejected_images are

TINY = 28  # pixels: one merged patch of Qwen2-VL, four of CLIP's 14-pixel patches in all


class Note(NamedTuple):
    """Something odd that does not stop training. kind: one of a few, for counting."""

    where: str
    field: str
    kind: str
    detail: str


@dataclass(slots=True)
class Report:
    """What was found in one file.

    rows: all of them, of which ``usable`` can be trained on. formats: rows by format. dropped: rows by reason.
    lengths: of each usable row's prompt and responses, in ``unit``; in tokens also of its packed row, which is what
    ``token_budget`` counts. images: of all usable rows. without_image: usable rows without one. own_negatives: rows
    that bring rejected_images. contrasts, weighted: rows with an answer to the rejected picture, and with weights.
    shown: one row as the model will see it, where there is a processor.
    """

    unit: str
    rows: int = 0
    usable: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    errors: list[RowError] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    images: int = 0
    without_image: int = 0
    own_negatives: int = 0
    contrasts: int = 0
    weighted: int = 0
    shown: Shown | None = None
    lengths: dict[str, array] = field(default_factory=dict)


def check_file(
    path: str | Path,
    root: ImageRoot,
    *,
    processor: ProcessorMixin | None = None,
    max_length: int | None = None,
    text: TextOptions | None = None,
    branches: Sequence[str] = MDPO_BRANCHES,
    ignore_columns: Sequence[str] = (),
    show_row: int | None = None,
) -> Report:
    """Reads, checks and measures every row; a row at a time, so that a long file takes little memory.

    processor: of the model to be trained. With it lengths are tokens, and max_length and text, which says how
    rows become text, are applied; without, characters.
    branches: of the objective, as which rows are packed.
    show_row: the position of the row to decode; None for the first usable one.

    Raises InputError where the file as a whole can't be read.
    """
    found = check_rows(open_source(path), root, PreferenceRow, ignore_columns)
    return check_records(found, processor, max_length, text, branches, show_row)


def check_records(
    found: Iterable[Checked | Dropped | RowError],
    processor: ProcessorMixin | None,
    max_length: int | None,
    text: TextOptions | None = None,
    branches: Sequence[str] = MDPO_BRANCHES,
    show_row: int | None = None,
) -> Report:
    """``check_file`` for rows that are already parsed, as ``check_rows`` yields them."""
    report = Report("characters" if processor is None else "tokens")
    measure = _Characters() if processor is None else _Tokens(processor, max_length, text, branches)
    seen = FirstSeen()
    found = iter(found)
    with Inspector() as inspector:
        while chunk := list(islice(found, CHUNK)):
            wanted = _wanted(chunk, show_row, report.rows)
            report.rows += len(chunk)
            sound = list(_readable(_sound(chunk, report), inspector, report))
            for (row, images), measured in zip(sound, measure(sound), strict=True):
                if isinstance(measured, RowError):
                    report.errors.append(measured)
                    continue
                report.usable += 1
                report.images += len(row.images)
                report.without_image += not row.images
                report.own_negatives += bool(row.rejected_images)
                report.contrasts += row.contrast is not None
                report.weighted += bool(row.chosen_weights or row.rejected_weights)
                if report.shown is None and measured.shown is not None and wanted in (None, row.where):
                    report.shown = measured.shown()
                for name, length in measured.lengths.items():
                    report.lengths.setdefault(name, array("i")).append(length)
                report.notes += measured.notes
                report.notes += _oddities(row, images, seen)
    return report


def _wanted(chunk: Sequence[Checked | Dropped | RowError], position: int | None, start: int) -> str | None:
    """Where the row at ``position`` of the file stands; None for any row, and "" for one that is not in the chunk."""
    if position is None:
        return None
    if not start <= position < start + len(chunk):
        return ""
    item = chunk[position - start]
    return item.row.where if isinstance(item, Checked) else ""


def _sound(chunk: Iterable[Checked | Dropped | RowError], report: Report) -> Iterator[PreferenceRow]:
    for item in chunk:
        if isinstance(item, RowError):
            report.errors.append(item)
        elif isinstance(item, Dropped):
            report.dropped[item.reason] += 1
        else:
            report.formats[item.format] += 1
            yield item.row


def _readable(rows: Iterable[PreferenceRow], inspector: Inspector, report: Report) -> Iterator[Inspected]:
    rows = list(rows)
    facts = iter(inspector.inspect([use for row in rows for use in image_uses(row, own=True)]))
    for row in rows:
        images = list(islice(facts, len(row.images) + len(row.rejected_images)))
        errors = [image for image in images if isinstance(image, RowError)]
        report.errors += errors
        if not errors:
            yield row, [image for image in images if isinstance(image, ImageFacts)]


def _oddities(row: PreferenceRow, images: list[ImageFacts], seen: FirstSeen) -> Iterator[Note]:
    if row.chosen.strip() == row.rejected.strip():
        yield Note(row.where, "rejected", "chosen = rejected", "teaches nothing about the responses")
    for image in images:
        if min(image.height, image.width) < TINY:
            yield Note(row.where, "images", "tiny image", f"{image.width} x {image.height} pixels")
    content = json.dumps([[repr(image.key) for image in images], row.prompt, row.chosen, row.rejected])
    first = seen.add(content, row.where)
    if first is not None:
        yield Note(row.where, "row", "duplicate", f"the same as {first}")


class _Measured(NamedTuple):
    """shown: decodes the row, which is done for one row alone."""

    lengths: dict[str, int]
    notes: list[Note]
    shown: Callable[[], Shown] | None = None


class _Characters:
    def __call__(self, rows: Sequence[Inspected]) -> Iterator[_Measured | RowError]:
        for row, _ in rows:
            prompt = sum(len(part.get("text", "")) for message in row.prompt for part in message["content"])
            yield _Measured({"prompt": prompt, "chosen": len(row.chosen), "rejected": len(row.rejected)}, [])


class _Tokens:
    def __init__(
        self, processor: ProcessorMixin, max_length: int | None, text: TextOptions | None, branches: Sequence[str]
    ) -> None:
        self.branches = branches
        imageless = any(branch_of(name).picture == "none" for name in branches)
        self.encoder = Encoder(processor, text, contrast=True, imageless=imageless)
        self.image_tokens = ImageTokens(processor)
        self.max_length = max_length

    def __call__(self, rows: Sequence[Inspected]) -> Iterator[_Measured | RowError]:
        for (row, images), encoded in zip(rows, self.encoder.rows([row for row, _ in rows]), strict=True):
            if isinstance(encoded, RowError):
                yield encoded
                continue
            try:
                yield self._measured(row, images[: len(row.images)], encoded)
            except RowError as error:
                yield error

    def _measured(self, row: PreferenceRow, images: list[ImageFacts], encoded: EncodedRow) -> _Measured:
        sizes = [(image.height, image.width) for image in images]
        prompt = prompt_length(row, encoded, sizes, self.image_tokens)
        room = response_room(row, prompt, self.max_length, self.image_tokens)
        lengths = {"prompt": prompt, "chosen": len(encoded.chosen_ids), "rejected": len(encoded.rejected_ids)}
        lengths |= {"contrast": len(encoded.contrast_ids)} if encoded.contrast_ids else {}
        lengths |= {"imageless": len(encoded.imageless_prompt_ids)} if encoded.imageless_prompt_ids else {}
        notes = []
        if encoded.rendered:
            notes.append(Note(row.where, "prompt", "already rendered", "taken as it is, without the chat template"))
        for name in ("chosen", "rejected", "contrast"):
            if room is not None and lengths.get(name, 0) > room:
                notes.append(Note(row.where, name, "response cut", f"{room} of {lengths[name]} tokens are left"))
                lengths[name] = room
        parts = np.array([[lengths.get(part, 0) for part in PARTS]])
        lengths["packed"] = int(packed_lengths(parts, np.array([bool(images)]), self.branches)[0])
        return _Measured(
            lengths, notes, partial(show, self.encoder, self.image_tokens, encoded, sizes, room, row.where)
        )
