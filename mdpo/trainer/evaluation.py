"""What an evaluation keeps: means over rows, and on request every row's own numbers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mdpo.models.policy import PolicyOutput
from mdpo.packing import Batch

from .finite import printable
from .metrics import Metrics

_log = logging.getLogger(__name__)

NAMES = ("policy_logps", "reference_logps", "rewards")


class Evaluation:
    """Collects the outputs of micro-batches; nothing waits for the device until it is asked for.

    metrics: an empty one, of the objective. keep_rows: whether ``rows`` will be asked for.
    """

    def __init__(self, metrics: Metrics, *, keep_rows: bool) -> None:
        self._metrics = metrics
        self._keep_rows = keep_rows
        self._rows: list[tuple[Sequence[int], Tensor]] = []
        self._broken: list[tuple[tuple[str, ...], Tensor]] = []

    def add(self, batch: Batch, examples: Sequence[int], output: PolicyOutput) -> None:
        """examples: the indices of the micro-batch's rows in their data set."""
        broken = _broken(batch, output)
        self._broken.append((batch.ids, broken))
        self._metrics.add(_without(output, broken))
        if self._keep_rows:
            numbers = torch.stack(
                [output.policy.detach().float(), output.reference.float(), output.loss.rewards.float()]
            )
            self._rows.append((examples, numbers.permute(2, 0, 1).cpu()))

    def not_finite(self) -> list[str]:
        """The ids of the rows whose loss, or a log-prob of it, is not a finite number."""
        return [
            id for ids, broken in self._broken for id, is_broken in zip(ids, broken.tolist(), strict=True) if is_broken
        ]

    def means(
        self, reduce: Callable[[Tensor], Tensor], bad: list[str], rows: int, *, skip: bool, says: bool
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """The metrics, and the rows that they are NaN for, over all ranks.

        reduce: as in ``Metrics.means``. bad: ``not_finite`` of all ranks. rows: how many there are in all. skip:
            whether the means are over the other rows, as long as there are any. says: whether this process warns of
            them.
        """
        means = self._metrics.means(reduce)
        if not bad:
            return means, ()
        skip = skip and len(bad) < rows
        if says:
            left_out = f": {len(bad)} of {rows} rows are left out of the means" if skip else ""
            _log.warning("evaluation: the loss is not finite, with examples %s%s", printable(bad), left_out)
        if skip:
            return means, ()
        return dict.fromkeys(["loss", *means], float("nan")), tuple(bad)

    def rows(self) -> list[tuple[int, list]]:
        """For each row its index and, by NAMES, its branches."""
        pairs = ((examples, numbers.tolist()) for examples, numbers in self._rows)
        return [pair for examples, numbers in pairs for pair in zip(examples, numbers, strict=True)]


def _broken(batch: Batch, output: PolicyOutput) -> Tensor:
    """(B,) whether a row's loss is not finite, or a log-prob of a branch that it has."""
    present = batch.present.to(output.policy.device)
    logps = output.policy.isfinite() & output.reference.isfinite()
    return (present & ~logps).any(0) | ~output.loss.losses.isfinite()


def _without(output: PolicyOutput, broken: Tensor) -> PolicyOutput:
    """The output with NaN for all that a broken row has, which is left out of every mean."""
    nan = output.policy.new_tensor(torch.nan)
    loss = replace(
        output.loss,
        losses=output.loss.losses.where(~broken, nan),
        rewards=output.loss.rewards.where(~broken, nan),
        terms={name: values.where(~broken, nan) for name, values in output.loss.terms.items()},
    )
    return PolicyOutput(loss, output.policy.where(~broken, nan), output.reference)


def predictions(rows: Sequence[tuple[int, list]], branches: int) -> dict[str, np.ndarray]:
    """By NAMES an (N, K) float64 array: the rows in their own order, by the K branches of the objective; NaN
    if absent.
    """
    numbers = np.array([values for _, values in sorted(rows, key=lambda row: row[0])]).reshape(-1, len(NAMES), branches)
    return {name: numbers[:, column] for column, name in enumerate(NAMES)}
