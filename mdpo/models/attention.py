"""The packed attention, registered with transformers under a name of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mdpo.packing import Separate, family_of
from mdpo_kernels import Segments, varlen_attention
from mdpo_kernels.attention import choose_backend

NAME = "mdpo_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **kwargs,  # the interface's: other attention functions' options
) -> tuple[Tensor, None]:
    """What a transformers attention layer calls; ``segments`` reaches it as a keyword of the model's forward.

    query (1, Hq, T, D), key and value (1, Hkv, T, D) → (1, T, Hq, D). sliding_window: of the layer, None for all; it
    is counted in each branch by itself, prompt included. Without segments (generation, say) the layer gets
    transformers' own SDPA, so a model can be left set to this attention.
    """
    if segments is None:
        sdpa: Callable[..., tuple[Tensor, None]] = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **kwargs,
        )
    if dropout:
        raise ValueError(
            f"dropout is {dropout}; expected 0, since the packed attention has none; set attention_dropout to 0 in the "
            "config"
        )
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return varlen_attention(query, key, value, segments, scale=scaling, window=sliding_window)[None], None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Sets the text model's attention; the vision tower keeps its own.

    The setting stays, for gradient checkpointing runs the layers again in the backward.
    """
    if model.config.text_config._attn_implementation != NAME:
        model.set_attn_implementation({"text_config": NAME})


def attention_backend(model: PreTrainedModel, autocast: torch.dtype | None) -> str:
    """What the attention runs on: the kernels of a packed row, as ``choose_backend`` names them, or the model's own."""
    if isinstance(family_of(model), Separate):
        return f"separate: {model.config.get_text_config()._attn_implementation}"
    parameter = next(model.parameters())
    text: Any = model.config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return choose_backend(parameter.device.type, autocast or parameter.dtype, head_dim)


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """The text model on transformers' own attention for as long as the context lasts."""
    before = model.config.get_text_config()._attn_implementation
    if before == NAME:
        model.set_attn_implementation({"text_config": "sdpa"})
    try:
        yield
    finally:
        if before == NAME:
            model.set_attn_implementation({"text_config": NAME})
