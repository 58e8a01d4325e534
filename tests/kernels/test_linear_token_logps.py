"""linear_token_logps against float64, in values and all gradients, for frozen and trainable heads."""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mdpo_kernels import linear_token_logps, reference
from tests.kernels.linear_cases import CASES, Case, eager, make, value_and_grads
from tests.numerics import assert_as_exact_as_torch, relative_error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_as_exact_as_torch(case: Case, device: torch.device) -> None:
    tensors, targets, grad = make(case, device)
    doubled = {name: value.double() for name, value in tensors.items()}
    truth = value_and_grads(eager, doubled, targets, grad, case.train, **case.options)
    same_dtype = value_and_grads(eager, tensors, targets, grad, case.train, **case.options)
    assert set(truth) == {"logps", "hidden"} | (set(tensors) if case.train else set())
    for name, function in (("kernels", linear_token_logps), ("reference", reference.linear_token_logps)):
        found = value_and_grads(function, tensors, targets, grad, case.train, **case.options)
        assert set(found) == set(truth) and found["logps"].dtype == torch.float32
        for part, value in found.items():
            assert_as_exact_as_torch(value, truth=truth[part], torch_value=same_dtype[part], what=f"{name}, {part}")


@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("lead", [0.0, 3.0, 11.0, 15.0], ids=["p .01", "p .3", "p .9993", "p .99998"])
def test_bf16_hidden_gradient_is_within_half_a_percent_at_any_p(lead: float, train: bool, device: torch.device) -> None:
    """Plain PyTorch is off by 1.8% at .9993 and by 4% at .99998."""
    case = Case("any p", rows=8, hidden_size=64, vocabulary=96, dtype=torch.bfloat16, lead=lead)
    tensors, targets, grad = make(case, device)
    doubled = {name: value.double() for name, value in tensors.items()}
    truth = value_and_grads(eager, doubled, targets, grad, False)["hidden"]
    for function in (linear_token_logps, reference.linear_token_logps):
        found = value_and_grads(function, tensors, targets, grad, train, max_workspace_bytes=4096)["hidden"]
        assert relative_error(found, truth) < 0.005


def test_without_grad_nothing_is_kept_and_values_agree(device: torch.device) -> None:
    tensors, targets, _ = make(CASES[0], device)
    with_grad = linear_token_logps(tensors["hidden"].clone().requires_grad_(), tensors["weight"], targets)
    with torch.no_grad():
        without = linear_token_logps(tensors["hidden"].clone().requires_grad_(), tensors["weight"], targets)
    assert not without.requires_grad
    assert torch.equal(without, with_grad)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_only_part_of_the_head_is_trained(trained: str, device: torch.device) -> None:
    """Hidden frozen, one parameter of the head trained: its gradient alone is computed, and is right."""
    tensors, targets, grad = make(Case("part", bias=True), device)
    expected = value_and_grads(eager, tensors, targets, grad, True)[trained]
    tensors[trained].requires_grad_()
    value = linear_token_logps(tensors["hidden"], tensors["weight"], targets, bias=tensors["bias"])
    torch.testing.assert_close(torch.autograd.grad(value, tensors[trained], grad)[0], expected)


def test_strided_hidden_and_transposed_weight(device: torch.device) -> None:
    tensors, targets, grad = make(Case("strides"), device)
    strided = {
        "hidden": torch.cat([tensors["hidden"], tensors["hidden"]], 1)[:, :33],
        "weight": tensors["weight"].T.contiguous().T,
    }
    for train in (False, True):
        found = value_and_grads(linear_token_logps, strided, targets, grad, train)
        expected = value_and_grads(linear_token_logps, tensors, targets, grad, train)
        for part, value in expected.items():
            torch.testing.assert_close(found[part], value)


def test_no_rows_and_all_rows_ignored(device: torch.device) -> None:
    tensors, targets, grad = make(Case("none"), device)
    for train in (False, True):
        ignored = value_and_grads(linear_token_logps, tensors, torch.full_like(targets, -100), grad, train)
        assert not any(value.any() for value in ignored.values())
        empty = {"hidden": tensors["hidden"][:0], "weight": tensors["weight"]}
        found = value_and_grads(linear_token_logps, empty, targets[:0], grad[:0], train)
        assert found["logps"].shape == (0,) and not any(value.any() for value in found.values())


def test_under_gradient_checkpointing(device: torch.device) -> None:
    tensors, targets, grad = make(CASES[0], device)
    expected = value_and_grads(linear_token_logps, tensors, targets, grad, False)
    for reentrant in (False, True):

        def checkpointed(*args: Any, reentrant: bool = reentrant, **options: Any) -> Any:
            return checkpoint(linear_token_logps, *args, use_reentrant=reentrant, **({} if reentrant else options))

        found = value_and_grads(checkpointed, tensors, targets, grad, False)
        assert all(torch.equal(found[part], value) for part, value in expected.items())


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_weight_alone_and_casts_hidden_to_it(
    weight_dtype: torch.dtype, device: torch.device
) -> None:
    tensors, targets, grad = make(CASES[0], device)
    weight = tensors["weight"].to(weight_dtype)
    leaf = tensors["hidden"].bfloat16().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value = linear_token_logps(leaf, weight, targets)
        (gradient,) = torch.autograd.grad(value, leaf, grad)
    expected = linear_token_logps(leaf.detach().to(weight_dtype), weight, targets)
    assert torch.equal(value.detach(), expected) and gradient.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
def test_weight_of_more_than_two_to_the_31_entries(train: bool) -> None:
    """Addresses past 2³¹ entries in the head: targets from its end agree with a head that consists of its end."""
    vocabulary, hidden_size = 2**20 + 64, 2048
    weight = torch.zeros(vocabulary, hidden_size, dtype=torch.bfloat16, device="cuda")
    weight[-64:] = torch.randn(64, hidden_size, device="cuda").bfloat16()
    hidden = torch.randn(4, hidden_size, device="cuda").bfloat16()
    targets = torch.arange(vocabulary - 4, vocabulary, device="cuda")
    grad = torch.ones(4, device="cuda")
    found = value_and_grads(linear_token_logps, {"hidden": hidden, "weight": weight}, targets, grad, train)
    # All of the zero rows at once: they add (V − 64)·e⁰ to the sum.
    logits = hidden.double() @ weight[-64:].double().T
    rest = torch.full((4, 1), vocabulary - 64, device="cuda").double().log()
    expected = torch.cat([logits, rest], 1).log_softmax(1)[:, 60:64].diagonal()
    torch.testing.assert_close(found["logps"].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_workspace_bytes", [2**20, 1024])
def test_the_same_bits_with_a_gradient_and_without(max_workspace_bytes: int, device: torch.device) -> None:
    """Policy and reference of equal weights: a margin at step 0 is exactly zero."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 24, generator=generator).to(device) for rows in (9, 67))
    targets = torch.randint(67, (9,), generator=generator).to(device)
    without = linear_token_logps(hidden, weight, targets, max_workspace_bytes=max_workspace_bytes)
    with_gradient = linear_token_logps(
        hidden.requires_grad_(), weight, targets, max_workspace_bytes=max_workspace_bytes
    )
    assert torch.equal(without, with_gradient)
