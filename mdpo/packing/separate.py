"""Each branch a sequence of its own, padded on the right: for models that no packed row is known to compute exactly.

Such a model reads what its processor made of a branch through its own forward, and does with it what it does: mixes
image tokens in both directions, carries states from token to token, counts positions its own way. That takes 3P + 3R
tokens where a packed row takes 2P + 3R. How an image becomes tokens has not to be known here: the model counts its
placeholders itself.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mdpo.errors import InputError

from .batch import Batch
from .branches import branch_of, pictures_of
from .checks import check_reading, weights_of
from .digests import branch_digest, image_digest
from .families import Separate
from .readings import Images, Reading, Response, readings
from .tokens import PreferenceTokens

# Shapes: B examples, K branches, S sequences present, L tokens of the longest, N scored tokens

# What says how much of a padded image is image.
_SAYS_SIZES = ("mask", "size", "shape")


class Row(NamedTuple):
    """A sequence as it is laid out. sequence: a number among the K·B of ``cu_seqlens``. entries: how many it has of
    each tensor of images, along the first dimension."""

    sequence: int
    prompt: int
    response: int
    entries: Mapping[str, int]

    @property
    def length(self) -> int:
        return self.prompt + self.response


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SeparateBatch(Batch):
    """A micro-batch as sequences of their own, in the order of ``cu_seqlens``, absent branches left out.

    input_ids: (S, L) int64. Padding repeats a row's last token, which no model takes for a mark of something.
    attention_mask: (S, L) int64, 1 where a token is the data's.
    prompt_lengths: (S,) int64.
    images: what the image processor returned for each sequence, one behind the other along the first dimension.
    rows: what the sequences are.
    """

    attention_mask: Tensor
    prompt_lengths: Tensor
    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        return sum(row.length for row in self.rows)


class _Branch(NamedTuple):
    """A branch of an example, before it is laid out."""

    sequence: int
    example: str
    prompt_ids: Sequence[int]
    images: Images
    response: Response


def lay_out_separately(
    examples: Sequence[PreferenceTokens], family: Separate, branches: Sequence[str]
) -> SeparateBatch:
    """Raises InputError as ``pack``, where a rejected image is not processed to the size of its image, and where images
    of different sizes cannot stand in one batch."""
    names = tuple(branch_of(name).name for name in branches)
    digests = [""] * (len(names) * len(examples))
    found: list[_Branch] = []
    pictures = pictures_of(names)
    for number, example in enumerate(examples):
        for reading in readings(example, pictures, family.image_token_id):
            check_reading(example, reading, family.image_token_id)
            _check_images(example, reading, family)
            key = b"" if reading.images is None else image_digest(reading.images)
            for response in reading.responses:
                sequence = names.index(response.branch.name) * len(examples) + number
                digests[sequence] = branch_digest(reading.prompt_ids, key, response)
                found.append(_Branch(sequence, example.id, reading.prompt_ids, reading.images, response))
    found.sort(key=lambda branch: branch.sequence)
    rows = tuple(
        Row(
            each.sequence,
            len(each.prompt_ids),
            len(each.response.ids),
            {n: len(t) for n, t in (each.images or {}).items()},
        )
        for each in found
    )
    input_ids, attention_mask = _padded([[*each.prompt_ids, *each.response.ids] for each in found])
    scored_positions, cu_seqlens = _scored(rows, input_ids.shape[1], len(digests))
    weights = {each.sequence: each.response.weights for each in found if each.response.weights is not None}
    return SeparateBatch(
        ids=tuple(example.id for example in examples),
        digests=tuple(digests),
        input_ids=input_ids,
        attention_mask=attention_mask,
        prompt_lengths=torch.tensor([row.prompt for row in rows]),
        images=_joined(found),
        scored_positions=scored_positions,
        targets=input_ids.flatten()[scored_positions + 1],
        cu_seqlens=cu_seqlens,
        branches=names,
        weights=weights_of(weights, cu_seqlens),
        rows=rows,
    )


def part_of_sequences(batch: SeparateBatch, sequences: Collection[int]) -> SeparateBatch:
    """The batch with some of its sequences alone. sequences: out of 0 … K·B − 1, in the order of ``cu_seqlens``."""
    kept = [at for at, row in enumerate(batch.rows) if row.sequence in sequences]
    if len(kept) == len(batch.rows):
        return batch
    rows = tuple(batch.rows[at] for at in kept)
    device = batch.input_ids.device
    index = torch.tensor(kept, device=device)
    longest = max((row.length for row in rows), default=0)
    input_ids = batch.input_ids.index_select(0, index)[:, :longest]
    scored_positions, cu_seqlens = (tensor.to(device) for tensor in _scored(rows, longest, len(batch.digests)))
    held = {row.sequence for row in rows}
    return replace(
        batch,
        digests=tuple(digest if number in held else "" for number, digest in enumerate(batch.digests)),
        input_ids=input_ids,
        attention_mask=batch.attention_mask.index_select(0, index)[:, :longest],
        prompt_lengths=batch.prompt_lengths.index_select(0, index),
        images=_kept_images(batch, kept),
        scored_positions=scored_positions,
        targets=input_ids.flatten().index_select(0, scored_positions + 1),
        cu_seqlens=cu_seqlens,
        weights=_kept_weights(batch, kept),
        rows=rows,
    )


def _kept_images(batch: SeparateBatch, kept: Sequence[int]) -> dict[str, Tensor]:
    if not any(batch.rows[at].entries for at in kept):
        return {}
    images = {}
    for name, tensor in batch.images.items():
        pieces = tensor.split([row.entries.get(name, 0) for row in batch.rows])
        images[name] = torch.cat([pieces[at] for at in kept])
    return images


def _kept_weights(batch: SeparateBatch, kept: Sequence[int]) -> Tensor | None:
    if batch.weights is None:
        return None
    pieces = batch.weights.split([row.response for row in batch.rows])
    return torch.cat([pieces[at] for at in kept])


def _padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (S, L) int64 each."""
    longest = max(map(len, sequences))
    ids = [[*sequence, *[sequence[-1]] * (longest - len(sequence))] for sequence in sequences]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return torch.tensor(ids), (torch.arange(longest) < lengths[:, None]).long()


def _scored(rows: Sequence[Row], longest: int, sequences: int) -> tuple[Tensor, Tensor]:
    """(N,) int64 the place in the flattened batch that predicts each token of the responses, right before the token
    itself; (K·B + 1,) int32 where each sequence begins."""
    places = [at * longest + row.prompt - 1 + token for at, row in enumerate(rows) for token in range(row.response)]
    lengths = {row.sequence: row.response for row in rows}
    bounds = accumulate((lengths.get(sequence, 0) for sequence in range(sequences)), initial=0)
    return torch.tensor(places), torch.tensor(list(bounds), dtype=torch.int32)


def _joined(branches: Sequence[_Branch]) -> dict[str, Tensor]:
    """Every branch's images, one behind the other, filled up with zeros where the model is told how large they are."""
    with_images = [branch for branch in branches if branch.images is not None]
    names = dict.fromkeys(name for branch in with_images for name in branch.images or ())
    joined = {}
    for name in names:
        for branch in with_images:
            if name not in (branch.images or {}):
                raise InputError(
                    f"example {branch.example!r}: its images lack {name}, which those of other examples have; "
                    "pass on all that the image processor returns"
                )
        tensors = [(branch.images or {})[name] for branch in with_images]
        shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        odd = next((b for b, tensor in zip(with_images, tensors, strict=True) if list(tensor.shape[1:]) != shape), None)
        if odd is not None and not any(word in other for other in names for word in _SAYS_SIZES):
            raise InputError(
                f"example {odd.example!r}: {name} of shape {tuple((odd.images or {})[name].shape)} beside images "
                f"of up to {tuple(shape)}, and nothing says which of them is how large; process all images to one size"
            )
        joined[name] = torch.cat([_filled(tensor, shape) for tensor in tensors])
    return joined


def _filled(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """With zeros behind its own values, in every dimension but the first."""
    missing = [(0, size - own) for own, size in zip(tensor.shape[1:], shape, strict=True)]
    return F.pad(tensor, [side for pair in reversed(missing) for side in pair])


def _check_images(example: PreferenceTokens, reading: Reading, family: Separate) -> None:
    """The model counts features and placeholders, but over a whole batch: one image too many could fill another's
    places.
    """
    placeholders = sum(token == family.image_token_id for token in reading.prompt_ids)
    if (reading.images is None) != (placeholders == 0):
        raise InputError(
            f"example {example.id!r}: the prompt has {placeholders} placeholders and {reading.source} are "
            f"{'missing' if reading.images is None else 'there'}; expand one placeholder per image feature"
        )
    for name, tensor in (reading.images or {}).items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"example {example.id!r}: {name} of {reading.source} is a {type(tensor).__name__}, not a tensor; "
                "call the image "
                'processor with return_tensors="pt"'
            )
        own = (example.images or {}).get(name)
        if own is None or own.shape != tensor.shape or (_says_sizes(tensor) and not torch.equal(own, tensor)):
            raise InputError(
                f"example {example.id!r}: {name} of {reading.source} differs in shape or size from that of "
                "images; give a rejected image the size of its image"
            )


def _says_sizes(tensor: Tensor) -> bool:
    return not tensor.is_floating_point()
