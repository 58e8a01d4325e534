"""What a step logs: TRL's names, the mDPO authors' for the chosen answer on the rejected image, and each term's own.

loss
rewards/x, logps/x                              of each branch x: chosen, rejected, imageless_chosen, or its name
rewards/margins, rewards/accuracies             chosen over rejected
rewards/imageless_margins, …_accuracies         chosen on its image over chosen on the rejected one
terms/t                                         of each term t its value, weighted
terms/t/margins, terms/t/accuracies             of a term that prefers: how far, and how often
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mdpo.models.policy import PolicyOutput
from mdpo_kernels import Term

_LABELS = {"image_rejected": "imageless_chosen"}
_PAIRS = {"": "rejected", "imageless_": "image_rejected"}

# Shapes: K branches, B examples, M metrics


class Metric(NamedTuple):
    """name: as logged. branches: those that it is computed of. values: (B,), from the output of a micro-batch."""

    name: str
    branches: frozenset[str]
    values: Callable[[PolicyOutput], Tensor]


def metrics_of(branches: Sequence[str], terms: Sequence[Term]) -> list[Metric]:
    """Of an objective, in the order in which they are logged."""
    found = [Metric("loss", frozenset(), _losses)]
    for number, branch in enumerate(branches):
        label = _LABELS.get(branch, branch)
        found.append(Metric(f"rewards/{label}", frozenset({branch}), partial(_reward, number)))
        found.append(Metric(f"logps/{label}", frozenset({branch}), partial(_logp, number)))
    for prefix, other in _PAIRS.items():
        if {"chosen", other} <= set(branches):
            found += _preference(f"rewards/{prefix}", ({"chosen": 1.0, other: -1.0},), branches)
    for term in terms:
        read = frozenset(term.branches)
        numbers = [branches.index(branch) for branch in read]
        found.append(Metric(f"terms/{term.name}", read, partial(_term, term.name, numbers)))
        if term.link == "log_sigmoid" and all(abs(sum(row.values())) < 1e-6 for row in term.matrix):
            found += _preference(f"terms/{term.name}/", term.matrix, branches)
    return found


def _preference(prefix: str, rows: Sequence[Mapping[str, float]], branches: Sequence[str]) -> list[Metric]:
    read = frozenset[str]().union(*rows)
    numbered = [{branches.index(branch): coefficient for branch, coefficient in row.items()} for row in rows]
    return [
        Metric(f"{prefix}margins", read, partial(_margins, numbered)),
        Metric(f"{prefix}accuracies", read, partial(_accuracies, numbered)),
    ]


def _losses(output: PolicyOutput) -> Tensor:
    return output.loss.losses


def _reward(number: int, output: PolicyOutput) -> Tensor:
    return output.loss.rewards[number]


def _logp(number: int, output: PolicyOutput) -> Tensor:
    return output.policy[number]


def _term(name: str, numbers: Sequence[int], output: PolicyOutput) -> Tensor:
    """A term's values, NaN where an example lacks a branch of it."""
    absent = torch.stack([output.loss.rewards[number].isnan() for number in numbers]).any(0)
    return output.loss.terms[name].masked_fill(absent, torch.nan)


def _margins(rows: Sequence[Mapping[int, float]], output: PolicyOutput) -> Tensor:
    """By how much the rows prefer; of several, "better than all of these", the least. rows: coefficients by branch."""
    rewards = output.loss.rewards
    each = [torch.stack([coefficient * rewards[number] for number, coefficient in row.items()]).sum(0) for row in rows]
    return torch.stack(each).amin(0)


def _accuracies(rows: Sequence[Mapping[int, float]], output: PolicyOutput) -> Tensor:
    margins = _margins(rows, output)
    return (margins > 0).float().masked_fill(margins.isnan(), torch.nan)


class Metrics:
    """Running means over examples; a branch that an example does not have is left out of its means.

    Sums stay on the device until ``means`` is asked for, so that a step never waits for a number.
    """

    def __init__(self, branches: Sequence[str], terms: Sequence[Term]) -> None:
        self._metrics = metrics_of(branches, terms)
        self._totals: Tensor | None = None  # (2, M) sums and counts

    @torch.no_grad()
    def add(self, output: PolicyOutput) -> None:
        values = torch.stack([metric.values(output).float() for metric in self._metrics])
        present = ~values.isnan()
        totals = torch.stack([values.where(present, 0).sum(1), present.sum(1)])
        self._totals = totals if self._totals is None else self._totals + totals

    def means(self, reduce: Callable[[Tensor], Tensor] = lambda totals: totals) -> dict[str, float]:
        """Every metric that was seen. reduce: sums a (2, M) tensor of sums and counts over ranks.

        M is the same on every rank, also on one that has seen no example: all of them take part.
        """
        totals = torch.zeros(2, len(self._metrics)) if self._totals is None else self._totals
        sums, counts = reduce(totals).tolist()
        return {
            metric.name: total / count
            for metric, total, count in zip(self._metrics, sums, counts, strict=True)
            if count > 0
        }
