"""What packing has to know of a model family: how an image becomes tokens, and how positions are counted.

A family is on the list because a test holds its packed step against three separate Hugging Face forwards. Everything
else is refused: packing relies on plain causal attention, and a model that mixes tokens in another way would train
on wrong numbers without a word.
"""

from mdpo.errors import InputError

from .base import Family
from .llava import Llava, LlavaNext
from .qwen_vl import QwenVL
from .tiles import Idefics3, InternVL

__all__ = ["Family", "family_of"]

_FAMILIES = {
    "idefics3": Idefics3,
    "internvl": InternVL,
    "llava": Llava,
    "llava_next": LlavaNext,
    "qwen2_5_vl": QwenVL,
    "qwen2_vl": QwenVL,
    "qwen3_vl": QwenVL,
    "smolvlm": Idefics3,
}

_REFUSED = {
    "paligemma": "its image and prefix tokens attend to each other in both directions",
    "gemma3": "its image tokens attend to each other in both directions",
    "mllama": "its images enter through cross-attention layers",
    "qwen3_5": "its linear-attention layers carry state from token to token",
}


def family_of(model) -> Family:
    """The family of a Hugging Face model, bare or wrapped by PEFT.

    Raises InputError where the model cannot be packed exactly or has not been tried, with the reason.
    """
    config = model.config
    kind = config.model_type
    if kind in _REFUSED:
        raise InputError(f"model family {kind!r} cannot share a packed prefix: {_REFUSED[kind]}")
    if kind not in _FAMILIES:
        raise InputError(
            f"model family {kind!r} has not been tried in a packed row; supported: {', '.join(sorted(_FAMILIES))}"
        )
    return _FAMILIES[kind].from_config(config)
