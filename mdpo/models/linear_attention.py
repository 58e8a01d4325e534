"""Layers with linear attention in a packed row: a prompt's state is handed to every response that reads it.

Such a layer (Qwen3.5's gated delta net) reads a sequence from left to right and keeps two states, the last inputs of a
convolution and a matrix. A packed row is no such sequence. So the layer reads the row's prompts as a batch of
sequences, and then its responses as another, each from the states of its prompt; gradients flow back through the
states, and those of a prompt's responses are summed. Everything else of the layer stays the row's: P tokens once for
all that read them.

What a layer is given is exchanged by hooks in front of it and behind it. transformers' own cache hands the states over,
with a layer in it that keeps them as they are: its own copies them into place, which has no gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import LinearAttentionLayer

from mdpo.errors import InputError
from mdpo.packing import Forks

# Shapes: T packed tokens, H hidden size; of Forks: B prompts of P tokens, S responses of R; C channels, K of the
# convolution


class _States(LinearAttentionLayer):
    """The states behind a batch of sequences, with their gradients."""

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """(B, C, P) → with the K inputs before them, where there are any."""
        before = self.conv_states[state_idx]
        seen = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        size = conv_kernel_size or conv_states.shape[-1]
        self.conv_states[state_idx] = F.pad(seen, (max(0, size - seen.shape[-1]), 0))[..., -size:]
        self.has_previous_state[state_idx] = True
        return seen

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states

    def forked(self, parents: tuple[int, ...]) -> "_States":
        """The states in front of a batch of responses. parents: of each its sequence here."""
        found = _States()
        for states, own in ((found.conv_states, self.conv_states), (found.recurrent_states, self.recurrent_states)):
            state = own[0]
            assert state is not None, "the prompts have been read"
            # Not index_select, whose backward adds up in no fixed order on a GPU.
            pieces = state.split(1)
            states[0] = torch.cat([pieces[parent] for parent in parents])
        found.has_previous_state[0] = True
        return found


class _Prompts(Cache):
    """What a layer is given as its cache while it reads the prompts.

    row: (T + 1, H), the layer's input with a row of zeros behind it, which all that is filled up reads.
    """

    def __init__(self, layer: int, row: Tensor, forks: Forks) -> None:
        self.states, self.row, self.forks = _States(), row, forks
        super().__init__(layers=_up_to(layer, self.states))


def fork_states(text: Any) -> None:
    """Has the linear attention of each layer fork its states where a row has ``forks``, a keyword of the text model's
    forward.

    text: the model of repeated layers, bare or with adapters in them.
    The hooks stay, for gradient checkpointing runs the layers again in the backward; without forks they change nothing.

    Raises InputError for an adapter whose layers have a bias there.
    """
    for layer in text.layers:
        module = getattr(layer, "linear_attn", None)
        if module is None:
            continue
        _check_has_no_bias(module)
        if _read_prompts not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_read_prompts, with_kwargs=True)
            module.register_forward_hook(_read_responses, with_kwargs=True)


def _check_has_no_bias(module: nn.Module) -> None:
    """The zeros that fill a prompt up in front of its tokens leave the states at zero only where no bias makes tokens
    of them.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            raise InputError(
                f"the adapter gives a bias to {name} of a layer with linear attention, which a packed row fills "
                "up with zeros; leave lora_bias out of its config"
            )


def _read_prompts(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """In front of the layer: the row's prompts in place of the row."""
    forks: Forks | None = kwargs.get("forks")
    if forks is None:
        return None
    hidden: Tensor = kwargs["hidden_states"]
    row = F.pad(hidden[0], (0, 0, 0, 1))
    return (), {
        "hidden_states": _taken(row, forks.prompts),
        "cache_params": _Prompts(module.layer_idx, row, forks),
        "attention_mask": None,
    }


def _read_responses(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
    """Behind it: reads the responses as well, and puts the outputs where the row has their tokens."""
    prompts = kwargs.get("cache_params")
    if not isinstance(prompts, _Prompts):
        return None
    forks = prompts.forks
    states = prompts.states.forked(forks.parents)
    # Not the module itself, which would come back here.
    answers = module.forward(
        hidden_states=_taken(prompts.row, forks.responses),
        cache_params=Cache(layers=_up_to(module.layer_idx, states)),
        attention_mask=None,
    )
    read = torch.cat([output.flatten(0, 1), answers.flatten(0, 1)])
    return read.index_select(0, forks.places)[None]


def _up_to(layer: int, states: _States) -> list[Any]:
    """A cache's list of layers that has these states at ``layer``."""
    return [states] * (layer + 1)


def _taken(row: Tensor, places: Tensor) -> Tensor:
    return row.index_select(0, places.flatten()).view(*places.shape, -1)
