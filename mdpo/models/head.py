"""Hidden states → log-probs through a language-model head, with whatever adapter is on it."""

import logging
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from mdpo_kernels import linear_token_logps, token_logps

_log = logging.getLogger(__name__)
_said: set[str] = set()

_CHUNK_LOGITS = 2**26  # logits of one chunk: 256 MiB in float32

# Shapes: N scored tokens, H hidden size, V vocabulary


class Linear(NamedTuple):
    """A head whose logits are ``hidden @ weight.T + bias``. weight: (V, H). bias: (V,) or None."""

    weight: Tensor
    bias: Tensor | None


class Logits(NamedTuple):
    """How a model makes logits of z, the numbers that leave its head: softcap·tanh(scale·z / softcap), or scale·z where
    softcap is None, for the vocabulary's first columns, or all of it where that is None."""

    scale: float = 1.0
    softcap: float | None = None
    columns: int | None = None


AS_THEY_ARE = Logits()


def logits_of(config: Any) -> Logits:
    """What a model of a packed row does behind its head, by its text model's config: nothing, or Gemma's cap."""
    return Logits(softcap=getattr(config.text_config, "final_logit_softcapping", None))


def head_logps(head: nn.Module, hidden: Tensor, targets: Tensor, logits: Logits = AS_THEY_ARE) -> Tensor:
    """The log-prob of each target: (N, H), (N,) int64 → (N,) float32.

    head: the model's output embeddings, with or without an adapter of any kind. A plain linear layer, or a LoRA that
    amounts to one, goes through ``linear_token_logps``, which never holds the logits. Any other head computes them by
    its own forward, a chunk of rows at a time.
    """
    linear = linear_head(head)
    if linear is not None:
        bias = None if linear.bias is None else linear.bias[: logits.columns]
        return linear_token_logps(
            hidden, linear.weight[: logits.columns], targets, bias=bias, scale=logits.scale, softcap=logits.softcap
        )
    kind = f"{type(head).__module__.split('.')[0]}.{type(head).__name__}"
    if kind not in _said:
        _said.add(kind)
        _log.warning("lm_head is a %s: its own forward makes the logits, chunk by chunk, instead of the kernel", kind)

    def chunk_logps(rows: Tensor, wanted: Tensor) -> Tensor:
        return token_logps(head(rows)[:, : logits.columns], wanted, scale=logits.scale, softcap=logits.softcap)

    size = max(1, _CHUNK_LOGITS // _vocabulary(head))
    pieces = []
    for rows, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            # The backward makes a chunk's logits again, so that only one chunk of them is held at a time.
            pieces.append(checkpoint(chunk_logps, rows, wanted, use_reentrant=False))
        else:
            pieces.append(chunk_logps(rows, wanted))
    return torch.cat(pieces)


def linear_head(head: Any) -> Linear | None:
    """Weight and bias of a head that is one linear map, adapters folded in; None for any other head."""
    if isinstance(head, ModulesToSaveWrapper):
        if head.disable_adapters or not head.active_adapters:
            return linear_head(head.original_module)
        return linear_head(head.modules_to_save[head.active_adapters[0]])
    if isinstance(head, LoraLayer):
        return _lora_head(head)
    # A subclass may hold its weight packed, as 4-bit layers do, and a parametrization computes it on the fly.
    whole = isinstance(head, nn.Linear) and head.weight.shape == (head.out_features, head.in_features)
    if not whole or isinstance(head, BaseTunerLayer) or is_parametrized(head) or not head.weight.is_floating_point():
        return None
    return Linear(head.weight, head.bias)


def _lora_head(lora: Any) -> Linear | None:
    """A LoRA on lm_head as one linear map; None for variants (DoRA, a bias of its own, dropout), which are not one."""
    base = linear_head(lora.get_base_layer())
    if base is None or lora.merged:
        return None
    weight = base.weight
    for adapter in [] if lora.disable_adapters else lora.active_adapters:
        if not _is_plain(lora, adapter):
            return None
        # The log-probs need the sum; its gradient runs on into A and B. One (V, H) temporary each pass.
        weight = weight + lora.get_delta_weight(adapter).to(weight.dtype)
    return Linear(weight, base.bias)


def _is_plain(lora: Any, adapter: str) -> bool:
    if adapter not in lora.lora_A or lora.lora_bias[adapter]:
        return False
    dropout = lora.lora_dropout[adapter]
    if dropout.training and getattr(dropout, "p", 0.0) > 0:
        return False
    return not lora.use_dora.get(adapter) and adapter not in lora.lora_variant


def _vocabulary(head: Any) -> int:
    inner: Any = head.original_module if isinstance(head, AuxiliaryTrainingWrapper) else head
    layer: Any = inner.get_base_layer() if isinstance(inner, BaseTunerLayer) else inner
    return layer.out_features
