"""Examples laid out on one row, prefixes shared.

Each example becomes a block for every picture that its branches read, ``[prompt][response][response]…``: mDPO's are
``[prefix][y_w][y_l]`` and, where it has a rejected image, ``[prefix'][y_w]``. A block's first response is one attention
segment with the prompt, every other one reads the prompt and itself. The branches say what is shared: token ids are
never compared, so the prompt of the cropped image can't be taken for the other one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdpo.errors import InputError
from mdpo_kernels import Segments

from .batch import Batch
from .blocks import Block, scored, segments_of
from .branches import MDPO_BRANCHES, branch_of, pictures_of
from .checks import check_reading, weights_of
from .digests import branch_digest, image_digest
from .families import Family, Separate, family_of
from .forks import Forks, forks_of
from .readings import Images, Reading, readings
from .separate import SeparateBatch, lay_out_separately
from .tokens import PreferenceTokens

# Shapes: B examples, K branches, T packed tokens, N scored tokens, D position axes, M image tokens


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedBatch(Batch):
    """A micro-batch as one row.

    input_ids: (1, T) int64.
    position_ids: (1, T) int64, or (3, 1, T) for families with multimodal positions. They restart in every branch.
    segments: the attention of the row, see ``mdpo_kernels.varlen_attention``.
    images: what the vision tower reads, each distinct image once. Where a family cuts pictures into tiles, an image is
        a tile.
    image_index: for every image of the row, in order, which distinct image it is. Python ints: read on the host.
    image_positions: (M,) int64, the rows of the placeholders those images fill, in order.
    blocks: what stands where.
    forks: where states that are carried from token to token go; None for a family whose layers carry none.
    """

    position_ids: Tensor
    segments: Segments
    image_index: tuple[int, ...]
    image_positions: Tensor
    blocks: tuple[Block, ...] = ()
    forks: Forks | None = None


def pack(
    examples: Sequence[PreferenceTokens], model, *, branches: Sequence[str] = MDPO_BRANCHES
) -> PackedBatch | SeparateBatch:
    """Lays examples out on one row, or branch by branch where that is the model's way.

    model: a Hugging Face model, bare or wrapped by PEFT, or its family from ``family_of``.
    branches: what each example is read as, by the names of ``mdpo.packing.branches``. One that an example lacks the
        picture or the answer for is an empty sequence.

    Raises InputError with the example's id where a response is empty, the number of placeholders is not the number of
    image features, or a rejected image expands to another number of tokens.
    """
    if not examples:
        raise InputError("pack needs at least one example, got none")
    family = family_of(model) if hasattr(model, "config") else model
    if isinstance(family, Separate):
        return lay_out_separately(examples, family, branches)
    row = _Row(family, branches, len(examples))
    for number, example in enumerate(examples):
        row.add(number, example)
    return row.finish(tuple(example.id for example in examples))


class _Row:
    """The row as it grows. Plain lists: one conversion to tensors at the end."""

    def __init__(self, family: Family, branches: Sequence[str], examples: int) -> None:
        self.family = family
        self.branches = tuple(branch_of(name).name for name in branches)
        self.pictures = pictures_of(self.branches)
        self.examples = examples
        self.input_ids: list[int] = []
        self.positions: list[Tensor] = []
        self.blocks: list[Block] = []
        self.distinct: dict[bytes, int] = {}
        self.images: list[dict[str, Tensor]] = []
        self.first_with_images = ""
        self.image_index: list[int] = []
        self.digests = [""] * (len(self.branches) * examples)
        self.weights: dict[int, Sequence[float]] = {}

    def add(self, number: int, example: PreferenceTokens) -> None:
        for reading in readings(example, self.pictures, self.family.image_token_id):
            _check(example, reading, self.family)
            self._lay_out(number, example, reading)

    def _lay_out(self, number: int, example: PreferenceTokens, reading: Reading) -> None:
        start, images_before = len(self.input_ids), len(self.image_index)
        self.input_ids.extend(reading.prompt_ids)
        positions = self.family.positions(reading.prompt_ids, reading.images)
        self.positions.append(positions)
        keys = self._add_images(example, reading.images)
        responses = []
        for response in reading.responses:
            sequence = self.branches.index(response.branch.name) * self.examples + number
            self._add_response(response.ids, int(positions.max()) + 1)
            self.digests[sequence] = branch_digest(reading.prompt_ids, keys, response)
            if response.weights is not None:
                self.weights[sequence] = response.weights
            responses.append((sequence, len(response.ids)))
        placeholders = sum(token == self.family.image_token_id for token in reading.prompt_ids)
        images = len(self.image_index) - images_before
        self.blocks.append(Block(start, len(reading.prompt_ids), tuple(responses), images, placeholders))

    def _add_images(self, example: PreferenceTokens, images: Images) -> bytes:
        """Returns the digests of the images."""
        keys = []
        for image in [] if images is None else self.family.split_images(images):
            keys.append(image_digest(image))
            if keys[-1] not in self.distinct:
                self._check_shapes(example, image)
                self.distinct[keys[-1]] = len(self.images)
                self.images.append(image)
            self.image_index.append(self.distinct[keys[-1]])
        return b"".join(keys)

    def _check_shapes(self, example: PreferenceTokens, image: dict[str, Tensor]) -> None:
        for name, first in self.images[0].items() if self.images else ():
            if image[name].shape[1:] != first.shape[1:]:
                raise InputError(
                    f"example {example.id!r}: {name} of shape {tuple(image[name].shape)} beside {tuple(first.shape)} "
                    f"of {self.first_with_images!r}; process all images with the model's image processor"
                )
        if not self.images:
            self.first_with_images = example.id

    def _add_response(self, ids: Sequence[int], position: int) -> None:
        self.input_ids.extend(ids)
        axes = self.positions[0].shape[0]
        self.positions.append(torch.arange(position, position + len(ids)).expand(axes, -1))

    def finish(self, ids: tuple[str, ...]) -> PackedBatch:
        scored_positions, targets, cu_seqlens = scored(self.blocks, len(self.digests))
        input_ids = torch.tensor(self.input_ids)
        positions = torch.cat(self.positions, dim=1)
        images = {name: torch.cat([image[name] for image in self.images]) for name in (self.images or [{}])[0]}
        return PackedBatch(
            ids=ids,
            digests=tuple(self.digests),
            input_ids=input_ids[None],
            position_ids=positions if positions.shape[0] == 1 else positions[:, None],
            segments=segments_of(self.blocks),
            images=images,
            image_index=tuple(self.image_index),
            image_positions=(input_ids == self.family.image_token_id).nonzero()[:, 0],
            scored_positions=scored_positions,
            targets=input_ids[targets],
            cu_seqlens=cu_seqlens,
            blocks=tuple(self.blocks),
            forks=forks_of(self.blocks) if self.family.carries_state else None,
            branches=self.branches,
            weights=weights_of(self.weights, cu_seqlens),
            on_host=self.family.host_inputs,
        )


def _check(example: PreferenceTokens, reading: Reading, family: Family) -> None:
    check_reading(example, reading, family.image_token_id)
    _check_images(example, reading, family)
    longest = len(reading.prompt_ids) + max(len(response.ids) for response in reading.responses)
    if family.max_branch_tokens is not None and longest > family.max_branch_tokens:
        raise InputError(
            f"example {example.id!r}: a branch of {longest} tokens outgrows the {family.max_branch_tokens} from "
            "which on the model's rotary positions change with the length, which the branches of a packed row "
            "share; shorten it with max_length"
        )


def _check_images(example: PreferenceTokens, reading: Reading, family: Family) -> None:
    images, name = reading.images, reading.source
    missing = [] if images is None else [key for key in family.image_inputs if key not in images]
    if missing:
        raise InputError(
            f"example {example.id!r}: {name} lack {', '.join(missing)}; pass on all that the image processor returns"
        )
    placeholders = sum(token == family.image_token_id for token in reading.prompt_ids)
    try:
        features = 0 if images is None else sum(family.image_lengths(images))
    except InputError as error:
        raise InputError(f"example {example.id!r}: {name}: {error}") from error
    if features != placeholders:
        raise InputError(
            f"example {example.id!r}: {name} make {features} image tokens, but the prompt has {placeholders} "
            "placeholders; expand one placeholder per image feature, and give a rejected image the size of its image"
        )
