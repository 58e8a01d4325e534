"""linear_token_logps' cases, each with its reason, and what plain PyTorch says to them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    seed: int = 0


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
    generator = torch.Generator().manual_seed(case.seed)
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
