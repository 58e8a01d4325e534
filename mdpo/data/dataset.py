"""Checked preference rows, tokenised ahead and with their images read when they are needed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from mdpo.errors import InputError
from mdpo.packing.tokens import PreferenceTokens

from .encode import EncodedRow, Encoder
from .image_tokens import ImageTokens, image_settings
from .images import CHUNK, check_images, open_image
from .messages import without_images
from .negatives import parse_negative
from .problem import RowError
from .rejected_images import RejectedImages
from .rows import PreferenceRow
from .text_options import TextOptions
from .token_store import TokenStore

logger = logging.getLogger(__name__)


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

    ``lengths``: packed tokens of each example, what the planner needs. ``dataset[index]`` reads the images; with
    ``dataset[index, epoch]`` the negative is that epoch's.
    """

    def __init__(self, rows: Sequence[PreferenceRow], processor: ProcessorMixin, options: DataOptions) -> None:
        self.processor: Any = processor
        self.options = options
        self.rows = [_without_images(row) for row in rows] if options.drop_images else list(rows)
        negative = parse_negative(options.negative)
        if options.image_rejected and not options.drop_images:
            _check_images_there(self.rows)
        facts = check_images(self.rows, own=options.image_rejected and "own" in negative.names)
        self._rejected_images = (
            RejectedImages(self.rows, facts, negative, options.seed) if options.image_rejected else None
        )
        self._sizes = [tuple((image.height, image.width) for image in images) for images in facts]
        self._image_tokens = ImageTokens(processor)
        self._image_settings = image_settings(processor) | {"return_tensors": "pt"}
        self._prompts, self._chosen, self._rejected = TokenStore(), TokenStore(), TokenStore()
        self.lengths: list[int] = []
        self._cut = 0
        encoder = Encoder(processor, options.text, drop_images=options.drop_images)
        for start in tqdm(range(0, len(self.rows), CHUNK), "tokenising", leave=False, disable=None):
            chunk = self.rows[start : start + CHUNK]
            for index, encoded in enumerate(encoder.rows(chunk), start=start):
                self._add(index, self.rows[index], encoded)
        if self._cut:
            limit, responses = options.max_length, 2 * len(self.rows)
            logger.warning("max_length %d cuts %d of %d responses, which lose their end", limit, self._cut, responses)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int | None]) -> PreferenceTokens:
        index, epoch = item if isinstance(item, tuple) else (item, None)
        row = self.rows[index]
        images = [open_image(image, row.where) for image in row.images]
        rejected = [] if self._rejected_images is None else self._rejected_images.make(index, images, epoch)
        return PreferenceTokens(
            row.id,
            self._image_tokens.expand(self._prompts[index], self._sizes[index]).tolist(),
            self._chosen[index].tolist(),
            self._rejected[index].tolist(),
            self._process(images),
            self._process(rejected),
        )

    def longest_branch(self) -> tuple[int, int]:
        """Tokens of the longest branch, a prompt and one response, and the index of its row; (0, 0) without rows."""
        longest = (0, 0)
        for index, row in enumerate(self.rows):
            chosen, rejected = self._chosen.length(index), self._rejected.length(index)
            prompt = (self.lengths[index] - rejected) // (1 + self._has_negative(row)) - chosen
            longest = max(longest, (prompt + max(chosen, rejected), index))
        return longest

    def largest_token_id(self) -> tuple[int, int]:
        """The largest token id of all prompts and responses, and the index of a row that has it."""
        return max(store.largest() for store in (self._prompts, self._chosen, self._rejected))

    def _process(self, images: list[Image.Image]) -> Mapping[str, Tensor] | None:
        return dict(self.processor.image_processor(images=images, **self._image_settings)) if images else None

    def _has_negative(self, row: PreferenceRow) -> bool:
        return self.options.image_rejected and bool(row.images)

    def _add(self, index: int, row: PreferenceRow, encoded: EncodedRow | RowError) -> None:
        if isinstance(encoded, RowError):
            raise encoded
        prompt = prompt_length(row, encoded, self._sizes[index], self._image_tokens)
        room = response_room(row, prompt, self.options.max_length)
        chosen, rejected = encoded.chosen_ids[:room], encoded.rejected_ids[:room]
        self._cut += (len(chosen) < len(encoded.chosen_ids)) + (len(rejected) < len(encoded.rejected_ids))
        self._prompts.append(encoded.prompt_ids)
        self._chosen.append(chosen)
        self._rejected.append(rejected)
        self.lengths.append((prompt + len(chosen)) * (1 + self._has_negative(row)) + len(rejected))


def prompt_length(
    row: PreferenceRow, encoded: EncodedRow, sizes: Sequence[tuple[int, int]], image_tokens: ImageTokens
) -> int:
    """The prompt's tokens with its images expanded. Raises RowError where the image processor refuses a size."""
    try:
        return len(encoded.prompt_ids) + sum(len(image_tokens(*size)) - 1 for size in sizes)
    except ValueError as error:
        raise RowError.at(row.where, "images", f"the image processor refuses the size: {error}", "crop it") from error


def response_room(row: PreferenceRow, prompt: int, max_length: int | None) -> int | None:
    """The tokens that ``max_length`` leaves a response, None without one. Raises RowError where it leaves nothing."""
    if max_length is None:
        return None
    if prompt >= max_length:
        problem = f"the prompt's {prompt} tokens leave nothing of the response within max_length {max_length}"
        raise RowError.at(row.where, "chosen", problem, "raise max_length or drop the row")
    return max_length - prompt


def _check_images_there(rows: Sequence[PreferenceRow]) -> None:
    without = sum(not row.images for row in rows)
    if without == len(rows):
        raise InputError(
            f"none of the {without} rows has an image (the first is {rows[0].where}), and conditional: true, or "
            "image_rejected in anchors, compares images; name the images in a column image or images, or set "
            "conditional: false (and anchors without image_rejected) to train on text"
        )
    if without:
        logger.warning("%d of %d rows have no image: they train without the image preference", without, len(rows))


def _without_images(row: PreferenceRow) -> PreferenceRow:
    """``plain`` stays: what of it stands for an image is the template's, which the encoder knows."""
    return replace(row, images=(), rejected_images=(), prompt=without_images(row.prompt))
