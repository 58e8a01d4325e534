"""Checked preference rows, tokenised ahead and with their images read when they are needed."""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from mdpo.errors import InputError
from mdpo.packing.branches import MDPO_BRANCHES, branch_of
from mdpo.packing.families import Family, Separate
from mdpo.packing.tokens import PreferenceTokens

from .encode import Encoder
from .image_facts import look_at_images
from .image_tokens import ImageTokens, image_settings
from .images import open_image
from .lengths import (
    ANSWERS,
    CONTRAST,
    PROMPT,
    branches_there,
    can_shrink,
    check_weights,
    kept_parts,
    packed_lengths,
    separate_lengths,
)
from .nearest import Embed, Neighbours
from .negatives import NEEDS_MODEL, parse_negative
from .options import DataOptions, check_contrast
from .picture_size import size_settings
from .problem import RowError
from .rejected_images import RejectedImages
from .row import PreferenceRow
from .row_store import Rows
from .token_store import PARTS
from .tokenise import tokenise
from .too_long import SmallerPictures

logger = logging.getLogger(__name__)

_LONG, _FAR = 16_384, 10.0  # packed tokens, and times as many as other rows, from which a row is worth a warning


class PreferenceDataset(Dataset):
    """Preference rows as ``PreferenceTokens``.

    Everything that can be wrong with a row is found here, before training starts: every image is decoded once, every
    prompt and response tokenised. Raises InputError that names row and field, or says that the objective
    compares images and no row has one. How many rows have none, and how many responses ``max_length`` cut, is logged.

    rows: a long list of them is better given as ``read_rows`` returns it, which is not in memory; what was tokenised is
    then kept beside the data file for the next start.

    ``lengths``: (N,) int64, packed tokens of each example, what the planner needs. ``dataset[index]`` reads the images;
    with ``dataset[index, epoch]`` the negative is that epoch's.
    """

    def __init__(self, rows: Sequence[PreferenceRow], processor: ProcessorMixin, options: DataOptions) -> None:
        self.processor: Any = processor
        self.options = options
        stored = Rows.of(rows)
        self.rows = stored.without_images() if options.drop_images else stored
        negative = parse_negative(options.negative)
        self._with_images = self.rows.images.counts() > 0
        if options.beside_image:
            _check_images_there(self.rows, self._with_images, options)
        check_contrast(options, negative)
        count = options.negatives
        self._facts = look_at_images(self.rows, own=count > 0 and "own" in negative.names)
        self._rejected_images = RejectedImages(self.rows, self._facts, negative, options.seed, count) if count else None
        self._image_tokens = ImageTokens(processor)
        self._image_settings = image_settings(processor) | {"return_tensors": "pt"}
        encoder = Encoder(
            processor,
            options.text,
            drop_images=options.drop_images,
            contrast=options.reads_contrast,
            imageless=options.reads_imageless,
            changed_weight=options.changed_weight,
        )
        self._tokens = tokenise(self.rows, encoder, options.text)
        self._parts = kept_parts(self._tokens.lengths(), self.rows, self._facts, self._image_tokens, options.max_length)
        check_weights(self._tokens, self._parts, self.rows)
        self.lengths = packed_lengths(self._parts, self._with_images, options.read)
        self._there = branches_there(self._parts, self._with_images, options.read)
        if options.reads_contrast:
            _check_contrast_there(self.rows, self._parts[:, CONTRAST] > 0, options)
        _check_each_has_something(self.rows, self.lengths, options)
        reading = [rows for name, rows in self._there.items() if branch_of(name).negative]
        self._with_negatives = np.logical_or.reduce(reading) if reading else np.zeros(len(self.rows), bool)
        self._say_longest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int | None]) -> PreferenceTokens:
        index, epoch = item if isinstance(item, tuple) else (item, None)
        row = self.rows[index]
        images = [open_image(image, row.where) for image in row.images]
        prompt_ids, *others = self._tokens[index]
        sizes = [(image.height, image.width) for image in self._facts[index]]
        kept = self._parts[index, 1:]
        chosen, rejected, contrast, imageless = (
            ids[:length].tolist() for ids, length in zip(others, kept, strict=True)
        )
        weights = [
            found[:length].tolist() or None for found, length in zip(self._tokens.weights_of(index), kept, strict=False)
        ]
        return PreferenceTokens(
            row.id,
            self._image_tokens.expand(prompt_ids, sizes).tolist(),
            chosen,
            rejected,
            self._process(images),
            self._negatives(index, images, epoch),
            contrast or None,
            imageless or None,
            *weights,
        )

    def _negatives(
        self, index: int, images: list[Image.Image], epoch: int | None
    ) -> Mapping[str, Tensor] | tuple[Mapping[str, Tensor], ...] | None:
        """One where the objective reads one, else several; None where the row has no branch that reads any."""
        if self._rejected_images is None or not self._with_negatives[index]:
            return None
        first, *more = map(self._processed, self._rejected_images.make(index, images, epoch))
        return (first, *more) if more else first

    def find_neighbours(self, embed: Embed) -> None:
        """Finds the pictures that look alike, where the negative is nearest_image; before the first row is read.

        embed: ``mdpo.models.image_embeddings.image_embeddings`` of the model. Raises RowError for a row without another
        picture.
        """
        made = self._rejected_images
        if made is None or made.neighbours is not None or NEEDS_MODEL not in made.negative.names:
            return
        settings = [self.processor.image_processor.to_dict(), self._image_settings]
        made.take_neighbours(Neighbours(self.rows, embed, self._processed_alone, settings, made.count))

    def any_with(self, branches: Collection[str]) -> bool:
        """Whether any row has all of these branches."""
        return all(name in self._there for name in branches) and bool(
            np.logical_and.reduce([self._there[name] for name in branches]).any()
        )

    def size_settings(self) -> dict[str, Any]:
        """How its image processor sizes pictures, for a run to be recognised by."""
        return size_settings(self.processor)

    def first_with_images(self) -> int | None:
        """The index of the first row that has an image."""
        return self.rows.first_with_images()

    def longest_branch(self) -> tuple[int, int]:
        """Tokens of the longest branch, a prompt and one response, and the index of its row; (0, 0) without rows."""
        if not len(self):
            return 0, 0
        branches = self._parts[:, PROMPT] + self._parts[:, ANSWERS].max(axis=1)
        index = int(branches.argmax())
        return int(branches[index]), index

    def check_budget(self, token_budget: int, family: Family | Separate) -> None:
        """Raises InputError where rows take more tokens than that as they are laid out, with what would make
        them fit.
        """
        lengths = self.lengths_for(family)
        too_long = np.flatnonzero(lengths > token_budget)
        if not len(too_long):
            return
        index = int(too_long[lengths[too_long].argmax()])
        longest = int(lengths[index])
        kind, measure = ("padded", separate_lengths) if isinstance(family, Separate) else ("packed", packed_lengths)

        def laid_out(parts: np.ndarray, which: np.ndarray) -> np.ndarray:
            return measure(parts, self._with_images[which], self.options.read)

        smaller = self._smaller_pictures.advice(too_long, laid_out, token_budget)
        others = f"; {len(too_long)} of {len(self)} rows have, this is the longest" if len(too_long) > 1 else ""
        raise InputError(
            f"{self.rows[index].where}: {longest} {kind} tokens, more than token_budget {token_budget}{others}: raise "
            f"token_budget to at least {longest}, {smaller}or shorten or leave out what is longer"
        )

    def smaller_pictures(self, limit: int) -> str:
        """The advice to make pictures smaller for branches of at most ``limit`` tokens; "" where that does not help."""

        def branches(parts: np.ndarray, which: np.ndarray) -> np.ndarray:
            return parts[:, PROMPT] + parts[:, ANSWERS].max(axis=1)

        too_long = np.flatnonzero(branches(self._parts, np.arange(len(self))) > limit)
        return self._smaller_pictures.advice(too_long, branches, limit)

    @property
    def _smaller_pictures(self) -> SmallerPictures:
        return SmallerPictures(self.rows, self._facts, self._tokens, self.processor, self.options.max_length)

    def largest_picture(self) -> tuple[int, int] | None:
        """Height and width, in pixels, of the picture that takes the most tokens; None without pictures."""
        sizes = np.unique(self._facts.sizes[self.rows.images.numbers], axis=0).tolist()
        return max(map(tuple, sizes), key=lambda size: len(self._image_tokens(*size)), default=None)

    def scored_lengths(self) -> np.ndarray:
        """(N,) int64, the tokens of each example's answers, as often as a branch reads them."""
        parts = {name: self._parts[:, PARTS.index(branch_of(name).response)] for name in self._there}
        return sum((parts[name] * there for name, there in self._there.items()), np.zeros(len(self), np.int64))

    def largest_token_id(self) -> tuple[int, int]:
        """The largest token id of all prompts and responses, and the index of a row that has it."""
        return self._tokens.largest()

    def lengths_for(self, family: Family | Separate) -> np.ndarray:
        """(N,) int64, the tokens of each example as the model's way of reading it lays it out: what the
        planner needs.
        """
        if not isinstance(family, Separate):
            return self.lengths
        return separate_lengths(self._parts, self._with_images, self.options.read)

    def digest(self) -> str:
        """Names the rows by their ids, how long they are as packed examples, and their tokens' weights, in
        their order.
        """
        found = hashlib.blake2b(self.rows.id_digests().tobytes(), digest_size=6)
        found.update(self.lengths.tobytes())
        for piece in self._tokens.weights.pieces():
            found.update(piece)
        return found.hexdigest()

    def _process(self, images: list[Image.Image]) -> Mapping[str, Tensor] | None:
        return self._processed(images) if images else None

    def _processed_alone(self, number: int) -> Mapping[str, Tensor]:
        """The picture with this number in the rows' table."""
        return self._processed([open_image(self.rows.source(number), f"image {number} of the rows")])

    def _processed(self, images: list[Image.Image]) -> Mapping[str, Tensor]:
        return dict(self.processor.image_processor(images=images, **self._image_settings))

    def _say_longest(self) -> None:
        """One row that is far longer than all others makes its step as much slower."""
        if len(self) < 2:
            return
        index, usual = int(self.lengths.argmax()), float(np.quantile(self.lengths, 0.99))
        longest = int(self.lengths[index])
        if longest > max(_FAR * usual, _LONG):
            settings = "max_length or max_pixels" if can_shrink(self.rows[index], self.processor) else "max_length"
            logger.warning(
                "%s: %d tokens as a packed row, where 99%% of the rows have at most %.0f: the step with it will take "
                "much longer than others; set %s, or shorten or drop the row",
                self.rows[index].where,
                longest,
                usual,
                settings,
            )


def _check_images_there(rows: Rows, there: np.ndarray, options: DataOptions) -> None:
    """Rows without an image go without the branches that read another picture; all of them may not."""
    without = int((~there).sum())
    if without == len(rows):
        compares = f"the objective, which reads {', '.join(options.beside_image)},"
        remedy = "choose an objective without them, such as dpo,"
        if set(options.read) <= set(MDPO_BRANCHES):
            compares = "conditional: true, image_rejected in anchors or another objective that reads it"
            remedy = "set conditional: false (and anchors without image_rejected), or another objective, such as dpo,"
        raise InputError(
            f"none of the {without} rows has an image (the first is {rows[0].where}), and {compares} compares images; "
            f"name the images in a column image or images, or {remedy} to train on text"
        )
    if without:
        logger.warning(
            "%d of %d rows have no image: they train without %s", without, len(rows), options.terms_beside_image
        )


def _check_contrast_there(rows: Rows, there: np.ndarray, options: DataOptions) -> None:
    """Rows without an answer to the rejected picture go without the branches that read one; all of them may not."""
    terms = f"the terms that read {', '.join(options.contrast)}"
    if not there.any():
        raise InputError(
            f"none of the {len(rows)} rows has a contrast (the first is {rows[0].where}), which {terms} are "
            "about; give the answer that is right for the rejected image in a column contrast, or choose "
            "another objective"
        )
    if not there.all():
        logger.warning("%d of %d rows have no contrast: they train without %s", int((~there).sum()), len(rows), terms)


def _check_each_has_something(rows: Rows, lengths: np.ndarray, options: DataOptions) -> None:
    """A row without any of the branches would take no tokens at all."""
    for index in np.flatnonzero(lengths == 0)[:1].tolist():
        lacks = "contrast" if rows[index].images else "images"
        problem = f"is empty, so that the row has nothing of what the objective reads ({', '.join(options.read)})"
        raise RowError.at(rows[index].where, lacks, problem, "fill it, or drop the row")
