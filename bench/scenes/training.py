"""A course of supervised training that goes on where it was stopped, for the tower and for tuning alike."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.digits.world import generator
from mdpo.outputs import whole_file

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
KEPT_EVERY = 200  # steps

Batches = Callable[[np.random.Generator], Sequence[np.ndarray]]
"""An epoch's batches of example indices."""
Loss = Callable[[np.ndarray, np.random.Generator], Tensor]
"""The loss of a batch of example indices, and random numbers for it."""


def inputs(pixels: np.ndarray) -> Tensor:
    """What CLIP's processor makes of pictures of its own size: (B, H, W, 3) uint8 → (B, 3, H, W) float32."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
    return ((values - CLIP_MEAN) / CLIP_STD).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """AdamW with one cycle of the learning rate. name: of the course; its state is kept under ``folder`` by it."""

    name: str
    folder: Path
    steps: int
    learning_rate: float = 2e-3
    seed: int = 0

    def run(self, model: nn.Module, loss: Loss, batches: Batches, *, keep: Callable[[int], None] | None = None) -> None:
        """Trains those of the model's parameters that require a gradient.

        Batches and random numbers follow from (name, seed, epoch or step). keep: is called after every step with the
        number of steps done.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.steps, pct_start=0.1
        )
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        done = self._restore(state)
        model.train()
        recent, started = [], time.perf_counter()
        for step, batch in enumerate(islice(self._batches(batches), done, self.steps), start=done):
            value = loss(batch, generator(self.name, self.seed, "step", step))
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            recent.append(value.item())
            if keep is not None:
                keep(step + 1)
            if (step + 1) % KEPT_EVERY == 0 or step + 1 == self.steps:
                self._keep(state, step + 1)
                seconds = time.perf_counter() - started
                print(
                    f"{self.name}: {step + 1} of {self.steps} steps, loss {np.mean(recent):.4f}, {seconds:.0f} s",
                    flush=True,
                )
                recent.clear()
        model.eval()

    def _batches(self, batches: Batches) -> Iterator[np.ndarray]:
        for epoch in count():
            yield from batches(generator(self.name, self.seed, "epoch", epoch))

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}-{self.seed}-{self.steps}.pt"

    def _keep(self, state: dict, done: int) -> None:
        with whole_file(self._path) as part:
            torch.save({name: each.state_dict() for name, each in state.items()} | {"done": done}, part)

    def _restore(self, state: dict) -> int:
        """The number of steps that were done before."""
        if not self._path.is_file():
            return 0
        kept = torch.load(self._path, weights_only=True)
        for name, each in state.items():
            each.load_state_dict(kept[name])
        return kept["done"]
