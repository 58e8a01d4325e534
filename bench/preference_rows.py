"""Pairs with the lengths of real preference data: 60 text tokens and an image, responses log-normal with median 120."""

import random

import torch

from bench.models import Shape
from mdpo.packing import PreferenceTokens

TEXT_TOKENS, RESPONSE_MEDIAN, SPREAD, LONGEST = 60, 120, 0.6, 400  # σ of the logarithm; tokens of a response at most


def preference_rows(
    shape: Shape, count: int, *, image_tokens: int, shrink: int = 1, seed: int = 0
) -> list[PreferenceTokens]:
    """Random tokens and images. shrink: divides all text lengths, for a CPU; the image's tokens are the caller's."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    side = round(image_tokens**0.5) * shape.patch_size
    image_token = shape.text.vocab_size - 1

    def ids(length: int) -> list[int]:
        return [rng.randrange(image_token) for _ in range(length)]

    def response() -> list[int]:
        return ids(max(1, min(LONGEST, round(RESPONSE_MEDIAN * rng.lognormvariate(0, SPREAD))) // shrink))

    def image() -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(1, 3, side, side, generator=generator)}

    return [
        PreferenceTokens(
            id=str(index),
            prompt_ids=[image_token] * image_tokens + ids(TEXT_TOKENS // shrink),
            chosen_ids=response(),
            rejected_ids=response(),
            images=image(),
            rejected_images=image(),
        )
        for index in range(count)
    ]
