"""What is wrong with an example in any layout."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mdpo.errors import InputError

from .readings import Reading
from .tokens import PreferenceTokens


def check_reading(example: PreferenceTokens, reading: Reading, image_token_id: int) -> None:
    """Raises InputError with the example's id where its prompt or a response is empty, or holds what it must not."""
    if not reading.prompt_ids:
        raise InputError(f"example {example.id!r}: the prompt is empty; there is no row to predict the response from")
    for branch, ids, weights in reading.responses:
        name = branch.response
        if not ids:
            raise InputError(f"example {example.id!r}: the {name} response is empty; it needs at least its EOS token")
        if image_token_id in ids:
            raise InputError(f"example {example.id!r}: the {name} response contains the image placeholder token")
        if weights is not None and len(weights) != len(ids):
            raise InputError(
                f"example {example.id!r}: {len(weights)} {name}_weights for {len(ids)} tokens; give one per token"
            )


def weights_of(found: Mapping[int, Sequence[float]], cu_seqlens: Tensor) -> Tensor | None:
    """(N,) float32 of all scored tokens, 1 where none are given; None where that is everywhere. found: by sequence."""
    if not found:
        return None
    weights = torch.ones(int(cu_seqlens[-1]))
    for sequence, given in found.items():
        weights[int(cu_seqlens[sequence]) : int(cu_seqlens[sequence + 1])] = torch.tensor(given, dtype=torch.float32)
    return weights
