"""What a step logs: TRL's names, and the mDPO authors' for the branch on the rejected image."""

import torch
from torch import Tensor

from mdpo.models.policy import PolicyOutput

_BRANCHES = ("chosen", "rejected", "imageless_chosen")
METRICS = (
    "loss",
    *(f"{kind}/{branch}" for kind in ("rewards", "logps") for branch in _BRANCHES),
    *(f"rewards/{prefix}{name}" for prefix in ("", "imageless_") for name in ("margins", "accuracies")),
)

# Shapes: B examples; rows of (3, B) tensors: chosen, rejected, image_rejected


class Metrics:
    """Running means over examples; a branch that an example does not have is left out of its means.

    Sums stay on the device until ``means`` is asked for, so that a step never waits for a number.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = dict.fromkeys(METRICS, torch.zeros(()))
        self._counts: dict[str, Tensor] = dict.fromkeys(METRICS, torch.zeros(()))

    @torch.no_grad()
    def add(self, output: PolicyOutput) -> None:
        chosen, rejected, imageless = output.loss.rewards
        self._add("loss", output.loss.losses)
        for name, values in zip(_BRANCHES, output.loss.rewards, strict=True):
            self._add(f"rewards/{name}", values)
        for name, values in zip(_BRANCHES, output.policy, strict=True):
            self._add(f"logps/{name}", values)
        for prefix, margins in (("", chosen - rejected), ("imageless_", chosen - imageless)):
            self._add(f"rewards/{prefix}margins", margins)
            self._add(f"rewards/{prefix}accuracies", (margins > 0).float().masked_fill(margins.isnan(), torch.nan))

    def _add(self, name: str, values: Tensor) -> None:
        present = ~values.isnan()
        # The zeros at the start are on the host: in a sum they are a kernel's argument, while to copy them would wait.
        self._sums[name] = self._sums[name] + values.where(present, 0).sum()
        self._counts[name] = self._counts[name] + present.sum()

    def means(self, reduce=lambda totals: totals) -> dict[str, float]:
        """Every metric that was seen. reduce: sums a (2, M) tensor of sums and counts over ranks.

        M is the same on every rank, also on one that has seen no example: all of them take part.
        """
        totals = torch.stack([torch.stack([kept[name] for name in METRICS]) for kept in (self._sums, self._counts)])
        sums, counts = reduce(totals).tolist()
        return {name: s / c for name, s, c in zip(METRICS, sums, counts, strict=True) if c > 0}
