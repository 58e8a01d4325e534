"""What the layers of any model keep for their backward: counted, by running each kind of layer on tensors without data.

Layers that ``layer`` has an equation for need none of this. Here a layer's own forward and backward run under PyTorch's
``FakeTensorMode``: shapes, dtypes and what autograd saves are the real ones, and no number is computed. Four runs give
bytes as a function of the tokens, with a part that grows with the square of a sequence, as a mask does.

Attention saves what a fused kernel does on a GPU: query, key, value, output, the logarithms of its sums and, where the
model needs a mask, the mask as the kernel adds it. A model without such a kernel is counted with its own.
"""

import copy
import weakref
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForImageTextToText, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv

from mdpo.errors import InputError
from mdpo.models import fuse_lora, language_layers, share_inputs
from mdpo.models.logps import unwrap

from .live import LiveMemory
from .precision import Precision

# Shapes: S sequences, L tokens of each, T = S·L, D head size

# The attention's name with transformers, by whether it needs a mask.
_NAMES = {False: "mdpo_counted", True: "mdpo_counted_masked"}
# Tokens of the shorter sequences in the four runs: enough for what does not grow with them to be small; fewer where
# PyTorch's linear attention walks through a sequence, 64 at a time.
_SHORT, _SHORT_LINEAR = 1024, 128
_GROUPED = torch.ops.aten._grouped_mm.default
_CAST = torch.ops.aten._to_copy.default


class Bytes(NamedTuple):
    """fixed + per_token·T + per_place·L + per_square·T·L."""

    fixed: float = 0.0
    per_token: float = 0.0
    per_place: float = 0.0
    per_square: float = 0.0

    def of(self, tokens: int, longest: int) -> float:
        """Of sequences of ``longest`` tokens, ``tokens`` in all."""
        return self.fixed + tokens * (self.per_token + longest * self.per_square) + longest * self.per_place


class LayerBytes(NamedTuple):
    """kept: from a layer's forward to its backward.

    in_flight: at the fullest of its backward, on top of what was kept.
    """

    kept: Bytes
    in_flight: Bytes


class Counted(NamedTuple):
    """layers: each of the model's, in order. shared: what all of them read, such as masks and rotary positions."""

    layers: tuple[LayerBytes, ...]
    shared: Bytes


class Unplanned(InputError):
    """A model whose memory the arithmetic does not know."""


class CountedLayers:
    """The layers of the language model that ``config`` describes.

    rank: of a LoRA on what ``pattern`` matches; 0 where the layers themselves train. masked: whether sequences of
    different lengths stand beside each other, so that the attention needs a mask.
    """

    def __init__(self, config: PreTrainedConfig, *, rank: int, pattern: str, masked: bool) -> None:
        self.config = copy.deepcopy(config)  # the model made of it gets another attention
        self.rank = rank
        self.pattern = pattern
        self.masked = masked
        self._found: dict[Precision, Counted] = {}

    @cached_property
    def trained(self) -> int:
        """Parameters of the adapter, as peft makes it: of some mixtures it adapts the experts' stacks too."""
        model = _without_data(self.config, Precision(weight_bytes=4, autocast=False), self.rank, self.pattern)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def by(self, precision: Precision) -> Counted:
        """Counted in these numbers, once. Raises Unplanned where a forward depends on the numbers in its tensors."""
        if precision not in self._found:
            model = _without_data(self.config, precision, self.rank, self.pattern)
            self._found[precision] = _counted(model, self.config.model_type, precision, self.masked)
        return self._found[precision]


def _counted(model: nn.Module, kind: str, precision: Precision, masked: bool) -> Counted:
    linear = "linear_attention" in (getattr(unwrap(model).config.get_text_config(), "layer_types", None) or ())
    short = _SHORT_LINEAR if linear else _SHORT
    sizes = [(1, short), (2, short), (1, 2 * short), (2, 2 * short)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = _decoder(model)
        decoder.to_empty(device="cpu")
        for parameter in decoder.parameters():
            if parameter.requires_grad:  # gradients are there from the first micro-batch on
                parameter.grad = torch.empty_like(parameter)
        try:
            runs = [_run(decoder, model, sequences, tokens, precision, masked) for sequences, tokens in sizes]
        except Exception as error:  # of whatever a model's own code raises where it finds no numbers
            raise Unplanned(
                f"model_name_or_path: the memory of a {kind!r} model cannot be planned, since its layers do not "
                f"run without numbers ({type(error).__name__}); set token_budget and gradient_checkpointing by hand"
            ) from error
    layers = tuple(
        LayerBytes(*(_fitted(sizes, [run.layers[at][part] for run in runs]) for part in range(2)))
        for at in range(len(runs[0].layers))
    )
    return Counted(layers, _fitted(sizes, [run.shared for run in runs]))


class _Run(NamedTuple):
    layers: list[tuple[int, int]]
    shared: int


def _fitted(sizes: list[tuple[int, int]], counts: list[int]) -> Bytes:
    """Through the counts of four runs. sizes: their sequences and tokens."""
    terms = [(1, sequences * tokens, tokens, sequences * tokens**2) for sequences, tokens in sizes]
    return Bytes(*np.linalg.solve(np.array(terms, float), np.array(counts, float)).tolist())


def _without_data(config: PreTrainedConfig, precision: Precision, rank: int, pattern: str) -> nn.Module:
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    model.to(torch.float32 if precision.weight_bytes == 4 else torch.bfloat16)
    if not rank:
        return model
    lora = fuse_lora(LoraConfig(r=rank, target_modules=pattern))
    model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    share_inputs(model)
    return model


def _decoder(model: nn.Module) -> Any:
    """What has the layers, without a head."""
    decoder: Any = unwrap(model).get_decoder()
    return decoder if hasattr(decoder, "layers") else decoder.model


def _run(decoder: Any, model: nn.Module, sequences: int, tokens: int, precision: Precision, masked: bool) -> _Run:
    """One forward of the decoder, in which each kind of layer also runs with its backward."""
    if decoder.config._attn_implementation != "eager":
        decoder.set_attn_implementation(_NAMES[masked])
    counts: list[tuple[int, int]] = []
    shared: dict[int, int] = {}
    held: list[Tensor] = []  # so that no other storage gets the name of one that is shared
    known: dict[Any, tuple[int, int]] = {}

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = [leaf for leaf in tree_leaves((args[1:], kwargs)) if isinstance(leaf, Tensor)]
        read = [tensor for tensor in read if tensor is not kwargs.get("hidden_states")]
        held.extend(read)
        shared.update({_storage(tensor): tensor.untyped_storage().nbytes() for tensor in read})
        names = tuple((name, p.shape, p.requires_grad) for name, p in layer.named_parameters())
        kind = (type(layer), names, tuple(tensor.shape for tensor in read))
        if kind not in known:
            known[kind] = _count(layer, args, kwargs, read)
        counts.append(known[kind])

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in language_layers(model)]
    ids = torch.zeros(sequences, tokens, dtype=torch.long)
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision.autocast), _Grouped():
            decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return _Run(counts, sum(shared.values()))


def _count(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], read: list[Tensor]) -> tuple[int, int]:
    """Bytes that the layer keeps, and those in flight in its backward. read: what other layers keep as well."""
    weights = {_storage(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
    outside = weights | {_storage(tensor) for tensor in read}
    hidden = torch.empty_like(args[0] if args else kwargs["hidden_states"]).requires_grad_()
    args, kwargs = ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> _Kept:
        found = _Kept(tensor)
        kept.add(found)
        return found

    with _LayerMemory(weights) as memory, torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(keep, attrgetter("tensor")):
            out = layer.forward(*args, **kwargs)
        out = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        # Those that are still there: what a branch kept that leads nowhere has gone with it, and its storage's name to
        # another.
        saved = {_storage(each.tensor): each.tensor.untyped_storage().nbytes() for each in kept}
        saved = {name: count for name, count in saved.items() if name not in outside | memory.casts}
        before = memory.peak = memory.live
        with torch.autocast("cpu", enabled=False):
            torch.autograd.backward(out, torch.empty_like(out))
    return sum(saved.values()), memory.peak - before


class _Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Grouped(TorchDispatchMode):
    """The shape of a product by experts for any dtype: PyTorch's own shape rule takes bfloat16 alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not _GROUPED:
            return func(*args, **(kwargs or {}))
        first, second, bounds = args[:3]
        groups = bounds.shape if second.dim() == 2 else ()  # the gradient of the experts' weights, each of its own rows
        return first.new_empty(*groups, first.shape[0], second.shape[-1])


class _LayerMemory(LiveMemory):
    """Without the weights' casts, which one layer's share of a model's is counted for elsewhere."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.casts: set[int] = set()
        self._weights = weights
        self._held: list[Tensor] = []  # so that no other storage gets a cast's name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _CAST and _storage(args[0]) in self._weights:
            cast = func(*args, **(kwargs or {}))
            self.casts.add(_storage(cast))
            self._held.append(cast)
            return cast
        return super().__torch_dispatch__(func, types, args, kwargs)


class _Attention(torch.autograd.Function):
    """What a fused kernel saves: query (S, heads, L, D), key and value, its output and a logarithm a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        sequences, heads, tokens, _ = query.shape
        # Without a mask a packed row's kernel writes the heads beside each other. With one they lie as the query's do,
        # and are copied once more where those do not lie so.
        out = query.new_empty(sequences, tokens, heads, value.shape[-1]).transpose(1, 2)
        if bias is not None and out.shape == query.shape:
            out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, bias, out, out.new_empty(out.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers calls an attention. kwargs: the interface's other options, which keep nothing."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    if attention_mask is not None:  # with a mask transformers repeats the heads of key and value
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        attention_mask = attention_mask.to(query.dtype)
    return _Attention.apply(query, key, value, attention_mask).transpose(1, 2), None  # pyright: ignore


def _mask(batch_size: int, q_length: int, kv_length: int, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty(batch_size, 1, q_length, kv_length, dtype=torch.bool)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


for _name, _function in ((_NAMES[False], _no_mask), (_NAMES[True], _mask)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _function)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
