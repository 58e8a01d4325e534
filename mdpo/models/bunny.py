"""Bunny's official layout → a LLaVA in transformers' terms: SigLIP tower, two-layer GELU projector, Phi."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PhiConfig, SiglipVisionConfig

from mdpo.errors import InputError
from mdpo.hub import folder_of

from .official import (
    EMBEDDINGS,
    build,
    build_processor,
    check_destination,
    converting,
    image_token_id,
    read_config,
    read_tokenizer,
    read_weights,
    save,
    tower_layers,
)

# siglip-so400m-patch14-384, which official Bunny configs leave unsaid
_SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_VISION_KEYS = (*_SIGLIP_SO400M, "num_channels", "hidden_act", "layer_norm_eps")
_PHI_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "layer_norm_eps", "rope_theta", "rope_scaling",
    "partial_rotary_factor", "qk_layernorm", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range", "resid_pdrop", "embd_pdrop", "attention_dropout",
)  # fmt: skip


def convert_bunny(source: str | Path, destination: str | Path) -> Path:
    """Writes the checkpoint at ``source`` to ``destination`` for ``mdpo.models.load``; returns ``destination``.

    A source with ``config.json`` and safetensors weights alone is enough. Where it has a tokenizer too, a
    ``LlavaProcessor`` is written beside the weights. Vision sizes come from the config's ``vision_config``, which
    describes the tower before Bunny drops its last layer, else from siglip-so400m-patch14-384.

    Raises InputError where the source is no Bunny-Phi checkpoint or its weights do not fit its config.
    """
    destination = Path(destination)
    check_destination(destination)
    source = folder_of(source)
    with converting(source):
        model = _build(read_config(source, ("bunny-phi",)), read_weights(source))
        processor = _processor(source, model.config)
    return save(destination, model, processor)


def _build(official: dict, weights: dict[str, Tensor]) -> LlavaForConditionalGeneration:
    vision = {**_SIGLIP_SO400M, **official.get("vision_config", {})}
    vision = {key: vision[key] for key in _VISION_KEYS if key in vision}
    # The checkpoint holds the layers that are left, and the features are the last one's, before post_layernorm.
    vision["num_hidden_layers"] = tower_layers(weights)
    if not vision["num_hidden_layers"]:
        raise InputError("the checkpoint contains no vision tower; save it together with the tower's weights")
    text = {key: official[key] for key in _PHI_KEYS if official.get(key) is not None}
    if text.get("hidden_act", "gelu_new") == "gelu_new":
        text["hidden_act"] = "gelu_pytorch_tanh"  # the same function in one kernel, which keeps one tensor, not four
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=PhiConfig(**text),
        image_token_index=text["vocab_size"] - 1,  # embeddings are padded past the tokenizer's last id
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        dtype=str(weights[EMBEDDINGS].dtype).removeprefix("torch."),
    )
    return build(config, weights)


def _processor(source: Path, config: LlavaConfig) -> LlavaProcessor | None:
    """The processor, where the source has a tokenizer; the image token takes the next free id."""
    tokenizer = read_tokenizer(source)
    if tokenizer is None:
        return None
    config.image_token_id = image_token_id(tokenizer)
    text: Any = config.text_config
    if config.image_token_id >= text.vocab_size:
        raise InputError(f"{source}: no room for the image token: the vocabulary's {len(tokenizer)} ids are all taken")
    return build_processor(tokenizer, config, mean=[0.5] * 3, std=[0.5] * 3, pad=True)
