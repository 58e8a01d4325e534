"""fused_mdpo_loss and fused_linear_mdpo_loss against float64 and against the unfused functions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mdpo_kernels import (
    MDPOLoss,
    fused_linear_mdpo_loss,
    fused_mdpo_loss,
    linear_token_logps,
    mdpo_loss,
    reference,
    sequence_logps,
    token_logps,
)
from tests.numerics import assert_as_exact_as_torch

HIDDEN_SIZE, VOCABULARY, EXAMPLES = 19, 29, 3
# Chosen, rejected, image_rejected. The second example has no image_rejected branch; the third's rejected has one token.
LENGTHS = [3, 2, 2, 4, 3, 1, 3, 0, 2]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"conditional": False, "anchors": ()},
    {"anchors": ("chosen", "rejected", "image_rejected"), "anchor": (0.1, -0.2, 0.3), "beta": 0.5},
    {"anchors": ("image_rejected",), "anchor": -0.1, "num_examples": 7},
    {"conditional": False, "anchors": ("rejected", "chosen"), "anchor": 0.2},
]


def make(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = sum(LENGTHS)
    weight = torch.randn(VOCABULARY, HIDDEN_SIZE, generator=generator)
    tensors = {
        "hidden": torch.randn(rows, HIDDEN_SIZE, generator=generator).to(dtype),
        "weight": (weight / HIDDEN_SIZE**0.5).to(dtype),
        "targets": torch.randint(VOCABULARY, (rows,), generator=generator),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0),
        "reference": -10 * torch.rand(3, EXAMPLES, generator=generator),
    }
    return {name: value.to(device) for name, value in tensors.items()}


def unfused(tensors: dict[str, Tensor], **options: Any) -> MDPOLoss:
    """The same in eager PyTorch, in the dtype of the tensors."""
    logits = tensors["hidden"] @ tensors["weight"].T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logps = logits.log_softmax(-1).gather(-1, tensors["targets"].unsqueeze(-1)).squeeze(-1)
    sums = torch.stack([part.sum() for part in logps.split(LENGTHS)]).view(3, EXAMPLES)
    absent = torch.tensor(LENGTHS, device=sums.device).view(3, EXAMPLES) == 0
    return mdpo_loss(sums.masked_fill(absent, float("nan")), tensors["reference"], **options)


def fused(tensors: dict[str, Tensor], **options: Any) -> MDPOLoss:
    return fused_linear_mdpo_loss(**tensors, **options)


def fused_from_logits(tensors: dict[str, Tensor], **options: Any) -> MDPOLoss:
    logits = tensors["hidden"] @ tensors["weight"].T
    return fused_mdpo_loss(logits, tensors["targets"], tensors["cu_seqlens"], tensors["reference"], **options)


def plain(tensors: dict[str, Tensor], **options: Any) -> MDPOLoss:
    return reference.fused_linear_mdpo_loss(**tensors, **options)


def results(function: Any, tensors: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Everything that a loss gives back, and the gradient of hidden, by name."""
    hidden = tensors["hidden"].clone().requires_grad_()
    found = function(tensors | {"hidden": hidden}, **options)
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    return {"loss": found.loss, "losses": found.losses, "rewards": found.rewards, "gradient": gradient} | found.terms


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_as_exact_as_torch(options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    tensors = make(device, dtype)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
    truth, same_dtype = results(unfused, doubled, **options), results(unfused, tensors, **options)
    for function in (fused, plain) if dtype != torch.float32 else (fused, fused_from_logits, plain):
        found = results(function, tensors, **options)
        assert list(found) == list(truth)
        for name, value in found.items():
            what = f"{function.__name__}, {name}"
            assert_as_exact_as_torch(value, truth=truth[name], torch_value=same_dtype[name], what=what)


def test_equal_to_the_unfused_functions_of_this_package(device: torch.device) -> None:
    """The two doors of the package lead to the same number."""
    tensors = make(device)
    logps = linear_token_logps(tensors["hidden"], tensors["weight"], tensors["targets"])
    sums = sequence_logps(logps, tensors["cu_seqlens"]).view(3, EXAMPLES)
    sums[2, 1] = float("nan")
    expected = mdpo_loss(sums, tensors["reference"])
    found = fused(tensors)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.rewards, expected.rewards, equal_nan=True)


def test_own_log_probs_as_reference_give_exact_zeros(device: torch.device) -> None:
    """At the first step policy and reference are one model: rewards and margins are exactly 0, not nearly."""
    tensors = make(device)
    logps = token_logps(tensors["hidden"] @ tensors["weight"].T, tensors["targets"])
    tensors["reference"] = sequence_logps(logps, tensors["cu_seqlens"]).view(3, EXAMPLES)
    found = fused_from_logits(tensors)
    assert found.rewards.nan_to_num(0.0).abs().max() == 0
    assert found.rewards.isnan().sum() == 1 and torch.equal(found.losses[0], found.losses[2])


def test_an_all_ignored_sequence_is_present_with_log_prob_zero(device: torch.device) -> None:
    tensors = make(device)
    tensors["targets"][:3] = -100  # the first example's chosen
    found = results(fused, tensors)
    assert found["rewards"][0, 0] == -0.1 * tensors["reference"][0, 0]
    assert found["gradient"].isfinite().all() and not found["gradient"][:3].any()


def test_a_missing_reference_marks_an_absent_branch_too(device: torch.device) -> None:
    tensors = make(device)
    tensors["reference"][1, 0] = float("nan")
    found = results(fused, tensors)
    assert found["rewards"][1, 0].isnan() and found["response_preference"][0] == 0
    assert found["gradient"].isfinite().all() and not found["gradient"][7:11].any()


def test_losses_carry_the_gradient_too(device: torch.device) -> None:
    tensors = make(device)
    hidden = tensors["hidden"].requires_grad_()
    weights = torch.tensor([0.0, 2.0, 0.0], device=device)
    found = fused(tensors)
    (gradient,) = torch.autograd.grad((weights * found.losses).sum(), hidden, retain_graph=True)
    assert not gradient[:3].any() and gradient[3:5].any()
    (again,) = torch.autograd.grad((weights * found.losses).sum(), hidden)
    assert torch.equal(gradient, again)


def test_no_examples(device: torch.device) -> None:
    tensors = make(device)
    tensors |= {"hidden": tensors["hidden"][:0], "targets": tensors["targets"][:0]}
    tensors |= {"cu_seqlens": tensors["cu_seqlens"][:1], "reference": tensors["reference"][:, :0]}
    found = results(fused, tensors, num_examples=4)
    assert found["loss"] == 0 and found["gradient"].shape == (0, HIDDEN_SIZE)


@pytest.mark.slow
def test_sequences_longer_than_a_block(device: torch.device) -> None:
    """A sequence of several blocks, the last one partial, and int32 offsets."""
    logits = torch.randn(700, 2, device=device).requires_grad_()
    targets = torch.zeros(700, dtype=torch.int64, device=device)
    cu_seqlens = torch.tensor([0, 300, 557, 700], device=device, dtype=torch.int32)
    frozen = torch.zeros(3, 1, device=device)
    anchors = ("chosen", "rejected", "image_rejected")
    found = fused_mdpo_loss(logits, targets, cu_seqlens, frozen, anchors=anchors)
    sums = sequence_logps(token_logps(logits, targets), cu_seqlens)
    expected = mdpo_loss(sums.view(3, 1), frozen, anchors=anchors)
    torch.testing.assert_close(found.rewards, expected.rewards)
    grads = torch.autograd.grad(found.loss, logits)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.loss, logits))


@pytest.mark.parametrize("change", ["too few sequences", "rows beyond the last sequence", "reference of another shape"])
def test_a_batch_that_does_not_fit_is_refused(change: str, device: torch.device) -> None:
    tensors = make(device)
    if change == "too few sequences":
        tensors["cu_seqlens"] = tensors["cu_seqlens"][:-1]
        message = r"cu_seqlens is \(9,\) int64 .*; expected 3\*3 \+ 1 entries"
    elif change == "rows beyond the last sequence":
        if device.type == "cuda":
            pytest.skip("a device-side assertion ends the process's CUDA context")
        tensors["cu_seqlens"] = tensors["cu_seqlens"].clamp_max(19)
        message = "cu_seqlens does not run from 0 to the 20 rows"
    else:
        tensors["reference"] = tensors["reference"].T[:2]
        message = r"reference is \(2, 3\) float32 .*; expected \(3, B\)"
    with pytest.raises(ValueError, match=message):
        fused(tensors)


@pytest.mark.gpu
def test_a_whole_step_never_synchronises() -> None:
    tensors = make(torch.device("cuda"), torch.bfloat16)
    for function in (fused, fused_from_logits):
        results(function, tensors)  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(function, tensors, anchors=("chosen", "rejected"))
            mdpo_loss(
                sequence_logps(torch.zeros(20, device="cuda"), tensors["cu_seqlens"]).view(3, 3), tensors["reference"]
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("function", [fused_linear_mdpo_loss, reference.fused_linear_mdpo_loss])
def test_a_policy_gone_nan_is_a_nan_loss_and_no_absent_branch(function: Any, device: torch.device) -> None:
    tensors = make(device)
    tensors["hidden"][0, 0] = float("nan")
    assert function(**tensors).loss.isnan()
    assert linear_token_logps(tensors["hidden"], tensors["weight"], tensors["targets"])[0].isnan()
