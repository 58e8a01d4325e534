"""preference_loss and fused_linear_preference_loss: each link against the equation, number by number; mDPO to the last
bit; absent branches, β an example, no reference; what does not fit."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpo_kernels import (
    PreferenceLoss,
    Term,
    backend,
    fused_linear_preference_loss,
    mdpo_loss,
    mdpo_terms,
    preference_loss,
    reference,
)
from mdpo_kernels.fused_loss import preference_loss_fwd_kernel
from tests.numerics import assert_as_exact_as_torch

NAN = float("nan")
NAMES = ("chosen", "rejected", "image_rejected", "rejected@negative", "chosen@negative_2")
# Of five branches, in the links and shapes that published objectives have: see mdpo_kernels/terms.py.
OBJECTIVES: dict[str, list[Term]] = {
    "mdpo": list(mdpo_terms(anchor=0.1)),
    "symmetric, with a margin": [
        Term("preference", {"chosen": 1, "rejected": -1}),
        Term("contrast", {"rejected@negative": 1, "image_rejected": -1}, weight=0.5),
        Term(
            "margin",
            {"chosen": 1, "rejected": -1, "rejected@negative": -1, "image_rejected": 1},
            link="square",
            weight=0.2,
        ),
    ],
    "better than several": [
        Term("preference", {"chosen": 1, "rejected": -1}, offset=0.05),
        Term(
            "images",
            [{"chosen": 1, "image_rejected": -1}, {"chosen": 1, "chosen@negative_2": -1}],
            weight=0.7,
            offset=-0.1,
        ),
    ],
    "linear": [
        Term("likely", {"chosen": 1.5}, link="linear", weight=0.3),
        Term("preference", {"chosen": 2, "rejected": -0.5}),
    ],
    "of nothing but one": [Term("anchor", {"rejected": -1}, offset=0.2)],
}


def scalar(terms: list[Term], rewards: dict[str, float]) -> dict[str, float]:
    """The equations of mdpo_kernels/terms.py, with Python's numbers, of one example. Absent branches are not in
    `rewards`.
    """
    found = {}
    for term in terms:
        rows = term.matrix
        if any(branch not in rewards for row in rows for branch in row):
            found[term.name] = 0.0
            continue
        u = [sum(c * rewards[branch] for branch, c in row.items()) - term.offset for row in rows]
        value = {
            "log_sigmoid": math.log(1 + sum(math.exp(-each) for each in u)),
            "square": u[0] ** 2,
            "linear": -u[0],
        }[term.link]
        found[term.name] = term.weight * value
    return found


@pytest.fixture
def logps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    policy, frozen = (-20 * torch.rand(len(NAMES), 4, generator=generator, dtype=torch.float64) for _ in range(2))
    policy[2, 1] = policy[4, 2] = frozen[1, 3] = NAN
    return policy, frozen


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_term_is_its_equation(name: str, logps: tuple[Tensor, Tensor]) -> None:
    policy, frozen = logps
    result = preference_loss(policy, frozen, OBJECTIVES[name], branches=NAMES, beta=0.3)
    rewards = 0.3 * (policy - frozen)
    for example in range(policy.shape[1]):
        column = dict(zip(NAMES, rewards[:, example].tolist(), strict=True))
        there = {branch: value for branch, value in column.items() if not math.isnan(value)}
        for term, value in scalar(OBJECTIVES[name], there).items():
            assert float(result.terms[term][example]) == pytest.approx(value, rel=1e-12, abs=1e-12), (term, example)
    assert torch.equal(result.losses, torch.stack(list(result.terms.values())).sum(0))
    torch.testing.assert_close(result.rewards, rewards, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradcheck_once_and_twice(name: str, logps: tuple[Tensor, Tensor]) -> None:
    policy, frozen = logps
    there = policy.isnan() | frozen.isnan()

    def loss(values: Tensor) -> Tensor:
        return preference_loss(values.masked_fill(there, NAN), frozen, OBJECTIVES[name], branches=NAMES).loss

    values = policy.nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(loss, values) and torch.autograd.gradgradcheck(loss, values)


def before(
    policy: Tensor, frozen: Tensor, anchors: tuple[str, ...], offsets: tuple[float, ...], conditional: bool
) -> Tensor:
    """The mDPO loss as it was written before there were terms: differences, one after the other."""
    present = ~(policy.isnan() | frozen.isnan())
    rewards = 0.1 * (policy.where(present, 0) - frozen.where(present, 0))
    terms = [(-F.logsigmoid(rewards[0] - rewards[1])).where(present[0] & present[1], 0)]
    if conditional:
        terms.append((-F.logsigmoid(rewards[0] - rewards[2])).where(present[0] & present[2], 0))
    for name, offset in zip(anchors, offsets, strict=True):
        row = NAMES.index(name)
        terms.append((-F.logsigmoid((1.0 if row == 0 else -1.0) * (rewards[row] - offset))).where(present[row], 0))
    return torch.stack(terms).sum(0).sum() / policy.shape[1]


@pytest.mark.parametrize(
    ("anchors", "offsets", "conditional"),
    [(("chosen",), (0.0,), True), (("rejected", "image_rejected", "chosen"), (0.1, -0.2, 0.3), True), ((), (), False)],
)
def test_mdpo_to_the_last_bit(anchors: tuple[str, ...], offsets: tuple[float, ...], conditional: bool) -> None:
    policy, frozen = -50 * torch.rand(3, 1000), -50 * torch.rand(3, 1000)
    policy[2, ::7] = NAN
    ours, theirs = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    found = mdpo_loss(ours, frozen, anchors=anchors, anchor=offsets, conditional=conditional).loss
    expected = before(theirs, frozen, anchors, offsets, conditional)
    assert torch.equal(found, expected)
    assert torch.equal(*torch.autograd.grad(found, ours), *torch.autograd.grad(expected, theirs))


def test_beta_an_example(logps: tuple[Tensor, Tensor]) -> None:
    policy, frozen = logps
    betas = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    terms = OBJECTIVES["better than several"]
    whole = preference_loss(policy, frozen, terms, branches=NAMES, beta=betas)
    for example, beta in enumerate(betas.tolist()):
        one = preference_loss(policy[:, [example]], frozen[:, [example]], terms, branches=NAMES, beta=beta)
        torch.testing.assert_close(whole.losses[example], one.losses[0])
    for wrong, message in [(betas[:3], "4 entries"), (-betas, "above 0"), (betas.where(betas > 0.1, NAN), "above 0")]:
        with pytest.raises(ValueError, match=message):
            preference_loss(policy, frozen, terms, branches=NAMES, beta=wrong)  # pyright: ignore[reportArgumentType]


def make(device: torch.device) -> Any:
    """Three examples of five branches: the second without the third branch, the third without a reference of the
    second.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 2, 1, 2, 4, 3, 1, 0, 2, 2, 2, 1, 5, 1, 2]
    rows = sum(lengths)
    frozen = -10 * torch.rand(5, 3, generator=generator)
    frozen[1, 2] = NAN
    tensors = {
        "hidden": torch.randn(rows, 16, generator=generator),
        "weight": (torch.randn(29, 16, generator=generator) / 4),
        "targets": torch.randint(29, (rows,), generator=generator),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
        "reference": frozen,
    }
    return {name: value.to(device) for name, value in tensors.items()}


def results(function: Callable[..., PreferenceLoss], tensors: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    hidden = tensors["hidden"].clone().requires_grad_()
    found = function(**{**tensors, "hidden": hidden}, branches=NAMES, **options)
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    return {"loss": found.loss, "losses": found.losses, "rewards": found.rewards, "gradient": gradient} | found.terms


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", ["a number", "one an example", "without a reference"])
def test_fused_as_exact_as_torch(name: str, kind: str, device: torch.device) -> None:
    tensors = make(device)
    options: dict[str, Any] = {"terms": OBJECTIVES[name], "num_examples": 7}
    options["beta"] = torch.tensor([0.1, 0.5, 0.2], device=device) if kind == "one an example" else 0.3
    if kind == "without a reference":
        tensors["reference"] = None
    in_float64 = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in tensors.items()}
    truth = results(reference.fused_linear_preference_loss, in_float64, **options)
    plain = results(reference.fused_linear_preference_loss, tensors, **options)
    for what, value in results(fused_linear_preference_loss, tensors, **options).items():
        assert_as_exact_as_torch(value, truth=truth[what], torch_value=plain[what], what=what)


def test_without_a_reference_a_reward_is_of_a_token(device: torch.device) -> None:
    tensors = make(device) | {"reference": None}
    found = fused_linear_preference_loss(**tensors, terms=OBJECTIVES["linear"], branches=NAMES, beta=1.0)
    logps = (tensors["hidden"] @ tensors["weight"].T).log_softmax(-1).gather(1, tensors["targets"][:, None]).squeeze(1)
    chosen = logps[:3].mean()
    torch.testing.assert_close(found.rewards[0, 0], chosen)
    torch.testing.assert_close(found.terms["likely"][0], -0.3 * 1.5 * chosen)


def test_a_policy_gone_nan_is_the_loss_s_and_of_no_other_example(device: torch.device) -> None:
    tensors = make(device)
    tensors["hidden"][0] = NAN
    for function in (fused_linear_preference_loss, reference.fused_linear_preference_loss):
        for name, terms in OBJECTIVES.items():
            losses = function(**tensors, terms=terms, branches=NAMES).losses
            reads = any("chosen" in term.branches for term in terms)
            assert losses[0].isnan() == reads and losses[1:].isfinite().all(), name


def test_other_numbers_are_no_other_kernel(device: torch.device) -> None:
    if not backend.use_triton(torch.zeros(1, device=device)) or backend.INTERPRETED:
        pytest.skip("kernels are compiled on a GPU alone; tests/kernels/test_compile.py compiles them without one")
    tensors = make(device)

    def count() -> int:
        return sum(len(cache[0]) for cache in preference_loss_fwd_kernel.device_caches.values())

    before = 0
    for scale in (1.0, 0.5, 2.0):
        terms = [Term("preference", {"chosen": scale, "rejected": -scale}, weight=scale, offset=scale - 1)]
        fused_linear_preference_loss(**tensors, terms=terms, branches=NAMES, beta=scale)
        if scale == 1.0:
            before = count()
    assert count() == before


@pytest.mark.slow
def test_one_graph(device: torch.device) -> None:
    tensors = make(device)
    terms = OBJECTIVES["better than several"]

    def step(hidden: Tensor) -> Tensor:
        fused = fused_linear_preference_loss(**{**tensors, "hidden": hidden}, terms=terms, branches=NAMES)
        plain = preference_loss(fused.rewards * 2, fused.rewards, terms, branches=NAMES)
        return fused.loss + plain.loss

    hidden = tensors["hidden"].requires_grad_()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden), step(hidden))
    torch.testing.assert_close(torch.autograd.grad(compiled(hidden), hidden), torch.autograd.grad(step(hidden), hidden))


ANY: Any = Term  # to be given what its types do not allow


@pytest.mark.parametrize(
    ("make_term", "message"),
    [
        (lambda: ANY("", {"chosen": 1}), "a term's name is ''"),
        (lambda: ANY("t", {}), r"term t: rows is \{\}; expected \{branch: coefficient\}"),
        (lambda: ANY("t", []), r"term t: rows is \[\]"),
        (lambda: ANY("t", "chosen"), "term t: rows is 'chosen'"),
        (lambda: ANY("t", {"chosen": 0}), "'chosen' has the coefficient 0; expected .* other than 0"),
        (lambda: ANY("t", {"chosen": NAN}), "coefficient nan"),
        (lambda: ANY("t", {1: 1.0}), "1 has the coefficient 1.0; expected a branch's name"),
        (lambda: ANY("t", {"chosen": 1}, link="hinge"), "link is 'hinge'; expected one of log_sigmoid, square, linear"),
        (lambda: ANY("t", [{"a": 1}, {"b": 1}], link="square"), "2 rows with link square; only log_sigmoid"),
        (lambda: ANY("t", {"chosen": 1}, weight=-1), "weight is -1; expected a finite number, at least 0"),
        (lambda: ANY("t", {"chosen": 1}, offset=math.inf), "offset is inf"),
    ],
)
def test_terms_that_are_none(make_term: Callable[[], Term], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_term()


CHOSEN = Term("t", {"chosen": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": []}, "terms is .*; expected a sequence of Term"),
        ({"terms": CHOSEN}, "terms is Term.*; expected a sequence of Term"),
        ({"terms": [CHOSEN, CHOSEN]}, "two by the name 't'"),
        ({"terms": [Term("t", {"choosen": 1})]}, "branch 'choosen' is none of chosen, rejected; did you mean chosen"),
        ({"branches": ("chosen", "chosen")}, "branches is .*; expected names, each once"),
        ({"branches": "chosen"}, "branches is 'chosen'; expected names"),
        ({"branches": ()}, r"branches is \(\)"),
        ({"policy": torch.zeros(3, 2)}, r"policy is \(3, 2\) float32 on cpu; expected \(2, B\): chosen, rejected"),
        ({"reference": torch.zeros(2, 3)}, r"reference is \(2, 3\) .*; expected \(2, 2\)"),
        ({"beta": 0}, "beta is 0"),
        ({"beta": torch.ones(2, device="meta")}, "different devices"),
        ({"num_examples": 0}, "num_examples is 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: Any = {"policy": torch.zeros(2, 2), "reference": torch.zeros(2, 2), "terms": [CHOSEN]}
    with pytest.raises(ValueError, match=message):
        preference_loss(**{**arguments, "branches": ("chosen", "rejected"), **change})


def test_sequences_that_do_not_fit_are_refused(device: torch.device) -> None:
    tensors = make(device) | {"terms": [CHOSEN]}
    for function in (fused_linear_preference_loss, reference.fused_linear_preference_loss):
        with pytest.raises(ValueError, match=r"expected 4\*B \+ 1 entries"):
            function(**tensors | {"reference": None}, branches=NAMES[:4])
        with pytest.raises(ValueError, match=r"reference is \(5, 3\) .*; expected \(4, B\)"):
            function(**tensors, branches=NAMES[:4])
        with pytest.raises(ValueError, match=r"expected 5\*2 \+ 1 entries for 2 examples"):
            function(**tensors | {"reference": tensors["reference"][:, :2]}, branches=NAMES)


def test_a_term_is_what_it_was_made_of_and_can_be_a_key() -> None:
    row = {"chosen": 1.0}
    rows = [row, {"rejected": 1.0}]
    term, terms = Term("t", row), Term("t", rows)
    row["rejected"] = 2.0
    rows.append({"chosen": 3.0})
    assert term.matrix == ({"chosen": 1.0},) and terms.matrix == ({"chosen": 1.0}, {"rejected": 1.0})
    assert {term: 1}[Term("t", {"chosen": 1.0})] == 1
    with pytest.raises(ValueError, match="other than 0 in float32"):
        Term("t", {"chosen": 1e-50})


def test_an_infinite_reward_among_several_rows(device: torch.device) -> None:
    """Of a branch whose reference has probability 0 for what the policy does not."""
    tensors = make(device)
    tensors["reference"][0, 0] = float("inf")
    terms = [Term("images", [{"chosen": 1, "image_rejected": -1}, {"rejected": 1, "rejected@negative": -1}])]
    for function in (fused_linear_preference_loss, reference.fused_linear_preference_loss):
        found = function(**tensors, terms=terms, branches=NAMES)
        assert found.losses[0] == float("inf") and found.losses[1:].isfinite().all()
