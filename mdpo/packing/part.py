"""Some of a micro-batch as one of its own: what has to be computed where the rest is known."""

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .blocks import Block, scored, segments_of
from .forks import forks_of
from .layout import PackedBatch
from .separate import SeparateBatch, part_of_sequences

# Shapes: K branches, B examples, N scored tokens, M image tokens


class Part(NamedTuple):
    """packed: with the sequences of its blocks, the others empty. image_tokens: (m,) int64, which of the row's M image
    tokens it has, in order; None where it has all."""

    packed: Batch
    image_tokens: Tensor | None


def part(packed: Batch, sequences: Collection[int]) -> Part:
    """Of a packed row the blocks that hold any of these sequences, with all the sequences that they hold; of sequences
    of their own these alone.

    sequences: out of 0 … K·B − 1, in the order of ``cu_seqlens``.
    """
    if isinstance(packed, SeparateBatch):
        return Part(part_of_sequences(packed, sequences), None)
    assert isinstance(packed, PackedBatch)
    wanted = set(sequences)
    rows: list[int] = []
    image_tokens: list[int] = []
    image_index: list[int] = []
    blocks: list[Block] = []
    images = placeholders = 0
    for block in packed.blocks:
        if any(sequence in wanted for sequence, _ in block.responses):
            blocks.append(block._replace(start=len(rows)))
            rows += range(block.start, block.stop)
            image_index += packed.image_index[images : images + block.images]
            image_tokens += range(placeholders, placeholders + block.image_positions)
        images += block.images
        placeholders += block.image_positions
    if len(blocks) == len(packed.blocks):
        return Part(packed, None)
    device = packed.input_ids.device
    index, tokens = (torch.tensor(numbers, dtype=torch.int64, device=device) for numbers in (rows, image_tokens))
    input_ids = packed.input_ids.index_select(1, index)
    scored_positions, targets, cu_seqlens = scored(blocks, len(packed.digests))
    held = {sequence for block in blocks for sequence, _ in block.responses}
    found = replace(
        packed,
        digests=tuple(digest if number in held else "" for number, digest in enumerate(packed.digests)),
        input_ids=input_ids,
        position_ids=packed.position_ids.index_select(-1, index),
        segments=segments_of(blocks),
        images=packed.images if image_index else {},
        image_index=tuple(image_index),
        image_positions=torch.searchsorted(index, packed.image_positions.index_select(0, tokens)),
        scored_positions=scored_positions,
        targets=input_ids[0].index_select(0, targets.to(device)),
        cu_seqlens=cu_seqlens,
        blocks=tuple(blocks),
        forks=None if packed.forks is None else forks_of(blocks),
        weights=None
        if packed.weights is None
        else packed.weights.index_select(0, _scored_tokens(packed, held).to(device)),
    )
    return Part(found.to(device), tokens)


def _scored_tokens(packed: PackedBatch, sequences: Collection[int]) -> Tensor:
    """(n,) int64, which of the row's N scored tokens are of these sequences."""
    _, _, cu_seqlens = scored(packed.blocks, len(packed.digests))
    bounds = cu_seqlens.tolist()
    return torch.tensor([at for number in sorted(sequences) for at in range(bounds[number], bounds[number + 1])])
