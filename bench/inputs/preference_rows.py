"""Pairs of random tokens and images, with the lengths of real preference data or all of one length."""

import random
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from bench.inputs.lengths import TEXT_TOKENS, response_length
from bench.inputs.models import Shape
from mdpo.data import PreferenceDataset, Rows
from mdpo.data.nearest import Embed
from mdpo.packing import PreferenceTokens


def preference_rows(
    shape: Shape, count: int, *, image_tokens: int, shrink: int = 1, seed: int = 0
) -> list[PreferenceTokens]:
    """Random tokens and images. shrink: divides all text lengths, for a CPU; the image's tokens are the caller's."""
    rng = random.Random(seed)
    responses = [(response_length(rng, shrink), response_length(rng, shrink)) for _ in range(count)]
    return _rows(shape, image_tokens + TEXT_TOKENS // shrink, responses, image_tokens, seed)


def even_rows(
    shape: Shape,
    prompt: int,
    response: int,
    count: int,
    *,
    image_tokens: int,
    negatives: int = 1,
    contrast: bool = False,
) -> list[PreferenceTokens]:
    """Responses around one length, spread by a quarter where there are several pairs: padding has something to pad.

    negatives: rejected images of each. contrast: with an answer to the first of them, as long as the chosen one.
    """
    spreads = [round(response * (1 + spread)) for spread in (-0.25, 0.25)] if count > 1 else [response, response]
    responses = [(spreads[index % 2], spreads[(index + 1) % 2]) for index in range(count)]
    return _rows(shape, prompt, responses, image_tokens, 0, negatives, contrast)


def _rows(
    shape: Shape,
    prompt: int,
    responses: Sequence[tuple[int, int]],
    image_tokens: int,
    seed: int,
    negatives: int = 1,
    contrast: bool = False,
) -> list[PreferenceTokens]:
    """prompt: tokens, the image's among them. responses: tokens of chosen and rejected."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    side = round(image_tokens**0.5) * shape.patch_size
    image_token = shape.text.vocab_size - 1

    def ids(length: int) -> list[int]:
        return [rng.randrange(image_token) for _ in range(length)]

    def image() -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(1, 3, side, side, generator=generator)}

    return [
        PreferenceTokens(
            id=str(index),
            prompt_ids=[image_token] * image_tokens + ids(prompt - image_tokens),
            chosen_ids=ids(chosen),
            rejected_ids=ids(rejected),
            images=image(),
            rejected_images=image() if negatives == 1 else [image() for _ in range(negatives)],
            contrast_ids=ids(chosen) if contrast else None,
        )
        for index, (chosen, rejected) in enumerate(responses)
    ]


class TokenPairs(PreferenceDataset):
    """Examples that are token ids already, where the trainer expects to find its dataset."""

    def __init__(self, examples: Sequence[PreferenceTokens]) -> None:
        self.examples = list(examples)
        self.rows = Rows.of([])  # of which a run compares the images with a checkpoint's
        self.lengths = np.array([example.packed_length for example in examples])

    def __getitem__(self, item: int | tuple[int, int | None]) -> PreferenceTokens:
        return self.examples[item[0] if isinstance(item, tuple) else item]

    def __len__(self) -> int:
        return len(self.examples)

    def digest(self) -> str:
        return f"{len(self.examples)} random examples"

    def find_neighbours(self, embed: Embed) -> None:
        """Negatives are made already."""

    def any_with(self, branches: Collection[str]) -> bool:
        return True

    def size_settings(self) -> dict[str, Any]:
        return {}

    def first_with_images(self) -> int | None:
        return next((index for index, example in enumerate(self.examples) if example.images), None)

    def longest_branch(self) -> tuple[int, int]:
        return max(
            (len(example.prompt_ids) + max(len(example.chosen_ids), len(example.rejected_ids)), index)
            for index, example in enumerate(self.examples)
        )

    def largest_token_id(self) -> tuple[int, int]:
        return max(
            (max(ids), index)
            for index, example in enumerate(self.examples)
            for ids in (example.prompt_ids, example.chosen_ids, example.rejected_ids)
        )
