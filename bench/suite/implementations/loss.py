"""The mDPO loss of a batch: `fused_mdpo_loss` (logits (N, V), targets, cu_seqlens, reference) and
`fused_linear_mdpo_loss` (hidden, weight, targets, cu_seqlens, reference) → the scalar loss. The reference's log-probs
are given, as after caching them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.suite.group import Implementation
from bench.suite.implementations import peers
from bench.suite.implementations.logps import compiled, eager_linear_token_logps, eager_token_logps

BETA = 0.1


def eager_sequence_logps(token_logps: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """(N,), (S + 1,) → (S,) by index_add, as one would write it without a synchronisation."""
    sequences = torch.repeat_interleave(cu_seqlens.diff().long(), output_size=token_logps.shape[0])
    return token_logps.new_zeros(cu_seqlens.shape[0] - 1).index_add(0, sequences, token_logps)


def eager_preference_loss(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(3, B) twice → (): the three terms as one would write them: response and image preference, anchor at 0."""
    chosen, rejected, image_rejected = BETA * (policy - reference)
    return -(F.logsigmoid(chosen - rejected) + F.logsigmoid(chosen - image_rejected) + F.logsigmoid(chosen)).mean()


def eager_mdpo_loss(token_logps: torch.Tensor, cu_seqlens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The loss of a batch from the log-probs of its tokens."""
    return eager_preference_loss(eager_sequence_logps(token_logps, cu_seqlens).view(reference.shape), reference)


def eager_from_logits(
    logits: torch.Tensor, targets: torch.Tensor, cu_seqlens: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Whole logits, float32 log-softmax, loss."""
    return eager_mdpo_loss(eager_token_logps(logits, targets), cu_seqlens, reference)


def eager_from_hidden(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cu_seqlens: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """The same behind the head's matrix product."""
    return eager_mdpo_loss(eager_linear_token_logps(hidden, weight, targets), cu_seqlens, reference)


def _ours_sequence_logps() -> Callable[..., torch.Tensor]:
    from mdpo_kernels import sequence_logps

    return sequence_logps


def _ours_loss() -> Callable[..., torch.Tensor]:
    from mdpo_kernels import mdpo_loss

    return lambda policy, reference: mdpo_loss(policy, reference, beta=BETA).loss


def _ours_from_logits() -> Callable[..., torch.Tensor]:
    from mdpo_kernels import fused_mdpo_loss

    return lambda *args: fused_mdpo_loss(*args, beta=BETA).loss


def _ours_from_hidden() -> Callable[..., torch.Tensor]:
    from mdpo_kernels import fused_linear_mdpo_loss

    return lambda *args: fused_linear_mdpo_loss(*args, beta=BETA).loss


def _ours_in_three_calls() -> Callable[..., torch.Tensor]:
    from mdpo_kernels import linear_token_logps, mdpo_loss, sequence_logps

    def loss(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        cu_seqlens: torch.Tensor,
        reference: torch.Tensor,
    ) -> torch.Tensor:
        logps = sequence_logps(linear_token_logps(hidden, weight, targets), cu_seqlens)
        return mdpo_loss(logps.view(reference.shape), reference, beta=BETA).loss

    return loss


def _trl_then_loss() -> Callable[..., torch.Tensor]:
    logps = peers.trl_chunked()
    return lambda hidden, weight, targets, cu_seqlens, reference: eager_mdpo_loss(
        logps(hidden, weight, targets), cu_seqlens, reference
    )


def _liger_on_two_branches() -> Callable[..., torch.Tensor]:
    dpo = peers.liger_dpo()

    def loss(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        cu_seqlens: torch.Tensor,
        reference: torch.Tensor,
    ) -> torch.Tensor:
        # As many rows as ours has, dealt out as 2B equal sequences; a remainder of rows is left out.
        sequences = 2 * max(1, (cu_seqlens.shape[0] - 1) // 2)
        length = hidden.shape[0] // sequences
        rows = sequences * length
        batch = hidden[:rows].view(sequences, length, -1)
        return dpo(batch, weight, targets[:rows].view(sequences, length), batch.detach())

    return loss


SEQUENCE_LOGPS = (
    Implementation(name="ours", role="ours", load=_ours_sequence_logps),
    Implementation(name="torch eager", role="torch", load=lambda: eager_sequence_logps),
)

MDPO_LOSS = (
    Implementation(name="ours", role="ours", load=_ours_loss),
    Implementation(name="torch eager", role="torch", load=lambda: eager_preference_loss),
)

FUSED_MDPO_LOSS = (
    Implementation(name="ours", role="ours", load=_ours_from_logits),
    Implementation(name="torch eager", role="torch", load=lambda: eager_from_logits),
    Implementation(
        name="torch.compile", role="torch", load=lambda: compiled(eager_from_logits), compiles=True, countable=False
    ),
)

FUSED_LINEAR_MDPO_LOSS = (
    Implementation(name="ours", role="ours", load=_ours_from_hidden),
    Implementation(
        name="ours in three calls",
        role="ours",
        load=_ours_in_three_calls,
        note="linear_token_logps, sequence_logps, mdpo_loss",
    ),
    Implementation(name="torch eager", role="torch", load=lambda: eager_from_hidden),
    Implementation(
        name="torch.compile", role="torch", load=lambda: compiled(eager_from_hidden), compiles=True, countable=False
    ),
    Implementation(
        name="trl chunked", role="peer", load=_trl_then_loss, note="TRL's log-probs, then the loss in eager PyTorch"
    ),
    Implementation(
        name="liger dpo",
        role="peer",
        comparable=False,
        load=_liger_on_two_branches,
        compiles=True,
        countable=False,
        note="two-branch DPO on as many rows; runs the reference's head as well; another loss, so no error is given",
    ),
)
