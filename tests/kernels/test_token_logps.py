"""token_logps against float64, in value and gradient, by the rule of tests/numerics.py."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import mdpo_kernels
from mdpo_kernels import reference, token_logps
from tests.numerics import assert_as_exact_as_torch, relative_error


class Case(NamedTuple):
    why: str
    rows: int = 5
    columns: int = 37
    dtype: torch.dtype = torch.float32
    spread: float = 3.0  # standard deviation of the logits
    lead: float = 0.0  # added to the target's logit
    options: dict[str, Any] = {}
    seed: int = 0


CASES = [
    Case("odd sizes, nothing a multiple of a block"),
    Case("one row", rows=1),
    Case("one token in the vocabulary: no other to sum over", columns=1),
    Case("two tokens: one lane in use", columns=2),
    Case("a power of two: no masked lanes", columns=64),
    Case("several blocks, the last partial", rows=2, columns=9001),
    Case("bf16", dtype=torch.bfloat16),
    Case("bf16, several blocks", rows=2, columns=9001, dtype=torch.bfloat16),
    Case("fp16", dtype=torch.float16),
    Case("logits around 1e4, where exp overflows unless shifted", spread=1e4),
    Case("fp16 at the top of its range", dtype=torch.float16, spread=1.5e4),
    Case("all logits equal", spread=0.0),
    Case("p of about 0.9993", lead=16.0, spread=1.0),
    Case("p of about 0.99998", lead=20.0, spread=1.0),
    Case("bf16, p of about 0.99998", lead=20.0, spread=1.0, dtype=torch.bfloat16),
    Case("p rounds to 1 in float32", lead=30.0, spread=1.0),
    Case("p underflows", lead=-200.0),
    Case("softcap", options={"softcap": 5.0}),
    Case("softcap, saturated", spread=100.0, options={"softcap": 5.0}),
    Case("softcap, near zero, where tanh's quotient would cancel", spread=0.01, options={"softcap": 30.0}),
    Case("scale", options={"scale": 0.25}),
    Case("scale and softcap, bf16", dtype=torch.bfloat16, options={"scale": 2.0, "softcap": 8.0}),
    Case("scale and softcap, several blocks", rows=2, columns=5000, options={"scale": 0.5, "softcap": 3.0}),
    Case("an ignore_index inside the vocabulary", options={"ignore_index": 3}),
]


def make(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """logits (N, V), targets (N,) of which the last is ignored if there are several, and a gradient from above (N,)."""
    generator = torch.Generator().manual_seed(case.seed)
    logits = case.spread * torch.randn(case.rows, case.columns, generator=generator)
    targets = torch.randint(case.columns, (case.rows,), generator=generator)
    logits[torch.arange(case.rows), targets] += case.lead
    if case.rows > 1:
        targets[-1] = case.options.get("ignore_index", -100)
    grad = torch.randn(case.rows, generator=generator)
    return logits.to(device, case.dtype), targets.to(device), grad.to(device)


def eager(
    logits: Tensor, targets: Tensor, *, ignore_index: int = -100, softcap: Any = None, scale: float = 1.0
) -> Tensor:
    """What people write: log_softmax of the whole row, then gather."""
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    picked = logits.log_softmax(-1).gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(targets == ignore_index, 0.0, picked)


def value_and_grad(
    function: Any, logits: Tensor, targets: Tensor, grad: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = function(leaf, targets, **options)
    value.backward(grad.to(value.dtype))
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_as_exact_as_torch(case: Case, device: torch.device) -> None:
    logits, targets, grad = make(case, device)
    truth = value_and_grad(eager, logits.double(), targets, grad, **case.options)
    same_dtype = value_and_grad(eager, logits, targets, grad, **case.options)
    for name, function in (("kernel", token_logps), ("reference", reference.token_logps)):
        value, gradient = value_and_grad(function, logits, targets, grad, **case.options)
        assert value.dtype == torch.float32 and gradient.dtype == case.dtype
        assert_as_exact_as_torch(value, truth=truth[0], torch_value=same_dtype[0], what=f"{name}, logps")
        assert_as_exact_as_torch(gradient, truth=truth[1], torch_value=same_dtype[1], what=f"{name}, gradient")


@pytest.mark.parametrize("lead", [0.0, 16.0, 20.0])
def test_bf16_gradient_is_within_half_a_percent_at_any_p(lead: float, device: torch.device) -> None:
    logits, targets, grad = make(Case("any p", rows=8, columns=64, dtype=torch.bfloat16, spread=1, lead=lead), device)
    truth = value_and_grad(eager, logits.double(), targets, grad)[1]
    assert relative_error(value_and_grad(token_logps, logits, targets, grad)[1], truth) < 0.005


@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "rows overlap"])
@pytest.mark.parametrize("inplace", [False, True])
def test_any_strides(layout: str, inplace: bool, device: torch.device) -> None:
    logits, targets, grad = make(Case("strides", seed=7), device)
    if layout == "rows apart":
        view = torch.cat([logits, torch.full_like(logits, float("nan"))], 1)[:, :37]
    elif layout == "columns apart":
        view = logits.T.contiguous().T
    else:
        view = logits[:1].expand(5, 37)
    truth = value_and_grad(eager, view.double(), targets, grad)
    leaf = view.detach().requires_grad_()
    value = token_logps(leaf * 1.0 if layout == "columns apart" else leaf, targets, inplace_backward=inplace)
    (gradient,) = torch.autograd.grad(value, leaf, grad)
    torch.testing.assert_close(value.double(), truth[0])
    torch.testing.assert_close(gradient.double(), truth[1], rtol=1e-5, atol=1e-6)


def test_inplace_backward_overwrites_the_logits_and_allows_no_second_backward(device: torch.device) -> None:
    logits, targets, grad = make(Case("in place"), device)
    expected = value_and_grad(token_logps, logits, targets, grad)[1]
    leaf = logits.clone().requires_grad_()
    overwritten = leaf * 1.0
    value = token_logps(overwritten, targets, inplace_backward=True)
    (gradient,) = torch.autograd.grad(value, overwritten, grad, retain_graph=True)
    assert gradient.data_ptr() == overwritten.data_ptr()
    assert torch.equal(gradient, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, overwritten, grad)


def test_all_rows_ignored_give_zero_and_no_rows_give_none(device: torch.device) -> None:
    logits, targets, grad = make(Case("ignored"), device)
    value, gradient = value_and_grad(token_logps, logits, torch.full_like(targets, -100), grad)
    assert not value.any() and not gradient.any()
    value, gradient = value_and_grad(token_logps, logits[:0], targets[:0], grad[:0])
    assert value.shape == (0,) and gradient.shape == (0, 37)


def test_masked_tokens_of_probability_zero(device: torch.device) -> None:
    logits, targets, grad = make(Case("minus infinity", rows=2), device)
    targets = torch.tensor([4, 30], device=device)
    logits[:, 20:] = float("-inf")  # the second row's target among them
    value, gradient = value_and_grad(token_logps, logits, targets, torch.ones_like(grad))
    assert value[0].isfinite() and value[1] == float("-inf")
    assert gradient[0].isfinite().all() and not gradient[0, 20:].any()


@pytest.mark.slow
def test_int32_targets(device: torch.device) -> None:
    logits, targets, _ = make(Case("int32"), device)
    assert torch.equal(token_logps(logits, targets.int()), token_logps(logits, targets))
    head = torch.randn(37, 4, device=device)
    for module in (mdpo_kernels, reference):
        inside = targets.clamp_min(0)
        inside[0] = 0  # which an ignore_index of −2⁴⁰ is modulo 2³²
        expected = module.token_logps(logits, inside)
        assert torch.equal(module.token_logps(logits, inside.int(), ignore_index=-(2**40)), expected)
        expected = module.linear_token_logps(logits[:, :4], head, inside)
        assert torch.equal(
            module.linear_token_logps(logits[:, :4], head, inside.int(), ignore_index=-(2**40)), expected
        )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "columns", "apart"), [(17000, 128256, 128256), (3, 1000, 2**30 + 8)], ids=["many", "apart"]
)
def test_more_than_two_to_the_31_logits(rows: int, columns: int, apart: int) -> None:
    """Addresses past 2³¹ entries, of many rows or of rows far apart: the last row agrees with itself computed alone."""
    memory = torch.zeros((rows - 1) * apart + columns, dtype=torch.bfloat16, device="cuda")
    logits = memory.as_strided((rows, columns), (apart, 1)).requires_grad_()
    with torch.no_grad():
        logits[-1, -64:] = torch.randn(64, device="cuda").bfloat16()
    targets = torch.full((rows,), columns - 1, device="cuda")
    value = token_logps(logits, targets)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    last = logits[-1:].detach().clone().requires_grad_()
    expected = token_logps(last, targets[-1:])
    assert torch.equal(value[-1:], expected)
    assert torch.equal(gradient[-1:], torch.autograd.grad(expected.sum(), last)[0])
