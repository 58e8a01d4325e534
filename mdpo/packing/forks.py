"""Where a packed row forks: for layers that carry a state from token to token, and hand a prompt's to every response
behind it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block

# Shapes: T packed tokens, B blocks, P tokens of the longest prompt, S responses, R tokens of the longest


class Forks(NamedTuple):
    """The prompts of a row as a batch, and its responses as another.

    prompts: (B, P) int64, the row's places of their tokens, filled up on the left by T, so that all end in one column.
    responses: (S, R) int64, filled up on the right by T.
    places: (T,) int64, where each of the row's tokens stands among those B · P + S · R, prompts first.
    parents: of each response its prompt. Python ints: read on the host.
    """

    prompts: Tensor
    responses: Tensor
    places: Tensor
    parents: tuple[int, ...]


def forks_of(blocks: Sequence[Block]) -> Forks:
    """The forks of a row; tensors on the CPU."""
    rows = blocks[-1].stop
    prompts = [range(block.start, block.start + block.prompt) for block in blocks]
    responses = [range(start, start + length) for block in blocks for _, start, length in block.response_starts()]
    longest = max(map(len, prompts))
    left = torch.tensor([[*[rows] * (longest - len(prompt)), *prompt] for prompt in prompts])
    # Two columns at least: of a single token the layers make their state in place, which has no gradient.
    longest = max(2, *map(len, responses))
    right = torch.tensor([[*response, *[rows] * (longest - len(response))] for response in responses])
    of_places = torch.cat([left.flatten(), right.flatten()])
    places = torch.empty(rows + 1, dtype=torch.int64).scatter_(0, of_places, torch.arange(len(of_places)))
    parents = tuple(at for at, block in enumerate(blocks) for _ in block.responses)
    return Forks(left, right, places[:rows], parents)
