"""How a model family is read: packed, where a test holds its packed row against separate Hugging Face forwards, or
separately.

A packed row relies on causal attention, with a window or without, and on states that fork where it does: a model that
mixes tokens in another way would train on wrong numbers without a word. Every other model is read branch by branch
through its own forward; one whose log-probs that does not give is refused.
"""

from mdpo.errors import InputError

from .base import Family, Separate, Untried
from .gemma import Gemma4
from .llava import Llava, LlavaNext, LlavaOnevision
from .qwen_vl import Glm4V, Qwen35, QwenVL
from .tiles import Idefics3, InternVL

__all__ = ["Family", "Separate", "family_of", "family_of_config"]

_FAMILIES = {
    "gemma4": Gemma4,
    "glm4v": Glm4V,
    "idefics3": Idefics3,
    "internvl": InternVL,
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOnevision,
    "qwen2_5_vl": QwenVL,
    "qwen2_vl": QwenVL,
    "qwen3_5": Qwen35,
    "qwen3_5_moe": Qwen35,
    "qwen3_vl": QwenVL,
    "qwen3_vl_moe": QwenVL,
    "smolvlm": Idefics3,
}

_NOT_PACKED = {
    "paligemma": "its image and prompt tokens attend to each other in both directions",
    "gemma3": "its image tokens attend to each other in both directions",
}

# What a forward needs beside token ids and processed images, and only the model's own processor makes.
_REFUSED = {
    "ernie4_5_vl_moe": "its experts are chosen by token types that its processor alone makes",
    "idefics": "its images enter through cross-attention, by a mask that its processor alone makes",
    "mllama": "its images enter through cross-attention, by a mask that its processor alone makes",
    "molmo2": "which of its tokens attend in both directions its processor alone says",
}

_RESPONSE_TYPES = {"paligemma": 1}


def family_of(model) -> Family | Separate:
    """How a Hugging Face model, bare or wrapped by PEFT, is read.

    Raises InputError where neither way gives its log-probs, with the reason.
    """
    return family_of_config(model.config)


def family_of_config(config) -> Family | Separate:
    """As ``family_of``, of a model's config."""
    kind = config.model_type
    if kind in _REFUSED:
        raise InputError(f"model family {kind!r} cannot be trained: {_REFUSED[kind]}")
    if kind not in _FAMILIES:
        return _separate(config, _NOT_PACKED.get(kind, f"model family {kind!r} has not been tried in a packed row"))
    try:
        return _FAMILIES[kind].from_config(config)
    except Untried as untried:
        return _separate(config, str(untried))


def _separate(config, reason: str) -> Separate:
    kind = config.model_type
    if config.is_encoder_decoder:
        raise InputError(f"model family {kind!r} cannot be trained: it decodes a response apart from its prompt")
    token = getattr(config, "image_token_id", None)
    if token is None:
        raise InputError(
            f"model family {kind!r} cannot be trained: its config names no image_token_id, so which tokens stand "
            "for an image is not known"
        )
    return Separate(token, reason, _RESPONSE_TYPES.get(kind))
