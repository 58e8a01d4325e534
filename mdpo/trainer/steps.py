"""Optimizer steps as a dataloader yields them: whole ones, already cut into micro-batches that are laid out."""

# What this sampler yields is a step, not a list of indices.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, get_worker_info

from mdpo.data import PreferenceDataset
from mdpo.errors import InputError
from mdpo.packing import Batch, Family, Separate, pack
from mdpo.packing.plan import plan_steps

from .workers import Unread, memory_bound


class MicroBatch(NamedTuple):
    """What the planner decided of one micro-batch.

    examples: indices. epoch: of their negatives, None where one negative serves all epochs.
    num_examples: of the whole step, over all ranks.
    weight: 1, or 0 for the one example that a rank without any runs, so that ranks take the same steps together.
    """

    examples: list[int]
    epoch: int | None
    num_examples: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One optimizer step on this rank. num_examples: of the step, over all ranks. weights: 0 or 1 by micro-batch."""

    micro_batches: list[Batch]
    num_examples: int
    weights: list[float]

    def pin_memory(self) -> "Step":
        return replace(self, micro_batches=[batch.pin_memory() for batch in self.micro_batches])

    def padded(self, micro_batches: int) -> "Step":
        """The step with its last micro-batch repeated, at weight 0, until there are this many."""
        missing = micro_batches - len(self.micro_batches)
        padding = self.micro_batches[-1:] * missing
        return Step([*self.micro_batches, *padding], self.num_examples, [*self.weights, *[0.0] * missing])


class StepSampler(BatchSampler):
    """Yields a step at a time, as a list of micro-batches; order from seed and epoch.

    A BatchSampler, so that resuming can skip steps without reading their images.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        token_budget: int,
        *,
        examples_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        negative_per_epoch: bool = False,
        padded: bool = False,
    ) -> None:
        self.lengths = lengths
        self.token_budget = token_budget
        self.settings = {
            "examples_per_step": examples_per_step,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "padded": padded,
        }
        self.negative_per_epoch = negative_per_epoch
        self.epoch = 0
        self._plan()  # an example longer than the budget is an error now, not in the first epoch

    def _plan(self) -> Iterator[list[list[int]]]:
        return plan_steps(self.lengths, self.token_budget, epoch=self.epoch, **self.settings)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.settings["examples_per_step"])

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        epoch = self.epoch if self.negative_per_epoch else None
        size = self.settings["examples_per_step"]
        for number, step in enumerate(self._plan()):
            num_examples = min(size, len(self.lengths) - number * size)  # the last step takes what is left
            if step:
                yield [MicroBatch(examples, epoch, num_examples) for examples in step]
            else:  # fewer examples than ranks
                yield [MicroBatch([0], epoch, num_examples, weight=0.0)]


class MicroBatches(Dataset):
    """A dataset whose items are micro-batches: the dataloader's workers read the images and lay out the rows.

    branches: as which every example is read.
    """

    def __init__(self, dataset: PreferenceDataset, family: Family | Separate, branches: Sequence[str]) -> None:
        self.dataset = dataset
        self.family = family
        self.branches = branches

    def __getitem__(self, micro_batch: MicroBatch) -> tuple[MicroBatch, Batch | Unread]:
        try:
            with memory_bound():
                examples = [self.dataset[index, micro_batch.epoch] for index in micro_batch.examples]
                return micro_batch, pack(examples, self.family, branches=self.branches)
        except InputError as error:  # an image that was there when the run began; torch would hand over a traceback
            return micro_batch, Unread(str(error))


def collate(items: list[tuple[MicroBatch, Batch | Unread]]) -> Step | Unread:
    """The micro-batches of one step."""
    planned, batches = [micro_batch for micro_batch, _ in items], []
    for _, item in items:
        if isinstance(item, Unread):
            return item
        batches.append(item)
    if get_worker_info() is not None:  # as they are sent, but where running out of memory can be told
        with memory_bound():
            batches = [each.map_tensors(Tensor.share_memory_) for each in batches]
    return Step(batches, planned[0].num_examples, [each.weight for each in planned])
