"""What stands where on a packed row: a prompt with one of its pictures, and behind it every response that reads it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdpo_kernels import Segments

# Shapes: S sequences, N scored tokens


class Block(NamedTuple):
    """One prompt and its responses.

    start: its first row. prompt: how many rows the prompt takes. responses: of each its sequence, a number among those
    of the row, and its rows. images, image_positions: how many of the row's images and of their placeholders it holds.
    """

    start: int
    prompt: int
    responses: tuple[tuple[int, int], ...]
    images: int
    image_positions: int

    @property
    def stop(self) -> int:
        return self.start + self.prompt + sum(length for _, length in self.responses)

    def response_starts(self) -> Iterable[tuple[int, int, int]]:
        """(sequence, first row, length) of each response."""
        start = self.start + self.prompt
        for sequence, length in self.responses:
            yield sequence, start, length
            start += length


def segments_of(blocks: Sequence[Block]) -> Segments:
    """The first response is one segment with its prompt, each other one reads the prompt and itself."""
    queries: list[tuple[int, int]] = []
    keys: list[list[tuple[int, int]]] = []
    for block in blocks:
        prompt = (block.start, block.start + block.prompt)
        for number, (_, start, length) in enumerate(block.response_starts()):
            response = (start, start + length)
            queries.append(response if number else (prompt[0], response[1]))
            keys.append([prompt, response] if number else queries[-1:])
    return Segments.build(queries, keys)


def scored(blocks: Sequence[Block], sequences: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of all sequences, one behind the other: (N,) int64 the row that predicts each token, (N,) int64 the row of that
    token, and (S + 1,) int32 where each begins.

    The prompt's last row predicts the first token of every response behind it; a response's last token predicts
    nothing.
    """
    places = {
        sequence: (block.start + block.prompt - 1, start, length)
        for block in blocks
        for sequence, start, length in block.response_starts()
    }
    rows: list[int] = []
    tokens: list[int] = []
    bounds = [0]
    for sequence in range(sequences):
        if sequence in places:
            before, start, length = places[sequence]
            rows += [before, *range(start, start + length - 1)]
            tokens += range(start, start + length)
        bounds.append(len(rows))
    return torch.tensor(rows), torch.tensor(tokens), torch.tensor(bounds, dtype=torch.int32)
