"""NaN and infinities among the logits: what PyTorch's log_softmax makes of them, in value and gradient, in every op."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mdpo_kernels import fused_mdpo_loss, linear_token_logps, mdpo_loss, reference, token_logps
from mdpo_kernels.linear_token_logps_epilogue import linear_token_logps_epilogue

INF, NAN, LOWEST = float("inf"), float("nan"), torch.finfo(torch.float32).min
OPTIONS: list[dict[str, Any]] = [{}, {"softcap": 2.0, "scale": 0.5}]
# Every way in which three logits can be odd, the first of them the target's: 75 rows.
ODD = [INF, -INF, NAN, LOWEST, 0.5]
ROWS = torch.tensor([[own, *others] for own in ODD for others in itertools.combinations_with_replacement(ODD, 2)])
# Triton's interpreter computes with NumPy, which warns of what is asked for here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


def eager(logits: Tensor, targets: Tensor, *, softcap: float | None = None, scale: float = 1.0) -> Tensor:
    logits = logits.float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def eager_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor, *, targets: Tensor, max_workspace_bytes: int, **options: Any
) -> Tensor:
    return eager(hidden @ weight.T + bias, targets, **options)


def with_bias(function: Any) -> Any:
    """`linear_token_logps` as a function of three tensors."""
    return lambda hidden, weight, bias, **options: function(hidden, weight, bias=bias, **options)


def value_and_grads(function: Any, *inputs: Tensor, **options: Any) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
    value = function(*leaves, **options)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, wanted, torch.ones_like(value))]


def assert_equal_to(expected: list[Tensor], found: list[Tensor], what: str) -> None:
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(
            got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True, check_dtype=False, msg=lambda m: f"{what}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap and scale"])
def test_token_logps(options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    logits = ROWS.to(device, dtype).requires_grad_()
    targets = torch.zeros(len(ROWS), dtype=torch.int64, device=device)
    expected = value_and_grads(eager, logits, targets=targets, **options)
    for name, function in (("kernel", token_logps), ("reference", reference.token_logps)):
        assert_equal_to(expected, value_and_grads(function, logits, targets=targets, **options), name)


@pytest.mark.parametrize("function", [token_logps, reference.token_logps], ids=["kernel", "reference"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap and scale"])
def test_a_row_that_is_ignored_gives_0_whatever_is_in_it(
    function: Any, options: dict[str, Any], device: torch.device
) -> None:
    targets = torch.full((len(ROWS),), -100, device=device)
    logits = ROWS.to(device).requires_grad_()
    value, gradient = value_and_grads(function, logits, targets=targets, **options)
    assert not value.any() and not gradient.any()


@pytest.mark.parametrize("columns", [1, 5], ids=["one token alone", "the others masked"])
def test_a_target_without_others(columns: int, device: torch.device) -> None:
    """p = 1 where the target is finite, which is 0 and no gradient; NaN where it is not."""
    logits = torch.full((4, columns), -INF, device=device)
    logits[:, 0] = torch.tensor([2.0, INF, -INF, NAN], device=device)
    logits.requires_grad_()
    targets = torch.zeros(4, dtype=torch.int64, device=device)
    expected = value_and_grads(eager, logits, targets=targets)
    for name, function in (("kernel", token_logps), ("reference", reference.token_logps)):
        assert_equal_to(expected, value_and_grads(function, logits, targets=targets), name)


PLACES = {
    "the target": slice(5, 6),
    "another token": slice(33, 34),
    "the first tile": slice(0, 16),  # with the target in it
    "a tile in between": slice(16, 32),
    "the whole row": slice(0, 40),
    "all but the target": [*range(5), *range(6, 40)],
}


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("special", [INF, -INF, NAN, LOWEST])
def test_linear_token_logps(special: float, train: bool, device: torch.device) -> None:
    """The odd logits come out of the bias; tiles of 16 columns, and the vocabulary whole."""
    functions = {"kernel": linear_token_logps, "reference": reference.linear_token_logps}
    if not train:
        functions["epilogue"] = linear_token_logps_epilogue
    generator = torch.Generator().manual_seed(0)
    hidden, weight, plain = (torch.randn(shape, generator=generator) for shape in ((1, 6), (40, 6), (40,)))
    targets = torch.tensor([5], device=device)
    for (place, columns), options in itertools.product(PLACES.items(), OPTIONS):
        bias = plain.clone()
        bias[columns] = special
        inputs = [t.to(device).requires_grad_(train or t is hidden) for t in (hidden, weight, bias)]
        for workspace in (1024, 2**20):
            arguments = {"targets": targets, "max_workspace_bytes": workspace, **options}
            expected = value_and_grads(eager_linear, *inputs, **arguments)
            for name, function in functions.items():
                found = value_and_grads(with_bias(function), *inputs, **arguments)
                assert_equal_to(expected, found, f"{name}, {place}, {options}, {workspace}")


@pytest.mark.parametrize("train", [False, True], ids=["frozen head", "trainable head"])
def test_bf16_linear_token_logps(train: bool, device: torch.device) -> None:
    hidden, weight = torch.ones(3, 6, device=device).bfloat16(), torch.ones(40, 6, device=device).bfloat16()
    bias = torch.zeros(40, device=device)
    bias[20:] = -INF
    targets = torch.tensor([5, 25, -100], device=device)
    inputs = [hidden.requires_grad_(), weight.requires_grad_(train), bias.requires_grad_(train)]
    for function in (linear_token_logps, reference.linear_token_logps):
        value, *gradients = value_and_grads(with_bias(function), *inputs, targets=targets, max_workspace_bytes=1024)
        torch.testing.assert_close(value.cpu(), torch.tensor([-torch.tensor(20.0).log(), -INF, 0.0]))
        assert all(gradient.isfinite().all() for gradient in gradients) and not gradients[0][2].any()


@pytest.mark.parametrize("special", [INF, -INF, NAN])
def test_an_ignored_row_of_hidden_states_does_not_spoil_the_others(special: float, device: torch.device) -> None:
    hidden, weight = torch.randn(3, 6, device=device), torch.randn(40, 6, device=device)
    targets = torch.tensor([5, -100, 7], device=device)
    expected = value_and_grads(linear_token_logps, hidden.requires_grad_(), weight, targets=targets)
    odd = hidden.detach().clone()
    odd[1] = special
    for function in (linear_token_logps, reference.linear_token_logps, linear_token_logps_epilogue):
        found = value_and_grads(function, odd.requires_grad_(), weight, targets=targets)
        assert_equal_to(expected, found, str(special))


LENGTHS = [2, 1, 1, 1, 1, 0]  # two examples; the second has no image_rejected branch


@pytest.mark.parametrize("special", [-INF, NAN])
@pytest.mark.parametrize("row", range(4), ids=["chosen", "chosen too", "the other's chosen", "rejected"])
def test_the_losses_are_those_of_the_sums(row: int, special: float, device: torch.device) -> None:
    """A log-prob of −inf or NaN reaches losses, rewards and gradients of its own example, and of no other."""
    cu_seqlens = torch.tensor([0, *LENGTHS], device=device).cumsum(0)
    frozen, targets = -torch.ones(3, 2, device=device), torch.zeros(6, dtype=torch.int64, device=device)
    logits = torch.randn(6, 4, device=device)
    logits[row, 0] = special
    logits.requires_grad_()
    options: dict[str, Any] = {"anchors": ("chosen", "rejected", "image_rejected")}

    def expected(x: Tensor) -> Tensor:
        sums = torch.stack([part.sum() for part in eager(x, targets).split(LENGTHS)]).view(3, 2)
        # NaN marks an absent branch to mdpo_loss: a NaN that is one is put in behind it.
        present = sums.masked_fill(torch.tensor(LENGTHS, device=device).view(3, 2) == 0, NAN)
        broken = (sums.isnan() & (torch.tensor(LENGTHS, device=device).view(3, 2) > 0)).any(0)
        return mdpo_loss(present, frozen, **options).losses.where(~broken, NAN)

    truth = expected(logits.detach())
    for module in ("kernel", "reference"):
        from_logits = fused_mdpo_loss if module == "kernel" else reference.fused_mdpo_loss
        found = from_logits(logits, targets, cu_seqlens, frozen, **options)
        torch.testing.assert_close(found.losses, truth, equal_nan=True)
        assert found.loss.isfinite() == truth.sum().isfinite() and found.rewards[2, 1].isnan()
        (gradient,) = torch.autograd.grad(found.loss, logits)
        bad = 0 if row in (0, 1, 3) else 1
        rows_of = [[0, 1, 3, 5], [2, 4]]
        assert gradient[rows_of[1 - bad]].isfinite().all()
        assert gradient[row].isnan().any() == (special != special)


def test_minus_infinity_in_a_branch_is_an_infinite_loss_with_a_finite_gradient() -> None:
    policy = torch.tensor([[-INF, -1.0], [-1.0, -INF], [-1.0, -1.0]], requires_grad=True)
    found = mdpo_loss(policy, torch.zeros(3, 2))
    assert found.losses[0] == INF and found.losses[1].isfinite() and found.rewards[0, 0] == -INF
    (gradient,) = torch.autograd.grad(found.loss, policy)
    assert gradient.isfinite().all()
