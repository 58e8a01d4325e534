"""One look before the first step: does the way that trains say what the model's own forward says, on these very rows?

It needs no rule for what can be wrong. An adapter that a packed row passes by, a config that asks for something packing
does not do, padding that a model minds, dropout left on, a reference that is not the policy's start: each shows as a
difference in log-probs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from mdpo.errors import InputError
from mdpo.packing import MDPO_BRANCHES, Batch, PreferenceTokens, SeparateBatch, family_of, pack
from mdpo_kernels import sequence_logps

from .logps import response_token_logps, without_adapter
from .plain import PlainBranch, plain_branches, plain_token_logps
from .reference import in_mode

# Mean difference a token, in nats, that rounding alone can explain between two orders of the same sums. bf16: logits of
# 20 to 30 are rounded to 1/8, and two forwards of a 7B model differ by a few hundredths.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 5e-2, torch.bfloat16: 0.2}
_TF32 = 2e-2
_WORST = 20  # a single token may be this much further off than the mean
_NUDGE = 0.01  # added to an adapter's weights, so that one that adds nothing yet is seen to act

# Shapes: N scored tokens; K branches, B examples


class Difference(NamedTuple):
    """Of one branch of one example: summed log-probs both ways, and the difference a token in nats."""

    example: str
    branch: str
    ours: float
    theirs: float
    mean: float
    worst: float


class Check(NamedTuple):
    """What was compared. rounding: the mean difference a token that the dtype explains. way: that was compared with the
    model's own forward."""

    differences: list[Difference]
    rounding: float
    way: str

    @property
    def furthest(self) -> Difference:
        return max(self.differences, key=lambda each: each.mean if each.mean == each.mean else float("inf"))

    @property
    def line(self) -> str:
        """How close they are, in one line."""
        examples = len({each.example for each in self.differences})
        return (
            f"start check: {examples} examples, {len(self.differences)} branches: {self.way} and the model's own "
            f"forward differ by at most {self.furthest.mean:.1e} nats a token (rounding explains {self.rounding:.0e})"
        )

    @property
    def agrees(self) -> bool:
        return all(
            each.mean <= self.rounding and each.worst <= _WORST * self.rounding for each in self.differences
        )  # NaN is no agreement


def rounding_of(model: nn.Module, autocast: torch.dtype | None = None) -> float:
    """The mean difference a token, in nats, between two right ways through ``model``.

    autocast: the dtype of the autocast that it runs under, if any.
    """
    floating = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtypes = {autocast, *floating} - {None}
    lowest = max((_ROUNDING[dtype] for dtype in dtypes if dtype in _ROUNDING), default=_ROUNDING[torch.bfloat16])
    tf32 = torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"
    return max(lowest, _TF32) if tf32 else lowest


def first_examples(
    lengths: Sequence[int] | np.ndarray, get: Callable[[int], PreferenceTokens]
) -> list[PreferenceTokens]:
    """Up to three examples for ``check_packed``: the two shortest with an image among the first rows, one without.

    lengths: packed tokens of the rows. get: reads the example of a row.
    """
    first = sorted(range(min(8, len(lengths))), key=lambda index: lengths[index])
    with_image: list[PreferenceTokens] = []
    without: list[PreferenceTokens] = []
    for index in first:
        if len(with_image) == 2:
            break
        example = get(index)
        (without if example.images is None else with_image).append(example)
    return [*with_image, *without[:1]]


def check_packed(
    model: nn.Module,
    examples: Sequence[PreferenceTokens],
    *,
    branches: Sequence[str] = MDPO_BRANCHES,
    rounding: float,
    training: bool = False,
) -> Check:
    """Every branch's log-probs in a micro-batch, laid out as the model's family is, against the model's own
    ``forward(...).logits``.

    Args:
        model: bare or PEFT, on its device.
        branches: as which each example is read.
        rounding: from ``rounding_of``.
        training: whether the micro-batch runs in training mode, as a step does. The model's own forward never does.

    Raises InputError where they differ by more than rounding, with the branch that differs most and the likely cause.
    """
    family = family_of(model)
    batch = pack(examples, family, branches=branches).to(next(model.parameters()).device)
    read = plain_branches(examples, branches, family.image_token_id)
    with in_mode(model, training=False), _uncompiled():
        theirs = [plain_token_logps(model, branch) for branch in read]
    _check_are_numbers(read, theirs)
    ours = _token_logps(model, batch, training)
    check = _compare(read, batch, ours, theirs, rounding)
    if not check.agrees:
        raise InputError(_refusal(check, _cause(model, read, batch, ours, theirs, rounding, training)))
    if isinstance(model, PeftModel):
        _check_adapter_is_seen(model, read, batch, theirs, rounding, training)
    return check


def _check_are_numbers(read: Sequence[PlainBranch], theirs: Sequence[Tensor]) -> None:
    for branch, logps in zip(read, theirs, strict=True):
        if logps.isnan().any():
            raise InputError(
                f"check_start: example {branch.example!r}, {branch.name}: the model's own forward gives NaN; a "
                "weight is not a number, or values overflow in this dtype (dtype: float32)"
            )


def check_equal_start(batch: Batch, policy: Tensor, reference: Tensor, rounding: float) -> float:
    """Before the first step the policy is its reference. policy, reference: (K, B) log-probs.

    Returns the largest difference a token. Raises InputError where one is more than rounding.
    """
    tokens = batch.cu_seqlens.diff()
    if batch.weights is not None:
        tokens = torch.maximum(tokens, sequence_logps(batch.weights, batch.cu_seqlens))
    difference = ((policy - reference).abs() / tokens.view_as(policy).clamp_min(1)).nan_to_num(0.0)
    difference = difference.masked_fill(policy.isnan() != reference.isnan(), torch.inf)
    branch, example = divmod(int(difference.argmax()), len(batch.ids))
    largest = float(difference[branch, example])
    if largest > rounding:
        raise InputError(
            f"check_start: policy and reference differ before the first step: example {batch.ids[example]!r}, "
            f"{batch.branches[branch]}: {float(policy[branch, example]):.4f} and "
            f"{float(reference[branch, example]):.4f} nats, {largest:.2g} a token where rounding explains "
            f"{rounding:.2g}. Likely: reference log-probs from a cache of another model (delete "
            "reference_cache_dir), or an adapter that is not its own reference (reference: base)"
        )
    return largest


@torch.no_grad()
def _token_logps(model: nn.Module, batch: Batch, training: bool, values: dict[str, Tensor] | None = None) -> Tensor:
    with in_mode(model, training):
        if not values:
            return response_token_logps(model, batch)
        return functional_call(_TokenLogps(model), {f"model.{name}": v for name, v in values.items()}, (batch,))


def _uncompiled() -> Any:
    """Compiled layers run as they are: a forward that no step repeats would use up their recompilations."""
    return torch.compiler.set_stance("force_eager")


class _TokenLogps(nn.Module):
    """``response_token_logps`` as a module's forward, for ``functional_call``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return response_token_logps(self.model, batch)


def _compare(
    read: Sequence[PlainBranch], batch: Batch, ours: Tensor, theirs: Sequence[Tensor], rounding: float
) -> Check:
    differences = []
    pieces = ours.split([len(logps) for logps in theirs])
    for branch, mine, other in zip(read, pieces, theirs, strict=True):
        off = (mine - other).abs()
        # Where both say −inf they agree, though their difference is NaN.
        off = off.masked_fill(mine == other, 0.0)
        differences.append(
            Difference(
                branch.example, branch.name, float(mine.sum()), float(other.sum()), float(off.mean()), float(off.max())
            )
        )
    return Check(differences, rounding, "each branch by itself" if isinstance(batch, SeparateBatch) else "a packed row")


def _check_adapter_is_seen(
    model: PeftModel,
    read: Sequence[PlainBranch],
    batch: Batch,
    theirs: Sequence[Tensor],
    rounding: float,
    training: bool,
) -> None:
    """A fresh adapter adds nothing, seen or not: so its weights are nudged, and both ways have to move alike.

    In the mode of a step, so that an adapter's own dropout shows too.
    """
    generator = torch.Generator().manual_seed(0)
    nudged = {
        name: p.detach() + _NUDGE * torch.randn(p.shape, generator=generator).to(p)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    with in_mode(model, training=False), _uncompiled():
        moved_theirs = [plain_token_logps(model, branch, nudged) for branch in read]
    with _uncompiled():
        ours = _token_logps(model, batch, training)
        moved_ours = _token_logps(model, batch, training, nudged)
        again = _token_logps(model, batch, training, nudged)
    unseen = torch.equal(moved_ours, ours) and not all(map(torch.equal, moved_theirs, theirs))
    check = _compare(read, batch, moved_ours, moved_theirs, rounding)
    if not torch.allclose(moved_ours, again, atol=rounding, rtol=0, equal_nan=True):
        raise InputError(
            _refusal(check, "the adapter is random, as with dropout of its own; set that to 0 in its config")
        )
    if unseen or not check.agrees:
        kinds = ", ".join(sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in model.peft_config.values()}))
        raise InputError(_refusal(check, f"the adapter ({kinds}) acts in a way that {_does_not_see(batch)}; use LoRA"))


def _cause(
    model: nn.Module,
    read: Sequence[PlainBranch],
    batch: Batch,
    ours: Tensor,
    theirs: Sequence[Tensor],
    rounding: float,
    training: bool,
) -> str:
    again = _token_logps(model, batch, training)
    if not torch.allclose(again, ours, atol=rounding, rtol=0, equal_nan=True):
        return "the policy is random, as with dropout left on; set disable_dropout: true"
    calm = _token_logps(model, batch, False)
    expected = torch.cat(list(theirs))
    if training and float((calm - expected).abs().mean()) <= rounding:
        return "the model behaves otherwise in training mode, as with dropout left on; set disable_dropout: true"
    if isinstance(model, PeftModel):
        with without_adapter(model):
            unmoved = torch.equal(_token_logps(model, batch, False), calm)
            with in_mode(model, training=False):
                acts = not torch.equal(plain_token_logps(model, read[0]), theirs[0])
        if unmoved and acts:
            return f"the adapter acts in a way that {_does_not_see(batch)}; use LoRA, or another adapter of the layers"
    kind = getattr(model.config, "model_type", type(model).__name__)
    if isinstance(batch, SeparateBatch):
        return (
            f"what this {kind} makes of a branch changes with the padding behind it; it cannot be trained, take "
            "another model"
        )
    return (
        f"the config of this {kind} asks for something that packing does not do (positions, masks, scales of logits or "
        "embeddings); compare config.json with the published one of its family"
    )


def _does_not_see(batch: Batch) -> str:
    if isinstance(batch, SeparateBatch):
        return "branches that are read by themselves do not see"
    return "a packed row does not see"


def _refusal(check: Check, cause: str) -> str:
    worst = check.furthest
    return (
        f"check_start: example {worst.example!r}, {worst.branch}: {check.way} gives {worst.ours:.4f} nats, the "
        f"model's own forward {worst.theirs:.4f}: {worst.mean:.2g} a token where rounding explains "
        f"{check.rounding:.2g}. Likely: {cause}"
    )
