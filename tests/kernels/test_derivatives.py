"""Second derivatives, forward mode, torch.func: right in plain PyTorch, one error from what has a backward of
its own.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual

import mdpo_kernels
from mdpo_kernels import Segments, backend, reference

TARGETS, CU_SEQLENS = torch.tensor([0, 3, -100, 6]), torch.tensor([0, 2, 3, 4])
SEGMENTS = Segments.build([(0, 4)], [[(0, 4)]])


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def functions(module: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, tuple[Any, Tensor]]:
    """By name each op as a function of one tensor, and that tensor."""
    targets, cu_seqlens = TARGETS.to(device), CU_SEQLENS.to(device)
    logits, hidden, weight, logps, frozen, query = (
        numbers(*shape, dtype=dtype).to(device) for shape in ((4, 7), (4, 5), (7, 5), (4,), (3, 1), (4, 2, 8))
    )
    trained = weight.clone().requires_grad_()
    tiled: dict[str, Any] = {"max_workspace_bytes": 1024}
    segments = SEGMENTS.to(device)
    return {
        "token_logps": (lambda x: module.token_logps(x, targets, softcap=3.0), logits),
        "token_logps, in place": (lambda x: module.token_logps(1 * x, targets, inplace_backward=True), logits),
        "linear_token_logps, frozen head": (lambda x: module.linear_token_logps(x, weight, targets, **tiled), hidden),
        "linear_token_logps, trainable head": (lambda x: module.linear_token_logps(x, trained, targets), hidden),
        "linear_token_logps, by the head": (lambda x: module.linear_token_logps(hidden, x, targets, **tiled), weight),
        "linear_token_logps, by the bias": (
            lambda x: module.linear_token_logps(hidden, weight, targets, bias=x),
            weight[:, 0].clone(),
        ),
        "fused_mdpo_loss": (lambda x: module.fused_mdpo_loss(x, targets, cu_seqlens, frozen).loss, logits),
        "fused_linear_mdpo_loss": (
            lambda x: module.fused_linear_mdpo_loss(x, weight, targets, cu_seqlens, frozen).loss,
            hidden,
        ),
        "sequence_logps": (lambda x: module.sequence_logps(x, cu_seqlens), logps),
        "mdpo_loss": (lambda x: module.mdpo_loss(x, frozen).loss, frozen + 1),
        "varlen_attention": (lambda x: module.varlen_attention(x, query, query, segments), query),
    }


PLAIN = ("sequence_logps", "mdpo_loss")  # no op of their own anywhere
NAMES = list(functions(reference, torch.device("cpu")))
OPS = [name for name in NAMES if name not in PLAIN]


@pytest.mark.parametrize("name", NAMES)
def test_plain_pytorch_has_second_derivatives(name: str) -> None:
    function, at = functions(reference, torch.device("cpu"), torch.float64)[name]
    assert torch.autograd.gradgradcheck(function, at.clone().requires_grad_())


@pytest.mark.parametrize("curved", [False, True], ids=["of the op alone", "of a function of it"])
@pytest.mark.parametrize("name", OPS)
def test_the_kernels_refuse_to_be_differentiated_twice(name: str, curved: bool, device: torch.device) -> None:
    """A first derivative with create_graph=True is right; the second raises, whichever way it is asked for."""
    function, at = functions(mdpo_kernels, device)[name]
    leaf = at.clone().requires_grad_()

    def gradient(create_graph: bool) -> tuple[Tensor, Tensor]:
        inner = 2 * leaf  # not a leaf: what is differentiated twice lies behind the op
        value = function(inner)
        return inner, torch.autograd.grad((value**2 if curved else value).sum(), leaf, create_graph=create_graph)[0]

    inner, found = gradient(True)
    torch.testing.assert_close(found, gradient(False)[1])
    op = name.split(",")[0].replace("fused_", "(fused_)?").replace("mdpo_loss", "(mdpo_loss|token_logps)")
    for inputs in (leaf, inner):
        with pytest.raises(NotImplementedError, match=rf"mdpo_kernels\.{op} .*mdpo_kernels\.reference"):
            torch.autograd.grad(found.square().sum(), inputs, retain_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated twice"):
        found.square().sum().backward()


def test_the_op_of_the_loss_refuses_too(device: torch.device) -> None:
    """Its slopes, which the gradient is made of, carry no graph: without a tie the second derivative is 0."""
    logps, cu_seqlens = numbers(3).to(device).requires_grad_(), torch.arange(4, device=device)
    matrix = (3, [0], [1], [1.0, -1.0, 0.0], [1.0], [0.0])
    frozen = torch.zeros(3, 1, device=device)
    losses, *_ = torch.ops.mdpo_kernels.preference_loss(logps, cu_seqlens, frozen, None, 0.1, *matrix)
    (gradient,) = torch.autograd.grad(losses.sum(), logps, create_graph=True)
    with pytest.raises(NotImplementedError, match="fused_linear_preference_loss was differentiated twice"):
        torch.autograd.grad(gradient.sum(), logps)


def test_hidden_states_are_not_kept_for_the_sake_of_an_error(device: torch.device) -> None:
    if not backend.use_triton(torch.zeros(1, device=device)):
        pytest.fail("the kernels do not run here")
    saved: list[Tensor] = []
    hidden, weight = numbers(4, 5).to(device).requires_grad_(), numbers(7, 5).to(device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mdpo_kernels.linear_token_logps(2 * hidden, weight, TARGETS.to(device))
    kept = [t for t in saved if t.dim() == 2 and t.untyped_storage().nbytes()]
    assert [t.shape for t in kept] == [hidden.shape]  # the unit gradient


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_is_refused_instead_of_giving_no_tangent(name: str, device: torch.device) -> None:
    function, at = functions(mdpo_kernels, device)[name]
    with dual_level(), pytest.raises(NotImplementedError, match=r"was given a tangent.*mdpo_kernels\.reference"):
        function(make_dual(at, torch.ones_like(at)))
    with pytest.raises(NotImplementedError, match="was given a tangent"):
        torch.func.jvp(function, (at,), (torch.ones_like(at),))


@pytest.mark.parametrize("name", OPS)
def test_torch_func_gives_the_gradient_or_an_error(name: str, device: torch.device) -> None:
    function, at = functions(mdpo_kernels, device)[name]
    leaf = at.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf).sum(), leaf)
    try:
        found = torch.func.grad(lambda x: function(x).sum())(at)
    except RuntimeError:  # PyTorch's own: an op registered with it cannot be seen through
        return
    torch.testing.assert_close(found, expected)
