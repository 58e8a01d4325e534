"""What a micro-batch is to all that computes with it, however its branches are laid out."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from mdpo_kernels import Segments

from .branches import MDPO_BRANCHES
from .forks import Forks

_Kind = TypeVar("_Kind", bound="Batch")  # typing.Self is Python 3.11's

# Shapes: B examples, K branches, N scored tokens


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Batch:
    """A micro-batch: the branches of some examples, and which rows of hidden states are scored against which tokens.

    ids: the B examples, in order.
    digests: of all that the log-prob of each sequence depends on: token ids, their weights and processed images; "" for
        a branch that the example does not have.
    input_ids: int64.
    images: what the model reads of the pictures; empty without images.
    scored_positions: (N,) int64, the row whose hidden state predicts each scored token, counted through all of
    ``input_ids``.
    targets: (N,) int64, those tokens.
    cu_seqlens: (K·B+1,) int32, where each sequence of scored tokens begins: the first branch of examples 1…B, the
        second of examples 1…B, … An empty sequence is a branch that the example does not have.
    branches: the K branches by name.
    weights: (N,) float32, how much each scored token counts; None: 1 each.
    on_host: names of images that stay on the host when the batch is moved: sizes, which the model reads there.
    """

    ids: tuple[str, ...]
    digests: tuple[str, ...]
    input_ids: Tensor
    images: dict[str, Tensor]
    scored_positions: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    branches: tuple[str, ...] = MDPO_BRANCHES
    weights: Tensor | None = None
    on_host: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the data in it."""
        return self.input_ids.numel()

    @property
    def present(self) -> Tensor:
        """(K, B) bool, on the batch's device: which branches each example has."""
        return (self.cu_seqlens.diff() > 0).view(len(self.branches), -1)

    def to(self: _Kind, device: torch.device | str, non_blocking: bool = False) -> _Kind:
        """The batch on ``device``, but for the images that stay on the host."""
        moved = self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(
            moved, images=moved.images | {name: self.images[name] for name in self.on_host if name in self.images}
        )

    def pin_memory(self: _Kind) -> _Kind:
        return self.map_tensors(Tensor.pin_memory)

    def map_tensors(self: _Kind, function: Callable[[Tensor], Tensor]) -> _Kind:
        """The batch with every tensor of it replaced."""
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, dict):
                changed[field.name] = {name: function(tensor) for name, tensor in value.items()}
            elif isinstance(value, (Segments, Forks)):
                tensors = {name: function(v) for name, v in value._asdict().items() if isinstance(v, Tensor)}
                changed[field.name] = value._replace(**tensors)
        return replace(self, **changed)
