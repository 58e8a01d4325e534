"""The language model's repeated layers: how many of them are checkpointed, and compiling them."""

from typing import Any, cast

import torch
from torch import nn

from mdpo.errors import InputError

from .logps import unwrap

IN_LANGUAGE_MODEL = r"(?:.*\.)?(?:language|text)_model\."  # how the name of what lies in it begins
# Linear layers of the language model by their usual names; a plain suffix would hit the vision tower too.
LANGUAGE_LINEAR = (
    IN_LANGUAGE_MODEL + r".*\.("
    r"q_proj|k_proj|v_proj|o_proj|dense|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|"
    r"in_proj|in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|out_proj|"
    r"gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|w1|w2|w3|per_layer_input_gate|per_layer_projection)"
)


def language_layers(model: nn.Module) -> nn.ModuleList:
    """The repeated layers of the language model, in order. model: bare or PEFT."""
    decoder: Any = unwrap(model).get_decoder()
    if not hasattr(decoder, "layers"):  # a text model with a head of its own, as Llama 4's
        decoder = decoder.model
    return cast(nn.ModuleList, decoder.layers)


def check_checkpoint_layers(model: nn.Module, count: int) -> None:
    """Raises InputError where the model has fewer than ``count`` layers."""
    have = len(language_layers(model))
    if not 0 <= count <= have:
        raise InputError(f"checkpoint_layers is {count}; expected at most the model's {have} layers")


def checkpoint_first_layers(model: nn.Module, count: int) -> None:
    """Keeps checkpointing on in the first ``count`` layers alone.

    model: bare or PEFT, with checkpointing already enabled by transformers, which also sets how a layer is recomputed.

    The first and not the last: the backward reaches the last layers before it recomputes any, so what those kept is
    free again by then, and the peak is the larger of the two and not their sum.
    """
    layer: Any
    for index, layer in enumerate(language_layers(model)):
        layer.gradient_checkpointing = index < count


def compile_layers(model: nn.Module) -> None:
    """torch.compile of each repeated layer, in place and lazily: the first step compiles.

    Dynamic shapes, because no two packed rows have the same length. Compiled kernels fuse and reorder sums: results
    move by rounding. Where processes train together, PyTorch's setting ``torch._dynamo.config.optimize_ddp`` is
    switched off for all that this process compiles: it would cut each layer's graph once more, by the buckets of DDP's
    gradients, which layer by layer are sent early enough.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch._dynamo.config.optimize_ddp = False
    for layer in language_layers(model):
        layer.compile(dynamic=True)
