"""What an evaluation keeps: means over rows, and on request every row's own numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mdpo.models.policy import PolicyOutput
from mdpo.packing import PackedBatch

from .metrics import Metrics

NAMES = ("policy_logps", "reference_logps", "rewards")


class Evaluation:
    """Collects the outputs of micro-batches; nothing waits for the device until it is asked for.

    keep_rows: whether ``rows`` will be asked for.
    """

    def __init__(self, *, keep_rows: bool) -> None:
        self.metrics = Metrics()
        self._keep_rows = keep_rows
        self._rows: list[tuple[Sequence[int], Tensor]] = []
        self._losses: list[tuple[tuple[str, ...], Tensor]] = []

    def add(self, packed: PackedBatch, examples: Sequence[int], output: PolicyOutput) -> None:
        """examples: the indices of the micro-batch's rows in their data set."""
        self.metrics.add(output)
        self._losses.append((packed.ids, output.loss.loss.detach()))
        if self._keep_rows:
            numbers = torch.stack([output.policy.detach().float(), output.reference.float(), output.loss.rewards.float()])
            self._rows.append((examples, numbers.permute(2, 0, 1).cpu()))

    def not_finite(self) -> list[str]:
        """The ids of the micro-batches whose loss is not a finite number."""
        return [id for ids, loss in self._losses if not loss.isfinite() for id in ids]

    def rows(self) -> list[tuple[int, list]]:
        """For each row its index and, by NAMES, its three branches."""
        pairs = ((examples, numbers.tolist()) for examples, numbers in self._rows)
        return [pair for examples, numbers in pairs for pair in zip(examples, numbers, strict=True)]


def predictions(rows: Sequence[tuple[int, list]]) -> dict[str, np.ndarray]:
    """By NAMES an (N, 3) float64 array: the rows in their own order; chosen, rejected, image_rejected, NaN if absent."""
    numbers = np.array([values for _, values in sorted(rows, key=lambda row: row[0])]).reshape(-1, len(NAMES), 3)
    return {name: numbers[:, column] for column, name in enumerate(NAMES)}
