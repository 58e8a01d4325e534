"""The module that trainers wrap: policy, reference and loss of one micro-batch in a single forward."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from mdpo.packing import Batch, PackedBatch, Separate, family_of, part
from mdpo_kernels import PreferenceLoss, Term, mdpo_terms, preference_loss

from .logps import ImageFeatures, branch_logps, encode_images, unwrap, vision_parameters
from .norms import cast_norms_once
from .reference import Reference


class PolicyOutput(NamedTuple):
    """loss: of the micro-batch; policy, reference: (K, B) log-probs, the reference without gradient."""

    loss: PreferenceLoss
    policy: Tensor
    reference: Tensor


class PackedPolicy(nn.Module):
    """A model, its reference and the objective.

    Head and loss live inside ``forward``, since DDP and FSDP hook the forward of what they wrap: calling a submodule
    from outside would pass their gradients by.

    model: bare or PEFT, with what is to train set to.
    reference_model: a frozen model to measure against, in place of ``reference``.
    reference: from ``establish_reference``. Without either, the reference is the model with its adapter off.
    terms: of the objective, over the branches of the micro-batches that it will be given. beta: of the rewards.
    """

    def __init__(
        self,
        model: nn.Module,
        reference_model: nn.Module | None = None,
        *,
        reference: Reference | None = None,
        terms: Sequence[Term] | None = None,
        beta: float = 0.1,
    ) -> None:
        super().__init__()
        self.model = model
        # A dataclass, so that a frozen model in it is neither wrapped, sharded, counted nor saved with the policy.
        self.reference = Reference(frozen=reference_model) if reference is None else reference
        self.terms = mdpo_terms() if terms is None else tuple(terms)
        self.beta = beta
        self._vision_trains = self._vision_is_shared = False
        if not isinstance(family_of(model), Separate):
            # What trains is what trained when the policy was made: looking for it takes as long as queueing a layer.
            self._vision_trains = any(parameter.requires_grad for parameter in vision_parameters(unwrap(model)))
            self._vision_is_shared = not self._vision_trains and not _has_adapter_on_vision(model)
        for module in filter(None, (model, self.reference.frozen)):
            cast_norms_once(module)

    def forward(
        self,
        batch: Batch,
        reference: Tensor | None = None,
        num_examples: int | None = None,
        missing: Collection[int] = (),
    ) -> PolicyOutput:
        """num_examples: of the optimizer step.

        reference: (K, B) cached log-probs, or None to compute them here. missing: the sequences of the batch that are
        not in it, which are computed here.
        """
        features = self._features(batch, trains=False) if self._vision_is_shared else None
        if reference is None:
            reference = self._reference_logps(batch, features)
        elif missing:
            some = part(batch, missing)
            computed = self._reference_logps(some.packed, None if features is None else features.of(some.image_tokens))
            reference = reference.where(~reference.isnan(), computed)
        if features is None:
            features = self._features(batch, trains=self._vision_trains)
        policy = branch_logps(self.model, batch, image_features=features)
        loss = preference_loss(
            policy, reference, self.terms, branches=batch.branches, beta=self.beta, num_examples=num_examples
        )
        return PolicyOutput(replace(loss, loss=_nan_if_broken(loss.loss, policy, reference, batch)), policy, reference)

    def _reference_logps(self, batch: Batch, features: ImageFeatures | None) -> Tensor:
        return self.reference.branch_logps(self.model, batch, features)

    def _features(self, batch: Batch, *, trains: bool) -> ImageFeatures | None:
        """Of a packed row with images; a model that reads its branches one by one encodes its images itself."""
        if not isinstance(batch, PackedBatch) or not batch.images:
            return None
        return encode_images(self.model, batch, trains=trains)


def _has_adapter_on_vision(model: nn.Module) -> bool:
    """Whether an adapter that a reference may switch off stands in front of the text model."""
    base = unwrap(model)
    text = set(base.get_decoder().modules())
    adapters = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return any(isinstance(module, adapters) and module not in text for module in base.model.modules())


def _nan_if_broken(loss: Tensor, policy: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """NaN means an absent branch to the loss, which would let a model that has gone NaN pass as an empty batch."""
    broken = (batch.present & ~(policy.isfinite() & reference.isfinite())).any()
    return torch.where(broken, torch.nan, loss)
