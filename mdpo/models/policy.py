"""The module that trainers wrap: policy, reference and loss of one micro-batch in a single forward."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from mdpo.packing import PackedBatch
from mdpo_kernels import MDPOLoss, mdpo_loss

from .logps import ImageFeatures, encode_images, sequence_logps, unwrap, vision_parameters


class PolicyOutput(NamedTuple):
    """loss: of the micro-batch; policy, reference: (3, B) log-probs, the reference without gradient."""

    loss: MDPOLoss
    policy: Tensor
    reference: Tensor


class PackedPolicy(nn.Module):
    """A model, its frozen reference and the objective.

    Head and loss live inside ``forward``, since DDP and FSDP hook the forward of what they wrap: calling a submodule
    from outside would pass their gradients by.

    model: bare or PEFT. reference_model: the frozen copy that full fine-tuning is measured against; without one the
    reference is the model with its adapter off.
    objective: keyword arguments of ``mdpo_loss``.
    """

    def __init__(self, model: nn.Module, reference_model: nn.Module | None = None, **objective) -> None:
        super().__init__()
        self.model = model
        # In a list, so that the reference is neither wrapped, sharded, counted nor saved with the policy.
        self._frozen = [reference_model]
        self.objective = objective

    @property
    def reference_model(self) -> nn.Module:
        """The model whose base weights are the reference."""
        return self.model if self._frozen[0] is None else self._frozen[0]

    def forward(
        self, packed: PackedBatch, reference: Tensor | None = None, num_examples: int | None = None
    ) -> PolicyOutput:
        """reference: (3, B) cached log-probs, or None to compute them here. num_examples: of the optimizer step."""
        features = self._shared_features(packed)
        if reference is None:
            reference = self._reference_logps(packed, features)
        policy = sequence_logps(self.model, packed, image_features=features)
        loss = mdpo_loss(policy, reference, num_examples=num_examples, **self.objective)
        return PolicyOutput(replace(loss, loss=_nan_if_broken(loss.loss, policy, packed)), policy, reference)

    def _shared_features(self, packed: PackedBatch) -> ImageFeatures | None:
        """Image features that serve policy and reference alike, where nothing in front of the text model trains."""
        frozen = not any(parameter.requires_grad for parameter in vision_parameters(unwrap(self.model)))
        return encode_images(self.model, packed) if packed.images and frozen else None

    @torch.no_grad()
    def _reference_logps(self, packed: PackedBatch, features: ImageFeatures | None) -> Tensor:
        if self._frozen[0] is not None:
            return sequence_logps(self._frozen[0], packed, image_features=features)
        adapter_off = self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()
        with adapter_off, _evaluating(self.model):
            return sequence_logps(self.model, packed, image_features=features)


def _nan_if_broken(loss: Tensor, policy: Tensor, packed: PackedBatch) -> Tensor:
    """NaN means an absent branch to the loss, which would let a model that has gone NaN pass as an empty batch."""
    present = (packed.cu_seqlens.diff() > 0).view(3, -1)
    broken = (present & ~policy.isfinite()).any()
    return torch.where(broken, torch.nan, loss)


@contextmanager
def _evaluating(model: nn.Module):
    """Dropout off for the reference. Only modules that were training are switched back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
