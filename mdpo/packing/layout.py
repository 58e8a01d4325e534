"""Examples laid out on one row, prefixes shared.

Each example becomes a block for every picture that its branches read, ``[prompt][response][response]…``: mDPO's are
``[prefix][y_w][y_l]`` and, where it has a rejected image, ``[prefix'][y_w]``. A block's first response is one attention
segment with the prompt, every other one reads the prompt and itself. The branches say what is shared: token ids are never
compared, so the prompt of the cropped image can't be taken for the other one.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mdpo.errors import InputError
from mdpo_kernels import Segments

from .blocks import Block, scored, segments_of
from .branches import MDPO_BRANCHES, branch_of, pictures_of
from .families import Family, family_of
from .readings import Images, Reading, Response, readings
from .tokens import PreferenceTokens

# Shapes: B examples, K branches, T packed tokens, N scored tokens, D position axes, M image tokens


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """A micro-batch as one row.

    ids: the B examples, in order.
    digests: of all that the log-prob of each sequence depends on: token ids, their weights and processed images; "" for a
        branch that the example does not have.
    input_ids: (1, T) int64.
    position_ids: (1, T) int64, or (3, 1, T) for families with multimodal positions. They restart in every branch.
    segments: the attention of the row, see ``mdpo_kernels.varlen_attention``.
    images: what the vision tower reads, each distinct image once; empty without images. Where a family cuts pictures
        into tiles, an image is a tile.
    on_host: names of images that stay on the host when the batch is moved: sizes, which the model reads there.
    image_index: for every image of the row, in order, which distinct image it is. Python ints: read on the host.
    image_rows: (M,) int64, the rows of the placeholders those images fill, in order.
    scored_rows: (N,) int64, the row whose hidden state predicts each scored token.
    targets: (N,) int64, those tokens.
    cu_seqlens: (K·B+1,) int32, where each sequence of scored tokens begins: the first branch of examples 1…B, the second
        of examples 1…B, … An empty sequence is a branch that the example does not have.
    blocks: what stands where.
    branches: the K branches by name.
    weights: (N,) float32, how much each scored token counts; None: 1 each.
    """

    ids: tuple[str, ...]
    digests: tuple[str, ...]
    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    images: dict[str, Tensor]
    image_index: tuple[int, ...]
    image_rows: Tensor
    scored_rows: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    blocks: tuple[Block, ...] = ()
    branches: tuple[str, ...] = MDPO_BRANCHES
    weights: Tensor | None = None
    on_host: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def present(self) -> Tensor:
        """(K, B) bool, on the row's device: which branches each example has."""
        return (self.cu_seqlens.diff() > 0).view(len(self.branches), -1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The batch on ``device``, but for the images that stay on the host."""
        moved = self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, images=moved.images | {name: self.images[name] for name in self.on_host if name in self.images})

    def pin_memory(self) -> "PackedBatch":
        return self.map_tensors(Tensor.pin_memory)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "PackedBatch":
        """The batch with every tensor of it replaced."""
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, dict):
                changed[field.name] = {name: function(tensor) for name, tensor in value.items()}
            elif isinstance(value, Segments):
                tensors = {name: function(v) for name, v in value._asdict().items() if isinstance(v, Tensor)}
                changed[field.name] = value._replace(**tensors)
        return replace(self, **changed)


def pack(examples: Sequence[PreferenceTokens], model, *, branches: Sequence[str] = MDPO_BRANCHES) -> PackedBatch:
    """Lays examples out on one row.

    model: any supported Hugging Face model, bare or wrapped by PEFT, or its ``Family``.
    branches: what each example is read as, by the names of ``mdpo.packing.branches``. One that an example lacks the picture
        or the answer for is an empty sequence.

    Raises InputError with the example's id where a response is empty, the number of placeholders is not the number of
    image features, or a rejected image expands to another number of tokens.
    """
    if not examples:
        raise InputError("pack needs at least one example, got none")
    row = _Row(family_of(model) if hasattr(model, "config") else model, branches, len(examples))
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
            self.digests[sequence] = _digest(reading.prompt_ids, keys, response)
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
            keys.append(_image_digest(image))
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
        scored_rows, targets, cu_seqlens = scored(self.blocks, len(self.digests))
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
            image_rows=(input_ids == self.family.image_token_id).nonzero()[:, 0],
            scored_rows=scored_rows,
            targets=input_ids[targets],
            cu_seqlens=cu_seqlens,
            blocks=tuple(self.blocks),
            branches=self.branches,
            weights=self._weights(cu_seqlens),
            on_host=self.family.host_inputs,
        )

    def _weights(self, cu_seqlens: Tensor) -> Tensor | None:
        if not self.weights:
            return None
        found = torch.ones(int(cu_seqlens[-1]))
        for sequence, weights in self.weights.items():
            found[int(cu_seqlens[sequence]) : int(cu_seqlens[sequence + 1])] = torch.tensor(weights, dtype=torch.float32)
        return found


def _check(example: PreferenceTokens, reading: Reading, family: Family) -> None:
    if not reading.prompt_ids:
        raise InputError(f"example {example.id!r}: the prompt is empty; there is no row to predict the response from")
    for branch, ids, weights in reading.responses:
        name = branch.response
        if not ids:
            raise InputError(f"example {example.id!r}: the {name} response is empty; it needs its EOS token at least")
        if family.image_token_id in ids:
            raise InputError(f"example {example.id!r}: the {name} response holds the image placeholder token")
        if weights is not None and len(weights) != len(ids):
            raise InputError(
                f"example {example.id!r}: {len(weights)} {name}_weights for {len(ids)} tokens; give one per token"
            )
    _check_images(example, reading, family)
    longest = len(reading.prompt_ids) + max(len(response.ids) for response in reading.responses)
    if family.max_branch_tokens is not None and longest > family.max_branch_tokens:
        raise InputError(
            f"example {example.id!r}: a branch of {longest} tokens outgrows the model's sliding window of "
            f"{family.max_branch_tokens}, or the length from which its rotary positions change, and a packed row honours "
            "neither; shorten it with max_length"
        )


def _check_images(example: PreferenceTokens, reading: Reading, family: Family) -> None:
    images, name = reading.images, reading.source
    missing = [] if images is None else [key for key in family.image_inputs if key not in images]
    if missing:
        raise InputError(
            f"example {example.id!r}: {name} lack {', '.join(missing)}; pass on all that the image processor returns"
        )
    placeholders = sum(token == family.image_token_id for token in reading.prompt_ids)
    features = 0 if images is None else sum(family.image_lengths(images))
    if features != placeholders:
        raise InputError(
            f"example {example.id!r}: {name} make {features} image tokens, but the prompt has {placeholders} "
            "placeholders; expand one placeholder per image feature, and give a rejected image the size of its image"
        )


def _digest(prompt_ids: Sequence[int], images: bytes, response: Response) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for ids in (prompt_ids, response.ids):
        digest.update(array("q", [len(ids), *ids]))
    if response.weights is not None:
        digest.update(array("d", [len(response.weights), *response.weights]))
    digest.update(images)
    return digest.hexdigest()


def _image_digest(image: dict[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(image.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
