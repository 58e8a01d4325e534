"""Other people's kernels behind our signatures. Each function imports its package when called, so that a missing one
skips by name.

Log-probs: (hidden (N, H), weight (V, H), targets (N,)) → (N,).
"""

from collections.abc import Callable
from importlib import import_module

import torch

LogProbs = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def trl_chunked() -> LogProbs:
    """TRL's ChunkedLogProbFunction with the chunk of its DPO trainer; its backward needs `datasets`, which TRL
    imports."""
    import_module("trl.trainer.utils")
    function = import_module("trl.kernels.chunked_logprob").ChunkedLogProbFunction

    def logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return function.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]

    return logps


def liger_flce() -> LogProbs:
    """Liger's fused linear cross-entropy, one loss per token."""
    loss = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="none")
    return lambda hidden, weight, targets: -loss(weight, hidden, targets)


def liger_cross_entropy() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Liger's cross-entropy over whole logits, one loss per token."""
    loss = import_module("liger_kernel.transformers").LigerCrossEntropyLoss(reduction="none")
    return lambda logits, targets: -loss(logits.clone(), targets)


def cce(filter_eps: str | None) -> LogProbs:
    """Apple's cut-cross-entropy."""
    linear_cross_entropy = import_module("cut_cross_entropy").linear_cross_entropy
    return lambda hidden, weight, targets: (
        -linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=filter_eps)
    )


def liger_dpo() -> Callable[..., torch.Tensor]:
    """Liger's fused linear DPO: (hidden (2B, T, H), weight, targets (2B, T), reference hidden) → the loss of B pairs
    of *two* branches.

    It runs the reference's head too (no gradient), and has no way to take log-probs that are already there.
    """
    loss = import_module("liger_kernel.chunked_loss").LigerFusedLinearDPOLoss()

    def dpo(
        hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, reference_hidden: torch.Tensor
    ) -> torch.Tensor:
        return loss(weight, hidden, targets, None, reference_hidden, weight, None)[0]

    return dpo
