"""Examples laid out on one row, prefixes shared.

Each example becomes ``[prefix][y_w][y_l]`` and, where it has a rejected image, ``[prefix'][y_w]``. Three attention
segments read it: ``[prefix+y_w]`` on itself, ``[y_l]`` on prefix + y_l, ``[prefix'+y_w]`` on itself. The example says
what is shared: token ids are never compared, so the prompt of the cropped image can't be taken for the other one.
"""

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mdpo.errors import InputError
from mdpo_kernels import Segments

from .families import Family, family_of
from .tokens import PreferenceTokens

BRANCHES = ("chosen", "rejected", "image_rejected")

# Shapes: B examples, T packed tokens, N scored tokens, D position axes, M image tokens


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """A micro-batch as one row.

    ids: the B examples, in order.
    digests: of everything the model sees of each example: its token ids and its processed images.
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
    cu_seqlens: (3B+1,) int32, where each sequence of scored tokens begins: chosen 1…B, rejected 1…B, image_rejected
        1…B. An empty sequence is a branch that the example does not have.
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
    on_host: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

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


def pack(examples: Sequence[PreferenceTokens], model) -> PackedBatch:
    """Lays examples out on one row.

    model: any supported Hugging Face model, bare or wrapped by PEFT, or its ``Family``.

    Raises InputError with the example's id where a response is empty, the number of placeholders is not the number of
    image features, or the rejected image expands to another number of tokens.
    """
    if not examples:
        raise InputError("pack needs at least one example, got none")
    family = family_of(model) if hasattr(model, "config") else model
    row = _Row(family)
    for example in examples:
        _check(example, family)
        row.add(example)
    return row.finish(tuple(example.id for example in examples))


class _Row:
    """The row as it grows. Plain lists: one conversion to tensors at the end."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.input_ids: list[int] = []
        self.positions: list[Tensor] = []
        self.query_ranges: list[tuple[int, int]] = []
        self.key_ranges: list[list[tuple[int, int]]] = []
        self.scored: dict[str, list[tuple[list[int], Sequence[int]]]] = {name: [] for name in BRANCHES}
        self.distinct: dict[bytes, int] = {}
        self.images: list[dict[str, Tensor]] = []
        self.first_with_images = ""
        self.image_index: list[int] = []
        self.digests: list[str] = []

    def add(self, example: PreferenceTokens) -> None:
        images_before = len(self.image_index)
        self._lay_out(example)
        digest = hashlib.blake2b(digest_size=16)
        for ids in (example.prompt_ids, example.chosen_ids, example.rejected_ids):
            digest.update(array("q", [len(ids), *ids]))
        by_index = list(self.distinct)
        digest.update(b"".join(by_index[index] for index in self.image_index[images_before:]))
        self.digests.append(digest.hexdigest())

    def _lay_out(self, example: PreferenceTokens) -> None:
        prefix, after = self._prefix(example, example.images)
        chosen = self._response(example.chosen_ids, after)
        self._segment((prefix[0], chosen[1]), [(prefix[0], chosen[1])])
        rejected = self._response(example.rejected_ids, after)
        self._segment(rejected, [prefix, rejected])
        self._score("chosen", prefix, chosen, example.chosen_ids)
        self._score("rejected", prefix, rejected, example.rejected_ids)
        if example.rejected_images is None:
            self.scored["image_rejected"].append(([], []))
            return
        prefix, after = self._prefix(example, example.rejected_images)
        chosen = self._response(example.chosen_ids, after)
        self._segment((prefix[0], chosen[1]), [(prefix[0], chosen[1])])
        self._score("image_rejected", prefix, chosen, example.chosen_ids)

    def _prefix(
        self, example: PreferenceTokens, images: Mapping[str, Tensor] | None
    ) -> tuple[tuple[int, int], int]:
        start = len(self.input_ids)
        self.input_ids.extend(example.prompt_ids)
        positions = self.family.positions(example.prompt_ids, images)
        self.positions.append(positions)
        for image in [] if images is None else self.family.split_images(images):
            key = _digest(image)
            if key not in self.distinct:
                self._check_shapes(example, image)
                self.distinct[key] = len(self.images)
                self.images.append(image)
            self.image_index.append(self.distinct[key])
        return (start, len(self.input_ids)), int(positions.max()) + 1

    def _check_shapes(self, example: PreferenceTokens, image: dict[str, Tensor]) -> None:
        for name, first in self.images[0].items() if self.images else ():
            if image[name].shape[1:] != first.shape[1:]:
                raise InputError(
                    f"example {example.id!r}: {name} of shape {tuple(image[name].shape)} beside {tuple(first.shape)} "
                    f"of {self.first_with_images!r}; process all images with the model's image processor"
                )
        if not self.images:
            self.first_with_images = example.id

    def _response(self, ids: Sequence[int], position: int) -> tuple[int, int]:
        start = len(self.input_ids)
        self.input_ids.extend(ids)
        axes = self.positions[0].shape[0]
        self.positions.append(torch.arange(position, position + len(ids)).expand(axes, -1))
        return start, len(self.input_ids)

    def _segment(self, query: tuple[int, int], keys: list[tuple[int, int]]) -> None:
        self.query_ranges.append(query)
        self.key_ranges.append(keys)

    def _score(self, branch: str, prefix: tuple[int, int], response: tuple[int, int], ids: Sequence[int]) -> None:
        # The last prefix row predicts the first token, of y_w and of y_l alike; the last token predicts nothing.
        rows = [prefix[1] - 1, *range(response[0], response[1] - 1)]
        self.scored[branch].append((rows, ids))

    def finish(self, ids: tuple[str, ...]) -> PackedBatch:
        sequences = [sequence for name in BRANCHES for sequence in self.scored[name]]
        lengths = torch.tensor([0, *(len(rows) for rows, _ in sequences)])
        input_ids = torch.tensor(self.input_ids)
        positions = torch.cat(self.positions, dim=1)
        images = {name: torch.cat([image[name] for image in self.images]) for name in (self.images or [{}])[0]}
        return PackedBatch(
            ids=ids,
            digests=tuple(self.digests),
            input_ids=input_ids[None],
            position_ids=positions if positions.shape[0] == 1 else positions[:, None],
            segments=Segments.build(self.query_ranges, self.key_ranges),
            images=images,
            image_index=tuple(self.image_index),
            image_rows=(input_ids == self.family.image_token_id).nonzero()[:, 0],
            scored_rows=torch.tensor([row for rows, _ in sequences for row in rows]),
            targets=torch.tensor([token for _, tokens in sequences for token in tokens]),
            cu_seqlens=lengths.cumsum(0).to(torch.int32),
            on_host=self.family.host_inputs,
        )


def _check(example: PreferenceTokens, family: Family) -> None:
    if not example.prompt_ids:
        raise InputError(f"example {example.id!r}: the prompt is empty; there is no row to predict the response from")
    for name, ids in (("chosen", example.chosen_ids), ("rejected", example.rejected_ids)):
        if not ids:
            raise InputError(f"example {example.id!r}: the {name} response is empty; it needs its EOS token at least")
        if family.image_token_id in ids:
            raise InputError(f"example {example.id!r}: the {name} response holds the image placeholder token")
    placeholders = sum(token == family.image_token_id for token in example.prompt_ids)
    for name, images in (("images", example.images), ("rejected_images", example.rejected_images)):
        if images is None and name == "rejected_images":
            continue
        missing = [] if images is None else [key for key in family.image_inputs if key not in images]
        if missing:
            raise InputError(
                f"example {example.id!r}: {name} lack {', '.join(missing)}; pass on all that the image processor returns"
            )
        features = 0 if images is None else sum(family.image_lengths(images))
        if features != placeholders:
            raise InputError(
                f"example {example.id!r}: {name} make {features} image tokens, but the prompt has {placeholders} "
                "placeholders; expand one placeholder per image feature, and give a rejected image the size of its image"
            )
    longest = len(example.prompt_ids) + max(len(example.chosen_ids), len(example.rejected_ids))
    if family.max_branch_tokens is not None and longest > family.max_branch_tokens:
        raise InputError(
            f"example {example.id!r}: a branch of {longest} tokens outgrows the model's sliding window of "
            f"{family.max_branch_tokens}, or the length from which its rotary positions change, and a packed row honours "
            "neither; shorten it with max_length"
        )


def _digest(image: dict[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(image.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
