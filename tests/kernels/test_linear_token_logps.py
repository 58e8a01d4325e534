"""linear_token_logps against float64, in values and all gradients, for frozen and trainable heads."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mdpo_kernels import linear_token_logps, reference
from tests.numerics import assert_as_exact_as_torch, relative_error


class Case(NamedTuple):
    why: str
    rows: int = 7
    hidden_size: int = 33
    vocabulary: int = 61
    dtype: torch.dtype = torch.float32
    lead: float = 0.0  # added to the target's logit, by moving hidden along its row of the head
    spread: float = 1.0  # factor on hidden, so on the logits
    bias: bool = False
    train: bool = False  # weight (and bias) want gradients
    options: dict[str, Any] = {}


# 1024 bytes are the least workspace: tiles of some 10 rows and 16 columns.
TILED: dict[str, Any] = {"max_workspace_bytes": 1024}
CASES = [
    Case("odd sizes, the vocabulary whole"),
    Case("one row", rows=1),
    Case("one token in the vocabulary: no other to sum over", vocabulary=1, bias=True),
    Case("the vocabulary tiled, the maximum moves between tiles", options=TILED),
    Case("rows chunked and the vocabulary tiled, the last ones partial", rows=19, vocabulary=40, options=TILED),
    Case("several blocks of a row", rows=2, hidden_size=5, vocabulary=9001),
    Case("hidden wider than a block", rows=2, hidden_size=4100, vocabulary=5),
    Case("bias", bias=True),
    Case("bias, tiled", bias=True, options=TILED),
    Case("softcap and scale", options={"softcap": 3.0, "scale": 0.5}),
    Case("softcap, scale and bias, tiled", bias=True, options={"softcap": 3.0, "scale": 2.0, **TILED}),
    Case("logits around 1e4", spread=2000.0),
    Case("logits around 1e4, tiled", spread=2000.0, options=TILED),
    Case("bf16", dtype=torch.bfloat16),
    Case("bf16, tiled", dtype=torch.bfloat16, options=TILED),
    Case("fp16", dtype=torch.float16),
    Case("bf16, p of about 0.9993", dtype=torch.bfloat16, lead=11.0),
    Case("bf16, p of about 0.99998, tiled", dtype=torch.bfloat16, lead=15.0, options=TILED),
    Case("p rounds to 1 in float32", lead=30.0),
    Case("p underflows", lead=-200.0),
    Case("trainable head", train=True),
    Case("trainable head, bias", train=True, bias=True),
    Case("trainable head, bias, softcap and scale", train=True, bias=True, options={"softcap": 3.0, "scale": 0.5}),
    Case("trainable head, rows chunked and tiled", rows=19, vocabulary=40, train=True, bias=True, options=TILED),
    Case("trainable head, bf16", dtype=torch.bfloat16, train=True, bias=True),
    Case("trainable head, bf16, tiled", rows=19, dtype=torch.bfloat16, vocabulary=40, train=True, options=TILED),
    Case("trainable head, bf16, p of about 0.99998", dtype=torch.bfloat16, lead=15.0, train=True),
    Case("an ignore_index inside the vocabulary", options={"ignore_index": 3}),
]


def make(case: Case, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """hidden, weight and perhaps bias by name, targets of which the last is ignored, a gradient from above."""
    generator = torch.Generator().manual_seed(len(case.why))
    targets = torch.randint(case.vocabulary, (case.rows,), generator=generator)
    weight = torch.randn(case.vocabulary, case.hidden_size, generator=generator) / case.hidden_size**0.5
    hidden = case.spread * torch.randn(case.rows, case.hidden_size, generator=generator)
    along = weight[targets] / weight[targets].square().sum(1, keepdim=True)
    tensors = {"hidden": (hidden + case.lead * along).to(device, case.dtype), "weight": weight.to(device, case.dtype)}
    if case.bias:
        tensors["bias"] = torch.randn(case.vocabulary, generator=generator).to(device, case.dtype)
    if case.rows > 1:
        targets[-1] = case.options.get("ignore_index", -100)
    return tensors, targets.to(device), torch.randn(case.rows, generator=generator).to(device)


def eager(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Any = None,
    softcap: Any = None,
    scale: float = 1.0,
    ignore_index: int = -100,
    max_workspace_bytes: int = 0,
) -> Tensor:
    """What people write: the head, log_softmax in float32, gather."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    picked = logits.log_softmax(-1).gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(targets == ignore_index, 0.0, picked)


def value_and_grads(
    function: Any, tensors: dict[str, Tensor], targets: Tensor, grad: Tensor, train: bool, **options: Any
) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_(name == "hidden" or train) for name, value in tensors.items()}
    value = function(leaves["hidden"], leaves["weight"], targets, bias=leaves.get("bias"), **options)
    value.backward(grad.to(value.dtype))
    return {"logps": value.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


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
