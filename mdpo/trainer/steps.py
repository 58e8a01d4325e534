"""Optimizer steps as batches of a dataloader: one batch is a whole step, already cut into packed micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch.utils.data import BatchSampler, Dataset

from mdpo.data import PreferenceDataset
from mdpo.packing import Family, PackedBatch, pack, plan


class MicroBatch(NamedTuple):
    """What the planner decided of one micro-batch.

    examples: indices. epoch: of their negatives, None where one negative serves all epochs.
    num_examples: of the whole step, over all ranks.
    """

    examples: list[int]
    epoch: int | None
    num_examples: int


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One optimizer step on this rank. num_examples: of the step, over all ranks."""

    micro_batches: list[PackedBatch]
    num_examples: int

    def pin_memory(self) -> "Step":
        return Step([packed.pin_memory() for packed in self.micro_batches], self.num_examples)


class StepSampler(BatchSampler):
    """Yields a step at a time, as a list of micro-batches; order from seed and epoch.

    A BatchSampler, so that resuming can skip steps without reading their images.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        token_budget: int,
        *,
        examples_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        negative_per_epoch: bool = False,
    ) -> None:
        self.lengths = lengths
        self.token_budget = token_budget
        self.settings = {"examples_per_step": examples_per_step, "seed": seed, "rank": rank, "world_size": world_size}
        self.negative_per_epoch = negative_per_epoch
        self.epoch = 0
        self._plan()  # an example longer than the budget is an error now, not in the first epoch

    def _plan(self) -> list[list[list[int]]]:
        return plan(self.lengths, self.token_budget, epoch=self.epoch, **self.settings)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.settings["examples_per_step"])

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        epoch = self.epoch if self.negative_per_epoch else None
        size = self.settings["examples_per_step"]
        for number, step in enumerate(self._plan()):
            num_examples = min(size, len(self.lengths) - number * size)  # the last step takes what is left
            yield [MicroBatch(examples, epoch, num_examples) for examples in step]


class MicroBatches(Dataset):
    """A dataset whose items are micro-batches: the dataloader's workers read the images and lay out the rows."""

    def __init__(self, dataset: PreferenceDataset, family: Family) -> None:
        self.dataset = dataset
        self.family = family

    def __getitem__(self, micro_batch: MicroBatch) -> tuple[PackedBatch, int]:
        examples = [self.dataset[index, micro_batch.epoch] for index in micro_batch.examples]
        return pack(examples, self.family), micro_batch.num_examples


def collate(items: list[tuple[PackedBatch, int]]) -> Step:
    """The micro-batches of one step."""
    return Step([packed for packed, _ in items], items[0][1])
