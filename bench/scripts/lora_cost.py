"""What the LoRAs of a decoder layer write, move and keep: `python -m bench.scripts.lora_cost`, counted on a CPU,
not timed.

All linear layers of one decoder layer, each with a LoRA of rank 64, run forward and backward at a real model's widths
divided by SCALE; bytes per token grow with the widths, so they are printed multiplied back. Counted are tensors with a
row per token, in bytes per token: those that operators write, new ones and old ones once more where an operator writes
in place; those written and read together, which is what a GPU's time goes by; and those kept for the backward. The
products of the frozen base are counted apart, and so is nothing of a decoder layer that is not linear (attention,
norms, activations).

What a CPU does and a GPU does not is left out: copies in float32 before the products that sum in float32.

The ways: peft's layers as they come, under bf16 autocast; with peft's cast of the inputs up to float32 switched off
(`peft.helpers.disable_input_dtype_casting`), as the trainer does for the length of a step, bit for bit the same values;
and `mdpo_kernels.lora_linear` by `mdpo.models.fuse_lora`. Phi's LayerNorm leaves float32 under CUDA's autocast, which
every reader casts down: a way of its own, which `mdpo.models.norms` takes away. Unsloth's is not installed here:
bench/scripts/lora_peers.py counts it by hand.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.scripts.lora_layers import LAYERS, RANK, Cost, Readers
from bench.scripts.lora_peers import unsloth
from mdpo.models import fuse_lora
from mdpo.models.shared_input import share_among_children

TOKENS = 61  # a prime, and no width
SCALE = 8
BYTES_PER_SECOND = 2.8e12  # of an H100's memory, as bench/LOG.md counts
MICRO_BATCH = 11_600  # tokens: seven pairs


@dataclass(frozen=True, slots=True)
class Way:
    """wrap: what becomes of the adapter's config. float32_sums: of the gradients of A and B. cast_inputs: whether peft
    does.
    norm: the dtype of an input that a norm puts out. shares: whether layers that read one input are computed together.
    """

    name: str
    wrap: Callable[[LoraConfig], LoraConfig] = lambda config: config
    float32_sums: bool = False
    cast_inputs: bool = False
    norm: torch.dtype = torch.bfloat16
    shares: bool = False


AS_IT_COMES = Way("peft, as it comes", cast_inputs=True)
FLOAT32_NORM = Way("peft, casts off, LayerNorm in float32", norm=torch.float32)
PEFT = Way("peft, casts off")
FUSED = Way("fused, one by one", wrap=fuse_lora, float32_sums=True)
OURS = Way("fused", wrap=fuse_lora, float32_sums=True, shares=True)


class Traffic(TorchDispatchMode):
    """Bytes that operators write and read of tensors with a row per token; those of products with a base weight apart.

    float32_sums: copies in float32 do not count, and are read as what they are copies of: a CPU makes them before a
    product that sums in float32.
    """

    def __init__(self, base: Iterable[Tensor], *, float32_sums: bool = False) -> None:
        super().__init__()
        self.written, self.read, self.base_written = 0, 0, 0
        self._base = {_storage(weight) for weight in base}
        self._float32_sums = float32_sums
        self._copies: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {_storage(leaf) for leaf in _tensors((args, kwargs))}
        is_view = not func._schema.is_mutable and all(_storage(leaf) in given for leaf in _tensors(out))
        if is_view or "empty" in func.name():
            return out
        if self._float32_sums and func.name() in ("aten::to.dtype", "aten::_to_copy") and out.dtype == torch.float32:
            self._copies.append(out)
            return out
        if given & self._base:
            self.base_written += self._bytes(out)
        else:
            self.written += self._bytes(out)
            self.read += self._bytes((args, kwargs))
        return out

    @property
    def cost(self) -> Cost:
        return Cost(written=self.written, moved=self.written + self.read)

    def _bytes(self, tree: Any) -> int:
        copies = {_storage(copy) for copy in self._copies}
        counted = [leaf for leaf in _tensors(tree) if TOKENS in leaf.shape]
        return sum(2 * leaf.numel() if _storage(leaf) in copies else leaf.nbytes for leaf in counted)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Projections(nn.Module):
    """Linear layers that read one input."""

    def __init__(self, readers: Readers) -> None:
        super().__init__()
        inputs = readers.inputs // SCALE
        layers = {
            f"{name}_proj": nn.Linear(inputs, outputs // SCALE, readers.bias)
            for name, outputs in readers.outputs.items()
        }
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers.values()]


def count(readers: Readers, way: Way) -> tuple[Cost, Cost]:
    """Forward and backward of the layers that read one input."""
    torch.manual_seed(0)
    base = Projections(readers).to(torch.bfloat16)
    weights = list(base.parameters())
    model = get_peft_model(base, way.wrap(LoraConfig(r=RANK // SCALE, target_modules=r"layers\.\w+")))
    if way.shares:
        share_among_children(base.layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x = torch.randn(
        TOKENS, readers.inputs // SCALE, dtype=way.norm, requires_grad=True
    ).clone()  # a leaf's cast is cached
    known = {_storage(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if TOKENS in tensor.shape and _storage(tensor) not in known:
            kept[_storage(tensor)] = tensor
        return tensor

    with (
        disable_input_dtype_casting(model, active=not way.cast_inputs),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        Traffic(weights) as forward,
    ):
        outputs = model(x)
    upstream = [torch.randn_like(output) for output in outputs]
    with Traffic(weights, float32_sums=way.float32_sums) as backward:
        torch.autograd.grad(outputs, [x, *trained], upstream)
    scale = SCALE / TOKENS
    held = sum(tensor.nbytes for tensor in kept.values())
    return forward.cost.times(scale) + Cost(kept=held * scale), backward.cost.times(scale)


def layer_cost(model: str, way: Way) -> tuple[Cost, Cost]:
    """Forward and backward of all linear layers of one decoder layer."""
    forward, backward = Cost(), Cost()
    for number, readers in enumerate(LAYERS[model]):
        # Phi has one norm, before all else; what attention and activations put out is bf16 in any case.
        found = count(readers, way if number == 0 else replace(way, norm=torch.bfloat16))
        forward, backward = forward + found[0], backward + found[1]
    return forward, backward


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    names = ("writes", "moves", "keeps", "writes", "moves")
    print(f"{'KB per token and decoder layer':44}{'forward':^24}{'backward':^16}{'H100, predicted':>20}")
    print(f"{'':44}" + "".join(f"{name:>8}" for name in names) + f"{'ms a layer':>20}")
    for model in LAYERS:
        ways = [AS_IT_COMES, *([FLOAT32_NORM] if model == "Bunny-3B" else []), PEFT, FUSED, OURS]
        rows = {way.name: layer_cost(model, way) for way in ways} | unsloth(LAYERS[model])
        for name, (forward, backward) in rows.items():
            numbers = (forward.written, forward.moved, forward.kept, backward.written, backward.moved)
            seconds = (forward.moved + backward.moved) * MICRO_BATCH / BYTES_PER_SECOND
            cells = "".join(f"{number / 1e3:8.1f}" for number in numbers)
            print(f"{f'{model}, {name}':44}{cells}{1e3 * seconds:20.2f}")
    print(f"predicted: bytes moved by {MICRO_BATCH:,} tokens at {BYTES_PER_SECOND / 1e12} TB/s; not measured on a GPU")


if __name__ == "__main__":
    main()
