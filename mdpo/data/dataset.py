"""Checked preference rows, tokenised ahead and with their images read when they are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from mdpo.errors import InputError
from mdpo.packing import PreferenceTokens

from .encode import EncodedRow, Encoder
from .images import check_images, open_image
from .negatives import NEGATIVES, generator
from .rows import PreferenceRow


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What of the rows is used, and how.

    image_rejected: with the third branch. drop_images: train without any image, and so without the third branch.
    negative: a name in NEGATIVES. seed: of the negatives. max_length: tokens of prompt and response; longer responses
    are cut.
    """

    image_rejected: bool = True
    drop_images: bool = False
    negative: str = "crop_0_20"
    seed: int = 42
    max_length: int | None = None


class PreferenceDataset(Dataset):
    """Preference rows as ``PreferenceTokens``.

    Everything that can be wrong with a row is found here, before training starts: every image is decoded once, every
    prompt and response tokenised. Raises InputError that names row and field.

    ``lengths``: packed tokens of each example, what the planner needs. ``dataset[index]`` reads the images; with
    ``dataset[index, epoch]`` the negative is that epoch's.
    """

    def __init__(self, rows: Sequence[PreferenceRow], processor: ProcessorMixin, options: DataOptions) -> None:
        if options.negative not in NEGATIVES:
            raise InputError(f"negative: {options.negative!r} is unknown; choose from {', '.join(NEGATIVES)}")
        self.processor = processor
        self.options = options
        self.rows = [_without_images(row) for row in rows] if options.drop_images else list(rows)
        if options.negative == "random_image" and options.image_rejected:
            self._donors = [index for index, row in enumerate(self.rows) if row.images]
            if len(self._donors) == 1:
                raise InputError(f"{self.rows[self._donors[0]].where}: random_image needs a second row with an image")
        sizes = check_images(self.rows)
        encoder = Encoder(processor)
        progress = tqdm(self.rows, "tokenising", leave=False, disable=None)
        self._encoded = [self._encode(row, encoder, sizes) for row in progress]
        self.lengths = [self._packed_length(index) for index in range(len(self.rows))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int | None]) -> PreferenceTokens:
        index, epoch = item if isinstance(item, tuple) else (item, None)
        row, encoded = self.rows[index], self._encoded[index]
        images = [open_image(image, row.where) for image in row.images]
        rejected = self._negatives(index, images, epoch) if self._has_negative(row) else []
        return PreferenceTokens(
            row.id,
            encoded.prompt_ids,
            encoded.chosen_ids,
            encoded.rejected_ids,
            self._process(images),
            self._process(rejected),
        )

    def _process(self, images: list[Image.Image]) -> Mapping[str, Tensor] | None:
        return dict(self.processor.image_processor(images=images, return_tensors="pt")) if images else None

    def _has_negative(self, row: PreferenceRow) -> bool:
        return self.options.image_rejected and bool(row.images)

    def _negatives(self, index: int, images: list[Image.Image], epoch: int | None) -> list[Image.Image]:
        make = NEGATIVES[self.options.negative]
        rng = generator(self.options.seed, self.rows[index].id, epoch)

        def other(number: int) -> Image.Image:
            donors = [donor for donor in self._donors if donor != index]
            row = self.rows[donors[number % len(donors)]]
            return open_image(row.images[0], row.where)

        return [make(image, rng, other) for image in images]

    def _packed_length(self, index: int) -> int:
        encoded = self._encoded[index]
        prompt, chosen, rejected = map(len, (encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids))
        return (prompt + chosen) * (1 + self._has_negative(self.rows[index])) + rejected

    def _encode(self, row: PreferenceRow, encoder: Encoder, sizes: dict) -> EncodedRow:
        encoded = encoder.row(row)
        shapes = [sizes[image] if isinstance(image, Path) else (image.height, image.width) for image in row.images]
        counts = iter(self.processor._get_num_multimodal_tokens(image_sizes=shapes)["num_image_tokens"] if shapes else ())
        prompt_ids = []
        for token in encoded.prompt_ids:
            prompt_ids.extend([token] * next(counts) if token == encoder.image_token_id else [token])
        room = None if self.options.max_length is None else self.options.max_length - len(prompt_ids)
        if room is not None and room < 1:
            raise InputError(
                f"{row.where}: chosen: the prompt's {len(prompt_ids)} tokens leave nothing of the response within "
                f"max_length {self.options.max_length}; raise max_length or drop the row"
            )
        return EncodedRow(prompt_ids, encoded.chosen_ids[:room], encoded.rejected_ids[:room])


def _without_images(row: PreferenceRow) -> PreferenceRow:
    prompt = [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]} for message in row.prompt
    ]
    return PreferenceRow(row.id, row.where, (), prompt, row.chosen, row.rejected)
