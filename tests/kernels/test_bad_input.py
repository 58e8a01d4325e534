"""What does not fit is refused with a ValueError that names the argument, what came and what was expected."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from mdpo_kernels import (
    Segments,
    Term,
    fused_linear_mdpo_loss,
    fused_linear_preference_loss,
    fused_mdpo_loss,
    linear_token_logps,
    lora_linear,
    mdpo_loss,
    preference_loss,
    sequence_logps,
    token_logps,
    varlen_attention,
)

LOGITS, TARGETS = torch.zeros(3, 10), torch.tensor([0, 9, -100])
HIDDEN, WEIGHT = torch.zeros(3, 4), torch.zeros(10, 4)
# 10³⁹ is infinite in float32, 1e-46 is 0.
NO_POSITIVE_NUMBER = (float("inf"), float("-inf"), float("nan"), 10**39, 1e-46, 0.0, -3.0, "1", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": LOGITS[0]}, r"logits is \(10,\) float32 on cpu; expected a \(N, V\) tensor of float32, bfloat16"),
        ({"logits": LOGITS.long()}, r"logits is \(3, 10\) int64"),
        ({"logits": LOGITS.numpy()}, "logits is a numpy.ndarray"),
        ({"targets": TARGETS[:2]}, r"targets is \(2,\) int64 on cpu; expected 3 entries, one for each row"),
        ({"targets": TARGETS.float()}, r"targets is \(3,\) float32 on cpu; expected a \(N,\) tensor of int64, int32"),
        ({"targets": TARGETS.to("meta")}, "expected one: logits on cpu, targets on meta"),
        ({"targets": TARGETS + 1}, "targets holds a value outside 0 to 9 that is not ignore_index -100"),
        ({"targets": TARGETS - 1}, "targets holds a value outside 0 to 9"),
        ({"ignore_index": -1}, "that is not ignore_index -1"),
        ({"logits": torch.zeros(2, 3, 10)}, r"logits is \(2, 3, 10\) .*: logits.flatten\(0, 1\)"),
        ({"logits": LOGITS[:, :0]}, r"logits is \(3, 0\) .*; expected at least one column"),
        ({"targets": TARGETS.tolist()}, r"targets is a builtins.list; expected a \(N,\) tensor"),
        ({"targets": TARGETS[None]}, r"targets is \(1, 3\) .*: targets.flatten\(0, 1\)"),
        ({"targets": torch.tensor([0, 10, 1], dtype=torch.int32)}, "targets holds a value outside 0 to 9"),
        *(({"ignore_index": x}, rf"ignore_index is {x}; expected a whole number") for x in (None, -100.0, 2**63)),
        *(
            ({"softcap": x}, rf"softcap is {x!r}; expected a finite number above 0 in float32, or None")
            for x in NO_POSITIVE_NUMBER
        ),
        *(({"scale": x}, rf"scale is {x!r}; expected a finite number above 0") for x in (*NO_POSITIVE_NUMBER, None)),
    ],
)
def test_token_logps(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logits": LOGITS, "targets": TARGETS} | change
    with pytest.raises(ValueError, match=message):
        token_logps(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": HIDDEN[None]}, r"hidden is \(1, 3, 4\) float32 on cpu; expected a \(N, H\) tensor"),
        ({"hidden": HIDDEN[:, :3]}, r"hidden is \(3, 3\) .*; expected 4 columns as in weight \(10, 4\)"),
        ({"hidden": HIDDEN.bfloat16()}, r"hidden is .* bfloat16 .*; expected the dtype of weight .*, or autocast"),
        ({"weight": WEIGHT.to(torch.int8)}, r"weight is \(10, 4\) int8"),
        ({"weight": nn.Linear(4, 10)}, r"weight is a torch.nn.modules.linear.Linear; .* pass the layer's .weight"),
        ({"weight": WEIGHT.to("meta")}, "weight on meta"),
        ({"bias": torch.zeros(9)}, r"bias is \(9,\) float32 on cpu; expected 10 entries"),
        ({"targets": TARGETS + 1}, "targets holds a value outside 0 to 9"),
        ({"weight": WEIGHT[:0]}, r"weight is \(0, 4\) .*; expected at least one row"),
        ({"hidden": HIDDEN[:, :0], "weight": WEIGHT[:, :0]}, r"hidden is \(3, 0\) .*; expected at least one column"),
        ({"hidden": HIDDEN[None]}, r": hidden.flatten\(0, 1\)"),
        ({"targets": TARGETS.tolist()}, "targets is a builtins.list"),
        ({"bias": [0.0] * 10}, "bias is a builtins.list"),
        *(
            ({"max_workspace_bytes": x}, rf"max_workspace_bytes is {x!r}; expected a whole number, at least 1024")
            for x in (1000, 0, -1, 2.0**20, float("inf"), True)
        ),
        *(({"softcap": x}, rf"softcap is {x!r}") for x in NO_POSITIVE_NUMBER),
        *(({"scale": x}, rf"scale is {x!r}") for x in (*NO_POSITIVE_NUMBER, None)),
    ],
)
def test_linear_token_logps(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS} | change
    with pytest.raises(ValueError, match=message):
        linear_token_logps(**arguments)


B, CU_SEQLENS = 1, torch.arange(4)
ATTENDED = torch.zeros(3, 2, 8)
OBJECTIVE: dict[str, Any] = {"terms": [Term("t", {"a": 1, "b": -1})], "branches": ("a", "b")}
OPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "token_logps": (token_logps, {"logits": LOGITS, "targets": TARGETS}),
    "linear_token_logps": (
        linear_token_logps, {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS, "bias": torch.zeros(10)},
    ),
    "sequence_logps": (sequence_logps, {"token_logps": torch.zeros(3), "cu_seqlens": CU_SEQLENS}),
    "mdpo_loss": (mdpo_loss, {"policy": torch.zeros(3, B), "reference": torch.zeros(3, B)}),
    "fused_mdpo_loss": (
        fused_mdpo_loss,
        {"logits": LOGITS, "targets": TARGETS, "cu_seqlens": CU_SEQLENS, "reference": torch.zeros(3, B)},
    ),
    "fused_linear_mdpo_loss": (
        fused_linear_mdpo_loss,
        {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS, "cu_seqlens": CU_SEQLENS,
            "reference": torch.zeros(3, B)},
    ),
    "preference_loss": (
        preference_loss,
        {"policy": torch.zeros(2, 1), "reference": torch.zeros(2, 1), "beta": torch.ones(1), **OBJECTIVE},
    ),
    "fused_linear_preference_loss": (
        fused_linear_preference_loss,
        {"hidden": HIDDEN[:2], "weight": WEIGHT, "targets": TARGETS[:2], "cu_seqlens": CU_SEQLENS[:3],
         "reference": torch.zeros(2, 1), **OBJECTIVE},
    ),
    "varlen_attention": (
        varlen_attention,
        {"query": ATTENDED, "key": ATTENDED, "value": ATTENDED, "segments": Segments.build([(0, 3)], [[(0, 3)]])},
    ),
    "lora_linear": (
        lora_linear,
        {"x": HIDDEN, "weight": WEIGHT, "bias": torch.zeros(10), "A": torch.zeros(2, 4), "B": torch.zeros(10, 2),
            "scale": 2.0},
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize(
    ("op", "argument"),
    [(op, name) for op, (_, given) in OPS.items() for name in given if isinstance(given[name], torch.Tensor)],
)


def nested(tensor: torch.Tensor, layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([tensor] if tensor.dim() == 1 else list(tensor), layout=layout)


@EACH
@pytest.mark.filterwarnings("ignore")  # PyTorch calls sparse and nested tensors beta
def test_tensors_that_are_not_dense(op: str, argument: str) -> None:
    function, given = OPS[op]
    tensor = given[argument]
    odd = {"sparse_coo": tensor.to_sparse(), "a nested tensor": nested(tensor, torch.strided)}
    if tensor.dim() == 2:
        odd["sparse_csr"] = tensor.to_sparse_csr()
    if tensor.dim() > 1:
        odd["a nested tensor of"] = nested(tensor, torch.jagged)
    for said, value in odd.items():
        with pytest.raises(ValueError, match=f"^{argument} is .*{said}.*; expected a dense tensor$"):
            function(**given | {argument: value})


@EACH
def test_tensors_of_other_numbers(op: str, argument: str) -> None:
    function, given = OPS[op]
    tensor = given[argument].float()
    for value in (tensor.to(torch.complex64), tensor.to(torch.float8_e4m3fn), tensor.bool()):
        with pytest.raises(ValueError, match=rf"^{argument} is .* {str(value.dtype).removeprefix('torch.')} on cpu"):
            function(**given | {argument: value})


@pytest.mark.parametrize("op", OPS)
def test_on_the_meta_device_all_ops_give_shapes(op: str) -> None:
    function, given = OPS[op]
    on_meta = {name: value.to("meta") if hasattr(value, "to") else value for name, value in given.items()}
    found, expected = function(**on_meta), function(**given)
    for one, other in [(found, expected)] if isinstance(found, torch.Tensor) else [(found.losses, expected.losses)]:
        assert one.is_meta and one.shape == other.shape and one.dtype == other.dtype


def test_a_layer_without_columns() -> None:
    x, A = torch.zeros(3, 0), torch.zeros(2, 0)
    with pytest.raises(ValueError, match=r"^weight is \(10, 0\) float32 on cpu; expected at least one column$"):
        lora_linear(x, torch.zeros(10, 0), None, A, torch.zeros(10, 2), 1.0)


def test_a_workspace_beyond_any_memory_is_no_bound() -> None:
    expected = linear_token_logps(HIDDEN, WEIGHT, TARGETS)
    assert torch.equal(linear_token_logps(HIDDEN, WEIGHT, TARGETS, max_workspace_bytes=10**30), expected)


def test_a_head_wrapped_by_an_adapter_is_refused_with_the_remedy() -> None:
    wrapped: Any = nn.Module()
    wrapped.base_layer = nn.Linear(4, 10)  # what tells PEFT's layers from others
    with pytest.raises(ValueError, match="wrapped by an adapter.*merge_and_unload"):
        linear_token_logps(HIDDEN, wrapped, TARGETS)


@pytest.mark.slow
def test_without_triton_the_package_imports_and_computes() -> None:
    """There are no Triton wheels for macOS and Windows; what runs there is the reference."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, mdpo_kernels as k\n"
        "print(k.token_logps(torch.zeros(1, 4), torch.tensor([2])).exp().item(), k.backend._why_not)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("0.25") and "Triton cannot be imported" in done.stdout
