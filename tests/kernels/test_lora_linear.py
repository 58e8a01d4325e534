"""lora_linear against float64, in values and gradients; what it writes and keeps; compile, checkpoint, autocast."""

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mdpo_kernels import LoraLayer, lora_linear, lora_linears, reference
from tests.numerics import assert_as_exact_as_torch

OPS = torch.ops.mdpo_kernels
TRAINED = ("x", "A", "B")


class Case(NamedTuple):
    why: str
    shape: tuple[int, ...] = (7,)  # of x, but for its inputs
    inputs: int = 33
    outputs: int = 21
    rank: int = 4
    dtype: torch.dtype = torch.float32
    adapter: torch.dtype | None = None  # the same, unless given
    bias: bool = False
    scale: float = 2.0
    trained: tuple[str, ...] = TRAINED
    seed: int = 0


CASES = [
    Case("odd sizes"),
    Case("a batch of sequences", shape=(2, 3)),
    Case("one row", shape=(1,)),
    Case("no row", shape=(0,)),
    Case("a vector", shape=()),
    Case("bias", bias=True),
    Case("rank 1, a small scale", rank=1, scale=0.01),
    Case("rank above either width", inputs=5, outputs=3, rank=8),
    Case("scale 0", scale=0.0),
    Case("bf16", dtype=torch.bfloat16),
    Case("bf16 beside an adapter in fp32", dtype=torch.bfloat16, adapter=torch.float32, bias=True),
    Case("fp16 beside an adapter in fp32", dtype=torch.float16, adapter=torch.float32),
    Case("a frozen adapter", trained=("x",)),
    Case("an input without gradient, as the first layer has", trained=("A", "B")),
    Case("A alone", trained=("A",)),
]


def make(case: Case, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """The arguments by name, and a gradient from above."""
    generator = torch.Generator().manual_seed(case.seed)
    shapes = {
        "x": (*case.shape, case.inputs),
        "weight": (case.outputs, case.inputs),
        "bias": (case.outputs,),
        "A": (case.rank, case.inputs),
        "B": (case.outputs, case.rank),
    }
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        dtype = case.adapter if name in ("A", "B") and case.adapter is not None else case.dtype
        found[name] = torch.randn(shape, generator=generator).to(device, dtype)
    if not case.bias:
        found["bias"] = None
    grad = torch.randn((*case.shape, case.outputs), generator=generator).to(device, case.dtype)
    return found | {"scale": case.scale}, grad


def value_and_grads(function: Any, case: Case, arguments: dict[str, Any], grad: Tensor) -> dict[str, Tensor]:
    leaves = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    for name in case.trained:
        leaves[name].requires_grad_()
    value = function(**leaves)
    value.backward(grad.to(value.dtype))
    return {"y": value.detach()} | {name: leaves[name].grad for name in case.trained}


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_as_exact_as_torch(case: Case, device: torch.device) -> None:
    arguments, grad = make(case, device)
    truth = value_and_grads(reference.lora_linear, case, in_float64(arguments), grad)
    plain = value_and_grads(reference.lora_linear, case, arguments, grad)
    found = value_and_grads(lora_linear, case, arguments, grad)
    assert found["y"].dtype == case.dtype and found["y"].shape == grad.shape
    for name, value in found.items():
        assert name == "y" or value.dtype == arguments[name].dtype
        if value.numel():
            assert_as_exact_as_torch(value, truth=truth[name], torch_value=plain[name], what=name)


def test_an_adapter_that_has_learnt_nothing_changes_no_bit(device: torch.device) -> None:
    for case in CASES:
        arguments, _ = make(case, device)
        arguments["B"] = torch.zeros_like(arguments["B"])
        weight, bias = arguments["weight"], arguments["bias"]
        assert torch.equal(lora_linear(**arguments), torch.nn.functional.linear(arguments["x"], weight, bias)), case.why


def test_gradcheck(device: torch.device) -> None:
    arguments, _ = make(Case("gradcheck", bias=True), device)
    arguments = in_float64(arguments)
    x, A, B = (arguments[name].requires_grad_() for name in TRAINED)
    assert torch.autograd.gradcheck(
        lambda x, A, B: lora_linear(x, arguments["weight"], arguments["bias"], A, B, 0.5), (x, A, B)
    )


@pytest.mark.slow
def test_opcheck(device: torch.device) -> None:
    arguments, _ = make(Case("opcheck", dtype=torch.bfloat16, adapter=torch.float32, bias=True), device)
    x, weight, bias, A, B = (arguments[name] for name in ("x", "weight", "bias", "A", "B"))
    for tensor in (x, A, B):
        tensor.requires_grad_()
    torch.library.opcheck(OPS.lora_linear.default, (x, weight, bias, A, B, 2.0))
    torch.library.opcheck(OPS.lora_linear.default, (x.detach(), weight, None, A.detach(), B.detach(), 2.0))
    others = [tensor.detach().clone().requires_grad_() for tensor in (A, B[:9])]
    several = ([weight, weight[:9]], [bias, None], [A, others[0]], [B, others[1]], [2.0, 0.5])
    torch.library.opcheck(OPS.lora_linears.default, (x, *several))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph_and_the_same_numbers(dynamic: bool, device: torch.device) -> None:
    case = Case("compile", shape=(2, 3), bias=True)
    arguments, grad = make(case, device)
    expected = value_and_grads(lora_linear, case, arguments, grad)
    compiled = torch.compile(lora_linear, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for name, value in value_and_grads(compiled, case, arguments, grad).items():
        torch.testing.assert_close(value, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_under_checkpointing_the_same_bits(device: torch.device) -> None:
    case = Case("checkpoint")
    arguments, grad = make(case, device)
    expected = value_and_grads(lora_linear, case, arguments, grad)

    def again(**given: Any) -> Tensor:
        return checkpoint(lora_linear, *given.values(), use_reentrant=False)

    found = value_and_grads(again, case, arguments, grad)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Writes(TorchDispatchMode):
    """Numbers written a row, by operator: into new tensors, and into those that lie there."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.numbers, self.widths = rows, Counter[str](), set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() == 2 and out.shape[0] == self.rows and not func.is_view:
            self.numbers[str(func)] += out.shape[1]
            self.widths.add(out.shape[1])
        return out


def test_a_checkpoint_never_recomputes_the_last_product(device: torch.device) -> None:
    arguments, grad = make(Case("recomputed", inputs=33, outputs=21), device)
    x = arguments["x"].requires_grad_()

    def layer(x: Tensor) -> Tensor:
        return lora_linear(x, *(arguments[name] for name in ("weight", "bias", "A", "B", "scale")))

    y = checkpoint(layer, x, use_reentrant=False)
    with Writes(x.shape[0]) as backward:
        y.backward(grad)
    assert grad.shape[1] not in backward.widths, "x Wᵀ is as wide as y"


def test_under_autocast_x_is_cast_and_the_weight_is_not(device: torch.device) -> None:
    arguments, _ = make(Case("autocast", dtype=torch.bfloat16, adapter=torch.float32), device)
    with pytest.raises(
        ValueError, match="x is .* float32 .*; expected the dtype of weight .* bfloat16 .*, or autocast"
    ):
        lora_linear(**arguments | {"x": arguments["x"].float()})
    with torch.autocast(device.type, torch.bfloat16):
        found = lora_linear(**arguments | {"x": arguments["x"].float()})
    assert torch.equal(found, lora_linear(**arguments))


def test_what_is_written_and_kept(device: torch.device) -> None:
    """Forward 2·O + r a row, where peft's layer writes the product, the adapter's, the scaled one, their sum and r.
    Backward 2·I + r. Kept: x itself and r numbers a row."""
    rows, inputs, outputs, rank = 50, 40, 64, 4
    case = Case(
        "writes", shape=(rows,), inputs=inputs, outputs=outputs, rank=rank, dtype=torch.bfloat16, adapter=torch.float32
    )
    arguments, grad = make(case, device)
    with Writes(rows) as forward:
        lora_linear(**arguments)
    assert sum(forward.numbers.values()) == 2 * outputs + rank
    arguments["x"].requires_grad_()
    y = lora_linear(**arguments)
    with Writes(rows) as backward:
        y.backward(grad)
    assert sum(backward.numbers.values()) == 2 * inputs + rank

    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for name in TRAINED:
        arguments[name].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lora_linear(**arguments)
    known = {value.untyped_storage().data_ptr() for value in arguments.values() if isinstance(value, Tensor)}
    own = [tensor for pointer, tensor in kept.items() if pointer not in known]
    assert [tuple(tensor.shape) for tensor in own] == [(rows, rank)]


X, W, A, B = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(2, 4), torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:, :3]}, r"x is \(3, 3\) float32 on cpu; expected \(\.\.\., 4\)"),
        ({"x": X.long()}, r"x is \(3, 4\) int64"),
        ({"x": X.bfloat16()}, "expected the dtype of weight"),
        ({"weight": torch.nn.Linear(4, 5)}, "weight is a torch.nn.modules.linear.Linear; expected a tensor"),
        ({"weight": W[0]}, r"weight is \(4,\) float32"),
        ({"weight": W.clone().requires_grad_()}, r"weight wants a gradient; expected a frozen layer"),
        ({"bias": torch.zeros(5).requires_grad_()}, "bias wants a gradient"),
        ({"bias": torch.zeros(4)}, "bias is .*; expected 5 entries"),
        ({"A": A.t()}, r"A is \(4, 2\) .*; expected \(r, 4\) and \(5, r\)"),
        ({"B": B[:4]}, r"B \(4, 2\) "),
        ({"A": A.half()}, "A is .* float16"),
        ({"A": A.to("meta")}, "different devices"),
        ({"scale": float("nan")}, "scale is nan; expected a finite number"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"x": X, "weight": W, "bias": None, "A": A, "B": B, "scale": 1.0}
    for function in (lora_linear, reference.lora_linear):
        with pytest.raises(ValueError, match=message):
            function(**arguments | change)


def test_second_derivatives_are_refused_and_those_of_the_reference_right(device: torch.device) -> None:
    arguments, _ = make(Case("twice"), device)
    arguments["A"].requires_grad_()  # without which the gradient in x is a constant
    x = arguments.pop("x").requires_grad_()
    (first,) = torch.autograd.grad(lora_linear(x, **arguments).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="lora_linear was differentiated twice"):
        first.sum().backward()


def three(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[LoraLayer], list[Tensor]]:
    """Layers of other widths and ranks on one input, and a gradient from above for each."""
    found = [
        make(Case("three", outputs=outputs, rank=rank, dtype=dtype, bias=outputs == 9, scale=scale), device)
        for outputs, rank, scale in ((21, 4, 2.0), (9, 2, 0.5), (13, 4, 1.0))
    ]
    layers = [LoraLayer(*(arguments[name] for name in LoraLayer._fields)) for arguments, _ in found]
    return found[0][0]["x"], layers, [grad for _, grad in found]


def values_and_grads(function: Any, x: Tensor, layers: list[LoraLayer], grads: list[Tensor | None]) -> list[Tensor]:
    """Each y, then the gradients of x and of each A and B that has one."""
    x = x.clone().requires_grad_()
    layers = [
        layer._replace(A=layer.A.clone().requires_grad_(), B=layer.B.clone().requires_grad_()) for layer in layers
    ]
    values = function(x, layers)
    torch.autograd.backward(
        [value for value, grad in zip(values, grads, strict=True) if grad is not None],
        [g for g in grads if g is not None],
    )
    leaves = [x, *(tensor for layer in layers for tensor in (layer.A, layer.B))]
    return [*(value.detach() for value in values), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def one_by_one(x: Tensor, layers: list[LoraLayer]) -> list[Tensor]:
    return [reference.lora_linear(x, *layer) for layer in layers]


@pytest.mark.parametrize(("scale", "size"), [(1 / 64, 4000.0), (64.0, 2e-6)])
def test_in_float16_the_scale_comes_first(scale: float, size: float, device: torch.device) -> None:
    """dy·B alone would be infinite, or next to nothing."""
    case = Case("scaled", dtype=torch.float16, adapter=torch.float32, scale=scale)
    arguments, grad = make(case, device)
    grad = (grad.sign() * size).half()
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    truth = value_and_grads(reference.lora_linear, case, wide, grad)
    found = value_and_grads(lora_linear, case, arguments, grad)
    assert (found["A"] - truth["A"]).norm() < 0.02 * truth["A"].norm()


@pytest.mark.parametrize(
    ("trained", "kept"), [(("x",), []), (("A",), ["x"]), (("B",), ["h"]), (("A", "B"), ["x", "h"])]
)
def test_only_what_a_gradient_needs_is_kept(trained: tuple[str, ...], kept: list[str], device: torch.device) -> None:
    arguments, _ = make(Case("kept", trained=trained), device)
    for name in trained:
        arguments[name].requires_grad_()
    shapes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        lora_linear(**arguments)
    rows = {"x": tuple(arguments["x"].shape), "h": (7, 4)}
    assert [name for name, shape in rows.items() if shape in shapes] == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_layers_as_exact_as_one_by_one(dtype: torch.dtype, device: torch.device) -> None:
    x, layers, grads = three(device, dtype)
    wide = [LoraLayer(*(v.double() if isinstance(v, Tensor) else v for v in layer)) for layer in layers]
    truth = values_and_grads(one_by_one, x.double(), wide, [grad.double() for grad in grads])
    plain = values_and_grads(one_by_one, x, layers, grads)
    for index, value in enumerate(values_and_grads(lora_linears, x, layers, grads)):
        assert_as_exact_as_torch(value, truth=truth[index], torch_value=plain[index], what=str(index))


def test_several_layers_of_which_one_is_not_read(device: torch.device) -> None:
    x, layers, grads = three(device)
    found = values_and_grads(lora_linears, x, layers, [grads[0], None, grads[2]])
    expected = values_and_grads(one_by_one, x, layers, [grads[0], None, grads[2]])
    assert len(found) == len(expected) == 3 + 1 + 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_several_layers_read_their_input_once_for_their_adapters(device: torch.device) -> None:
    x, layers, grads = three(device)
    reads: list[str] = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "mm" in str(func) and any(isinstance(a, Tensor) and a.data_ptr() == x.data_ptr() for a in args):
                reads.append(str(func))
            elif "add.Tensor" in str(func):
                reads.append("a sum of gradients")
            return func(*args, **(kwargs or {}))

    x.requires_grad_()
    layers = [layer._replace(A=layer.A.requires_grad_(), B=layer.B.requires_grad_()) for layer in layers]
    with Reads():
        values = lora_linears(x, layers)
    assert len(reads) == 1 + len(layers), reads  # all A, and each weight
    reads.clear()
    with Reads():
        torch.autograd.backward(values, grads)
    assert len(reads) == 1, reads


@pytest.mark.slow
def test_several_layers_in_one_graph(device: torch.device) -> None:
    x, layers, grads = three(device)
    compiled = torch.compile(lora_linears, backend="aot_eager", fullgraph=True, dynamic=True)
    expected = values_and_grads(lora_linears, x, layers, grads)
    for found, value in zip(values_and_grads(compiled, x, layers, grads), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_several_layers_that_do_not_fit_are_refused(device: torch.device) -> None:
    x, layers, _ = three(device)
    for odd in ([], None, [tuple(layers[0])], torch.nn.Linear(2, 2), iter(layers)):
        with pytest.raises(ValueError, match="layers is .*; expected at least one LoraLayer"):
            lora_linears(x, odd)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="layers have weights of float32, float64; expected one dtype"):
        lora_linears(x, [layers[0], layers[1]._replace(weight=layers[1].weight.double())])
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 32\)"):
        lora_linears(x, [layers[0], layers[1]._replace(weight=layers[1].weight[:, 1:])])
