"""Log-probs of branches that are sequences of their own: the model's own forward, and the head on the rows that are
scored.

The forward runs whole, but for its head: that gets one row, and the hidden states it would have had are taken from
there, just as the model hands them over. What becomes of logits behind the head (a scale, a cap, a shorter vocabulary)
is not read from a config, whose keys mean different things in different models: a ramp goes out of the head's place,
and what comes back says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mdpo.errors import InputError
from mdpo.packing import SeparateBatch, family_of

from .head import AS_THEY_ARE, Logits, head_logps
from .inputs import model_inputs

# Shapes: S sequences, L tokens of the longest, N scored tokens, H hidden size, V vocabulary

_STEPS = 64  # of the ramp, from one end of its magnitudes to the other
_SMALLEST, _LARGEST = 1e-3, 1e6  # of a logit on the ramp
_TOLERANCE = 1e-5


def separate_token_logps(base: PreTrainedModel, batch: SeparateBatch) -> Tensor:
    """The log-prob of every scored token: (N,) float32, in the order of ``batch.targets``.

    base: a bare model, adapters in its layers included.

    Raises InputError where the model's logits are not made by its head from one hidden state a token.
    """
    inputs = model_inputs(
        base, family_of(base), batch.input_ids, batch.attention_mask, batch.prompt_lengths, batch.images
    )
    head = cast(nn.Module, base.get_output_embeddings())
    with _at_the_head(head) as seen:
        logits = base(**inputs).logits
    if seen.hidden is None or seen.hidden.shape[:-1] != batch.input_ids.shape:
        raise InputError(
            f"a {base.config.model_type!r} model cannot be trained: its head does not get one hidden state for "
            "each token that it was given"
        )
    rows = seen.hidden.flatten(0, 1).index_select(0, batch.scored_positions)
    return head_logps(head, rows, batch.targets, behind_head(seen.ramp, logits, base.config.model_type))


@dataclass
class _Seen:
    """hidden: (S, L, H), what the head would have got. ramp: (V,) float32, what left its place instead of logits."""

    hidden: Tensor | None = None
    ramp: Tensor | None = None


@contextmanager
def _at_the_head(head: nn.Module) -> Iterator[_Seen]:
    """For as long as the context lasts, the head gets one row, and a ramp leaves it."""
    seen = _Seen()

    def take(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.hidden = args[0]
        return args[0][:1, -1:].detach(), *args[1:]

    def ramp(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        seen.ramp = _ramp(output.shape[-1], output.device)
        return seen.ramp.expand(1, 1, -1)

    handles = [head.register_forward_pre_hook(take), head.register_forward_hook(ramp)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _ramp(columns: int, device: torch.device) -> Tensor:
    """(V,) float32: numbers of both signs and all magnitudes, again and again, so that the first columns have all of
    them.
    """
    magnitudes = torch.logspace(0, 1, _STEPS, base=_LARGEST / _SMALLEST) * _SMALLEST
    once = torch.stack([magnitudes, -magnitudes], dim=1).flatten()
    return once.repeat(-(-columns // len(once)))[:columns].to(device)


def behind_head(ramp: Tensor | None, logits: Tensor, kind: str) -> Logits:
    """What a model does with the numbers that leave its head. logits: (…, V), made of the ramp.

    Raises InputError for anything but a scale, then a cap c·tanh(z / c), and a vocabulary that is cut off.
    """
    came = logits.detach().flatten()
    if ramp is not None and len(came) <= len(ramp) and torch.equal(came, ramp[: len(came)]):
        return AS_THEY_ARE._replace(columns=len(came))
    if ramp is not None and len(came) <= len(ramp):
        went, came_back = ramp[: len(came)].double().cpu(), came.double().cpu()
        scale = float(came_back[0] / went[0])
        most = float(came_back.abs().max())
        capped = most < 0.9 * abs(scale) * float(went.abs().max())
        expected = most * (scale * went / most).tanh() if capped else scale * went
        if scale > 0 and torch.allclose(came_back, expected, rtol=_TOLERANCE, atol=_TOLERANCE * _SMALLEST * scale):
            return Logits(scale, most if capped else None, len(came))
    raise InputError(
        f"a {kind!r} model cannot be trained: between its head and its logits it does something else than scale, "
        "cap or cut them"
    )
