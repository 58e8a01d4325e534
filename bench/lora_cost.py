"""What peft's LoRA layers add to a frozen linear layer: `python -m bench.lora_cost`, on a CPU, counted, not timed.

A linear layer with a LoRA of rank 64 on it runs forward and backward on a CPU, its shape a real one's divided by SCALE
(bytes per token scale with the width, so they are printed multiplied back). Counted per token: bytes written by casts
(`_to_copy`) and by the other operators that make a whole (tokens, width) tensor, and bytes kept for the backward.

What it shows (bf16 base, fp32 adapter, the shapes of LLaVA-1.5-7B):

- Without autocast peft casts the input up to fp32, and the adapter's products run in fp32: each layer keeps its own
  fp32 copy of its input, though query, key and value read the same.
- Under bf16 autocast peft still casts the input up to fp32, and autocast casts it down again before the product. Each
  layer keeps a bf16 copy of its own.
- Under autocast with peft's cast switched off (`peft.helpers.disable_input_dtype_casting`) neither cast is there and
  what is kept is the input itself, which the layers that read it share. The values are the same, bit for bit, since
  bf16 → fp32 → bf16 loses nothing. The trainer does this during a step.

What is left, and no configuration removes: the base product, the adapter's, the scaled one and their sum are four
tensors of the layer's output where a fused kernel would write one; the cast of A and B to bf16 once a forward, kept as
long as their graph (2 bytes a parameter); in 4 bits, peft's defensive clone of the base's output (one more).
"""

import argparse
from collections import Counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

TOKENS = 64
RANK = 64
SCALE = 8
SHAPES = {"q, k, v of 4096": (4096, 4096, 3), "gate, up of 11008": (4096, 11008, 2), "down of 11008": (11008, 4096, 1)}
SETTINGS = ("no autocast", "autocast", "autocast, no cast")


class Writes(TorchDispatchMode):
    """Bytes that operators write into new tensors of at least a row a token, casts apart from the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() == 2 and out.shape[0] == TOKENS and not func.is_view:
            self.bytes["casts" if "_to_copy" in str(func) else "other"] += out.nbytes
        return out


class Projections(nn.Module):
    """Linear layers that read one input."""

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(count))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


def count(inputs: int, outputs: int, layers: int, setting: str) -> dict[str, float]:
    """Bytes per token of one group of layers, forward: casts, other writes, and what is kept for the backward."""
    torch.manual_seed(0)
    base = Projections(inputs // SCALE, outputs // SCALE, layers).to(torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=RANK // SCALE, target_modules=r"layers\.\d+"))
    x = torch.randn(TOKENS, inputs // SCALE, dtype=torch.bfloat16, requires_grad=True)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[0] == TOKENS and tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    writes = Writes()
    with (
        disable_input_dtype_casting(model, active=setting == "autocast, no cast"),
        torch.autocast("cpu", torch.bfloat16, enabled=setting != "no autocast"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        writes,
    ):
        model(x)
    scale = SCALE / TOKENS
    return {
        "casts": writes.bytes["casts"] * scale,
        "other": writes.bytes["other"] * scale,
        "kept": sum(tensor.nbytes for tensor in kept.values()) * scale,
    }


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'KB per token, forward':24}{'setting':20}{'casts':>8}{'other':>8}{'kept':>8}")
    for name, (inputs, outputs, layers) in SHAPES.items():
        for setting in SETTINGS:
            found = count(inputs, outputs, layers, setting)
            print(f"{name:24}{setting:20}" + "".join(f"{found[key] / 1e3:8.1f}" for key in ("casts", "other", "kept")))


if __name__ == "__main__":
    main()
