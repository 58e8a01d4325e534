"""mdpo_loss and sequence_logps: numbers worked out by hand, absent branches, options, bad input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mdpo_kernels import mdpo_loss, reference, sequence_logps

NAN = float("nan")
POLICY = torch.tensor([[-10.0, -20.0], [-12.0, -18.0], [-11.0, -25.0]])
REFERENCE = torch.tensor([[-11.0, -19.0], [-11.0, -19.0], [-11.0, -20.0]])


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def test_numbers_by_hand() -> None:
    """With β = 0.1: Δ = (0.1, −0.1, 0) for the first example and (−0.1, 0.1, −0.5) for the second."""
    result = mdpo_loss(POLICY, REFERENCE, beta=0.1, anchor=(0.3, 0.2), anchors=("chosen", "image_rejected"))
    rewards = torch.tensor([[0.1, -0.1], [-0.1, 0.1], [0.0, -0.5]])
    torch.testing.assert_close(result.rewards, rewards)
    arguments = {
        "response_preference": (0.2, -0.2),
        "image_preference": (0.1, 0.4),
        "anchor_chosen": (0.1 - 0.3, -0.1 - 0.3),
        "anchor_image_rejected": (0.2 - 0.0, 0.2 + 0.5),
    }
    expected = {name: torch.tensor([minus_log_sigmoid(x) for x in pair]) for name, pair in arguments.items()}
    assert list(result.terms) == list(expected)
    for name, term in expected.items():
        torch.testing.assert_close(result.terms[name], term)
    torch.testing.assert_close(result.losses, torch.stack(list(expected.values())).sum(0))
    torch.testing.assert_close(result.loss, result.losses.mean())


def test_policy_equal_to_reference_gives_exact_zeros() -> None:
    policy = 1000 * torch.randn(3, 5)
    result = mdpo_loss(policy, policy.clone())
    assert not result.rewards.any()
    assert torch.equal(result.losses, 3 * torch.full((5,), 2.0).log())


@pytest.mark.parametrize(
    "options", [{}, {"conditional": False}, {"anchors": ()}, {"conditional": False, "anchors": ()}]
)
def test_terms_are_those_asked_for(options: dict[str, Any]) -> None:
    names = ["response_preference"]
    names += ["image_preference"] if options.get("conditional", True) else []
    names += ["anchor_" + name for name in options.get("anchors", ("chosen",))]
    result = mdpo_loss(POLICY, REFERENCE, **options)
    assert list(result.terms) == names
    assert torch.equal(result.losses, torch.stack(list(result.terms.values())).sum(0))


@pytest.mark.parametrize("marked", ["policy", "reference", "both"])
def test_an_absent_branch_drops_every_term_that_uses_it(marked: str) -> None:
    policy, frozen = POLICY.clone(), REFERENCE.clone()
    policy[2, 0] = frozen[2, 0] = NAN
    policy[2, 0] = NAN if marked != "reference" else policy[1, 0]
    frozen[2, 0] = NAN if marked != "policy" else frozen[1, 0]
    policy.requires_grad_()
    anchors = ("chosen", "rejected", "image_rejected")
    result = mdpo_loss(policy, frozen, anchors=anchors)
    whole = mdpo_loss(POLICY, REFERENCE, anchors=anchors)
    result.loss.backward()
    assert result.rewards.isnan().tolist() == [[False, False], [False, False], [True, False]]
    for name, term in result.terms.items():
        dropped = name in ("image_preference", "anchor_image_rejected")
        assert term[0] == (0.0 if dropped else whole.terms[name][0])
        assert term[1] == whole.terms[name][1]
    assert policy.grad is not None and policy.grad.isfinite().all() and policy.grad[2, 0] == 0


def test_an_example_without_branches_has_loss_zero_but_counts_in_the_mean() -> None:
    absent = torch.full((3, 1), NAN)
    result = mdpo_loss(torch.cat([POLICY, absent], 1), torch.cat([REFERENCE, absent], 1))
    assert result.losses[2] == 0
    torch.testing.assert_close(result.loss, mdpo_loss(POLICY, REFERENCE).losses.sum() / 3)


def test_num_examples_makes_micro_batches_add_up_and_an_empty_one_is_zero() -> None:
    parts = [mdpo_loss(POLICY[:, i : i + 1], REFERENCE[:, i : i + 1], num_examples=2).loss for i in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], mdpo_loss(POLICY, REFERENCE).loss)
    assert mdpo_loss(POLICY[:, :0], REFERENCE[:, :0]).loss == 0


def test_large_margins_stay_finite() -> None:
    policy = torch.tensor([[0.0, -1e6], [-1e6, 0.0], [0.0, 0.0]]).requires_grad_()
    result = mdpo_loss(policy, torch.zeros(3, 2))
    result.loss.backward()
    assert result.losses.isfinite().all() and policy.grad is not None and policy.grad.isfinite().all()
    torch.testing.assert_close(result.terms["response_preference"], torch.tensor([0.0, 1e5]))


def test_gradcheck_in_float64_and_no_gradient_for_the_reference() -> None:
    policy = POLICY.double().requires_grad_()
    frozen = REFERENCE.double().requires_grad_()

    def loss(policy: Tensor) -> Tensor:
        return mdpo_loss(policy, frozen, anchors=("chosen", "rejected"), anchor=(0.0, 0.1)).loss

    assert loss(policy).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, policy)
    assert torch.autograd.grad(loss(policy), frozen, allow_unused=True) == (None,)


def test_sequence_logps_by_hand_and_gradcheck() -> None:
    cu_seqlens = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    logps = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert sequence_logps(logps, cu_seqlens).tolist() == [3.0, 0.0, 12.0]
    assert sequence_logps(logps[:0], cu_seqlens[:1]).shape == (0,)
    assert sequence_logps(logps.bfloat16(), cu_seqlens).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda x: sequence_logps(x, cu_seqlens), logps.double().requires_grad_())


def test_sequence_logps_with_a_weight_for_each_token() -> None:
    cu_seqlens = torch.tensor([0, 2, 2, 5])
    logps = torch.tensor([1.0, 2.0, 3.0, -math.inf, 5.0], requires_grad=True)
    weights = torch.tensor([1.0, 5.0, 0.5, 0.0, 2.0], requires_grad=True)
    found = sequence_logps(logps, cu_seqlens, weights)
    assert found.tolist() == [11.0, 0.0, 11.5] and found.dtype == torch.float32
    found.sum().backward()
    assert logps.grad is not None and torch.equal(logps.grad, weights) and weights.grad is None
    finite = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(sequence_logps(finite, cu_seqlens, torch.ones(5)), sequence_logps(finite, cu_seqlens))
    assert torch.autograd.gradcheck(lambda x: sequence_logps(x, cu_seqlens, weights), finite)
    for wrong, message in [
        (weights[:3], "5 entries"),
        (weights.long(), "int64"),
        (weights.to("meta"), "different devices"),
    ]:
        with pytest.raises(ValueError, match=message):
            sequence_logps(logps, cu_seqlens, wrong)


def test_sequence_logps_loses_nothing_over_long_sequences() -> None:
    logps = -torch.rand(100_000)
    total = sequence_logps(logps, torch.tensor([0, 100_000]))
    assert total.item() == logps.double().sum().float().item()


def test_loss_and_sums_under_compile() -> None:
    cu_seqlens = torch.tensor([0, 2, 3, 4, 6, 8, 9])
    logps = torch.randn(9, requires_grad=True)

    def step(logps: Tensor) -> Tensor:
        return mdpo_loss(sequence_logps(logps, cu_seqlens).view(3, 2), REFERENCE).loss

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logps), step(logps))
    torch.testing.assert_close(torch.autograd.grad(compiled(logps), logps), torch.autograd.grad(step(logps), logps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": POLICY[:2]}, r"policy is \(2, 2\) float32 on cpu; expected \(3, B\)"),
        ({"policy": POLICY[0]}, r"policy is \(2,\) float32 on cpu; expected a \(3, B\) tensor"),
        ({"policy": POLICY.long()}, r"policy is \(3, 2\) int64 on cpu; expected .* float32"),
        ({"reference": REFERENCE[:, :1]}, r"reference is \(3, 1\) float32 on cpu; expected \(3, 2\)"),
        ({"reference": REFERENCE.tolist()}, "reference is a builtins.list; expected"),
        ({"reference": REFERENCE.to("meta")}, "policy on cpu, reference on meta"),
        ({"beta": 0.0}, "beta is 0.0; expected a finite number above 0"),
        ({"beta": NAN}, "beta is nan"),
        ({"anchors": "chosen"}, r"anchors is the string 'chosen'; expected .*\('chosen',\)"),
        ({"anchors": ("chosn",)}, "anchors is .*chosn.*; expected names out of"),
        ({"anchors": ("chosen", "chosen")}, "each at most once"),
        ({"anchor": (0.0, 0.1)}, r"anchor is \(0.0, 0.1\); expected .* one for each of anchors=\('chosen',\)"),
        *(({"beta": x}, rf"beta is {x!r}") for x in (math.inf, 10**39, -0.1, "0.1", None)),
        *(({"anchor": x}, rf"anchor is {x!r}; expected a finite number") for x in (math.inf, NAN, None, "0")),
        ({"anchor": (math.inf,)}, r"anchor is \(inf,\); expected a finite number"),
        ({"anchors": (), "anchor": NAN}, "anchor is nan"),
        ({"anchors": None}, "anchors is None; expected a sequence of names"),
        *(
            ({"num_examples": x}, rf"num_examples is {x!r}; expected a finite number above 0")
            for x in (0, -2, math.inf)
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments: dict[str, Any] = {"policy": POLICY, "reference": REFERENCE} | change
        mdpo_loss(**arguments)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 4], "does not run from 0 to the 4 rows"),
        ([0, 3], "does not run from 0 to the 4 rows"),
        ([0, 3, 2, 4], "without decreasing"),
        ([], "expected at least 1 entry"),
        ([0.0, 4.0], r"cu_seqlens is \(2,\) float32 on cpu; expected a \(S \+ 1,\) tensor of int64, int32"),
    ],
)
def test_bad_offsets_are_named(offsets: list[Any], message: str) -> None:
    dtype = None if offsets else torch.int64
    with pytest.raises(ValueError, match=message):
        sequence_logps(torch.zeros(4), torch.tensor(offsets, dtype=dtype))


def test_reference_offers_the_same_functions() -> None:
    assert reference.mdpo_loss is mdpo_loss and reference.sequence_logps is sequence_logps
