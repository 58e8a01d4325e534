"""Plans for sequences that are filled up: a micro-batch takes its number of examples times its longest."""

import random

import pytest

from mdpo.errors import InputError
from mdpo.packing import plan


def fewest(sizes: list[int], budget: int) -> int:
    """By trying every cut of the sorted sizes: some best plan has its bins as runs of them."""
    ordered = sorted(sizes, reverse=True)
    best = [0] * (len(ordered) + 1)
    for end in range(1, len(ordered) + 1):
        fitting = [best[start] + 1 for start in range(end) if (end - start) * ordered[start] <= budget]
        best[end] = min(fitting)
    return best[-1]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_micro_batch_fits_when_it_is_filled_up(world_size):
    draw = random.Random(0)
    for trial in range(50):
        lengths = [draw.randint(1, 100) for _ in range(draw.randint(1, 40))]
        budget = draw.randint(max(lengths), 4 * max(lengths))
        plans = [
            plan(lengths, budget, examples_per_step=16, seed=trial, rank=rank, world_size=world_size, padded=True)
            for rank in range(world_size)
        ]
        for steps in zip(*plans, strict=True):
            step = [micro_batch for mine in steps for micro_batch in mine]
            for micro_batch in step:
                assert len(micro_batch) * max(lengths[example] for example in micro_batch) <= budget
            sizes = [lengths[example] for micro_batch in step for example in micro_batch]
            counts = {len(mine) for mine in steps}
            assert max(counts) - min(counts) <= (len(sizes) == len(step))  # one example a micro-batch cannot be split
            if world_size == 1:
                assert len(step) == fewest(sizes, budget)
        seen = sorted(example for steps in plans for step in steps for micro_batch in step for example in micro_batch)
        assert seen == list(range(len(lengths)))


def test_a_long_example_is_named_as_ever():
    with pytest.raises(InputError, match="example 1 has 50 packed tokens, more than token_budget=40"):
        plan([10, 50], 40, examples_per_step=2, padded=True)
