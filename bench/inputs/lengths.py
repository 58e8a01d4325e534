"""Lengths as in real preference data, in tokens; whatever is measured on drawn lengths draws them here."""

import random

import numpy as np

TEXT_TOKENS = 60
"""Of a prompt, beside its image."""
RESPONSE_MEDIAN, SPREAD, LONGEST = 120, 0.6, 400
"""Of a response: log-normal, SPREAD being the σ of the logarithm; none is longer than LONGEST."""

PROMPTS = ("one resolution", "two resolutions", "many resolutions")
# Of an epoch: questions log-normal too, and a packed row between what the shortest and the longest of them make.
_QUESTION_MEDIAN, _QUESTION_SPREAD, _SHORTEST_ROW, _LONGEST_ROW = 70, 0.3, 1_300, 3_999
_IMAGE_TOKENS = 576


def response_length(rng: random.Random, shrink: int = 1) -> int:
    """One response's. shrink: divides it, for a CPU."""
    return max(1, min(LONGEST, round(RESPONSE_MEDIAN * rng.lognormvariate(0, SPREAD))) // shrink)


def realistic_lengths(num_examples: int, prompts: str = "one resolution", seed: int = 0) -> list[int]:
    """Packed tokens 2P + 2·R_chosen + R_rejected of an epoch's examples.

    Args:
        num_examples: how many.
        prompts: one of `PROMPTS`: P is 576 image tokens and a question of about 70, with the image's tokens doubled
            for every other example, or anywhere from one to two times as many (LLaVA-1.5, LLaVA-NeXT, Qwen2.5-VL).
        seed: of the draw.
    """
    draw = np.random.default_rng(seed)
    times = {
        "one resolution": np.ones(num_examples),
        "two resolutions": draw.integers(1, 3, num_examples),
        "many resolutions": draw.uniform(1, 2, num_examples),
    }[prompts]
    question = draw.lognormal(np.log(_QUESTION_MEDIAN), _QUESTION_SPREAD, num_examples)
    chosen, rejected = draw.lognormal(np.log(RESPONSE_MEDIAN), SPREAD, (2, num_examples))
    packed = 2 * (_IMAGE_TOKENS * times + question) + 2 * chosen + rejected
    return np.clip(packed, _SHORTEST_ROW, _LONGEST_ROW).astype(int).tolist()
