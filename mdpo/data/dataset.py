"""Checked preference rows, tokenised ahead and with their images read when they are needed."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from mdpo.errors import InputError
from mdpo.packing.tokens import PreferenceTokens

from .encode import EncodedRow, Encoder
from .image_facts import look_at_images
from .image_tokens import ImageTokens, image_settings
from .images import open_image
from .negatives import parse_negative
from .problem import RowError
from .rejected_images import RejectedImages
from .row import PreferenceRow
from .row_store import Rows
from .text_options import TextOptions
from .tokenise import tokenise

logger = logging.getLogger(__name__)

_LONG, _FAR = 16_384, 10.0  # packed tokens, and times as many as other rows, from which a row is worth a warning


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What of the rows is used, and how.

    image_rejected: with the third branch. drop_images: train without any image, and so without the third branch.
    negative: a name in NEGATIVES, or a mixture such as "crop_0_20:0.5+black:0.5". seed: of the negatives.
    max_length: tokens of prompt and response; longer responses are cut.
    text: how rows become text.
    """

    image_rejected: bool = True
    drop_images: bool = False
    negative: str = "crop_0_20"
    seed: int = 42
    max_length: int | None = None
    text: TextOptions = TextOptions()

    @classmethod
    def of(cls, settings: Any) -> "DataOptions":
        """From a run's settings, an ``MDPOConfig``."""
        return cls(
            image_rejected=settings.uses_image_rejected and not settings.drop_images,
            drop_images=settings.drop_images,
            negative=settings.negative,
            seed=settings.seed,
            max_length=settings.max_length,
            text=TextOptions(
                settings.system_prompt,
                settings.chat_template,
                settings.chat_template_kwargs,
                settings.prompt_is_rendered,
            ),
        )


class PreferenceDataset(Dataset):
    """Preference rows as ``PreferenceTokens``.

    Everything that can be wrong with a row is found here, before training starts: every image is decoded once, every
    prompt and response tokenised. Raises InputError that names row and field, or says that the third branch is wanted
    and no row has an image. How many rows have none, and how many responses ``max_length`` cut, is logged.

    rows: a long list of them is better given as ``read_rows`` returns it, which is not in memory; what was tokenised is
    then kept beside the data file for the next start.

    ``lengths``: (N,) int64, packed tokens of each example, what the planner needs. ``dataset[index]`` reads the images; with
    ``dataset[index, epoch]`` the negative is that epoch's.
    """

    def __init__(self, rows: Sequence[PreferenceRow], processor: ProcessorMixin, options: DataOptions) -> None:
        self.processor: Any = processor
        self.options = options
        stored = Rows.of(rows)
        self.rows = stored.without_images() if options.drop_images else stored
        negative = parse_negative(options.negative)
        if options.image_rejected and not options.drop_images:
            _check_images_there(self.rows)
        self._facts = look_at_images(self.rows, own=options.image_rejected and "own" in negative.names)
        self._rejected_images = (
            RejectedImages(self.rows, self._facts, negative, options.seed) if options.image_rejected else None
        )
        self._image_tokens = ImageTokens(processor)
        self._image_settings = image_settings(processor) | {"return_tensors": "pt"}
        encoder = Encoder(processor, options.text, drop_images=options.drop_images)
        self._tokens = tokenise(self.rows, encoder, options.text)
        self._parts = self._kept_parts()
        prompt, chosen, rejected = self._parts.T
        self.lengths = (prompt + chosen) * (1 + self._have_negative()) + rejected
        self._say_longest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int | None]) -> PreferenceTokens:
        index, epoch = item if isinstance(item, tuple) else (item, None)
        row = self.rows[index]
        images = [open_image(image, row.where) for image in row.images]
        rejected = [] if self._rejected_images is None else self._rejected_images.make(index, images, epoch)
        prompt_ids, *answers = self._tokens[index]
        sizes = [(image.height, image.width) for image in self._facts[index]]
        chosen_ids, rejected_ids = (
            ids[:length].tolist() for ids, length in zip(answers, self._parts[index, 1:], strict=True)
        )
        return PreferenceTokens(
            row.id,
            self._image_tokens.expand(prompt_ids, sizes).tolist(),
            chosen_ids,
            rejected_ids,
            self._process(images),
            self._process(rejected),
        )

    def first_with_images(self) -> int | None:
        """The index of the first row that has an image."""
        return self.rows.first_with_images()

    def longest_branch(self) -> tuple[int, int]:
        """Tokens of the longest branch, a prompt and one response, and the index of its row; (0, 0) without rows."""
        if not len(self):
            return 0, 0
        branches = self._parts[:, 0] + self._parts[:, 1:].max(axis=1)
        index = int(branches.argmax())
        return int(branches[index]), index

    def largest_token_id(self) -> tuple[int, int]:
        """The largest token id of all prompts and responses, and the index of a row that has it."""
        return self._tokens.largest()

    def digest(self) -> str:
        """Names the rows by their ids, and how long they are as packed examples, in their order."""
        found = hashlib.blake2b(self.rows.id_digests().tobytes(), digest_size=6)
        found.update(self.lengths.tobytes())
        return found.hexdigest()

    def _process(self, images: list[Image.Image]) -> Mapping[str, Tensor] | None:
        return dict(self.processor.image_processor(images=images, **self._image_settings)) if images else None

    def _have_negative(self) -> np.ndarray:
        """(N,) bool."""
        return self.options.image_rejected & (self.rows.images.counts() > 0)

    def _kept_parts(self) -> np.ndarray:
        """(N, 3) tokens of each row's prompt, its images expanded, and of its answers, cut at ``max_length``.

        Raises RowError where the image processor refuses a size, or ``max_length`` leaves nothing of the answers.
        """
        parts = self._tokens.lengths()
        parts[:, 0] += self._added_by_images()
        limit = self.options.max_length
        if limit is None:
            return parts
        room = limit - parts[:, 0]
        if (room <= 0).any():
            index = int(np.flatnonzero(room <= 0)[0])
            response_room(self.rows[index], int(parts[index, 0]), limit)
        cut = int((parts[:, 1:] > room[:, None]).sum())
        if cut:
            logger.warning(
                "max_length %d cuts %d of %d responses, which lose their end", limit, cut, 2 * len(parts)
            )
        parts[:, 1:] = np.minimum(parts[:, 1:], room[:, None])
        return parts

    def _added_by_images(self) -> np.ndarray:
        """(N,) tokens that a row's images take beyond their placeholders."""
        images = self.rows.images
        sizes, first, which = np.unique(self._facts.sizes[images.numbers], axis=0, return_index=True, return_inverse=True)
        added, refused = np.zeros(len(sizes), np.int64), {}
        for at, size in enumerate(sizes.tolist()):
            try:
                added[at] = len(self._image_tokens(*size)) - 1
            except ValueError as error:
                refused[int(first[at])] = error
        if refused:
            place, error = min(refused.items(), key=lambda item: item[0])
            where = self.rows[int(np.searchsorted(images.ends, place, side="right"))].where
            raise refused_size(where, error) from error
        total = np.concatenate([[0], np.cumsum(added[which.reshape(-1)])])
        return total[images.ends] - total[images.ends - images.counts()]

    def _say_longest(self) -> None:
        """One row that is far longer than all others makes its step as much slower."""
        if len(self) < 2:
            return
        index, usual = int(self.lengths.argmax()), float(np.quantile(self.lengths, 0.99))
        longest = int(self.lengths[index])
        if longest > max(_FAR * usual, _LONG):
            logger.warning(
                "%s: %d tokens as a packed row, where 99%% of the rows have at most %.0f: the step with it will take much "
                "longer than others; set max_length, or shorten or drop the row",
                self.rows[index].where, longest, usual,
            )  # fmt: skip


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


def response_room(row: PreferenceRow, prompt: int, max_length: int | None) -> int | None:
    """The tokens that ``max_length`` leaves a response, None without one. Raises RowError where it leaves nothing."""
    if max_length is None:
        return None
    if prompt >= max_length:
        problem = f"the prompt's {prompt} tokens leave nothing of the response within max_length {max_length}"
        raise RowError.at(row.where, "chosen", problem, "raise max_length or drop the row")
    return max_length - prompt


def _check_images_there(rows: Rows) -> None:
    without = int((rows.images.counts() == 0).sum())
    if without == len(rows):
        raise InputError(
            f"none of the {without} rows has an image (the first is {rows[0].where}), and conditional: true, or "
            "image_rejected in anchors, compares images; name the images in a column image or images, or set "
            "conditional: false (and anchors without image_rejected) to train on text"
        )
    if without:
        logger.warning("%d of %d rows have no image: they train without the image preference", without, len(rows))
