"""LLaVA-1.5's original layout → a LLaVA in transformers' terms: CLIP tower, two-layer GELU projector, Llama."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mdpo.errors import InputError
from mdpo.hub import folder_of

from .load import read_strictly
from .official import (
    EMBEDDINGS,
    HEAD,
    TOWER,
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

_LARGE_336 = "clip-vit-large-patch14-336"
_LARGE_336_SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
    "attention_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range",
    "attention_dropout",
)  # fmt: skip
# The rest of a CLIP, beside its tower.
_CLIP_TEXT = r"^(text_model|text_projection|visual_projection|logit_scale)\b"
_STRATEGIES: dict[str, Any] = {"patch": "default", "cls_patch": "full"}
_MOST_ROWS = 2**16
_ROWS = 64  # the vocabulary grows to a multiple of this, as in transformers' own conversions


def convert_llava(source: str | Path, destination: str | Path, *, vision_tower: str | Path | None = None) -> Path:
    """Writes the checkpoint at ``source`` to ``destination`` for ``mdpo.models.load``; returns ``destination``.

    A source with ``config.json`` and safetensors weights alone is enough. Where it has a tokenizer too, a
    ``LlavaProcessor`` is written beside the weights.

    vision_tower: folder of the CLIP model that the checkpoint was tuned on, as transformers saves it. Needed where the
        checkpoint leaves the tower out, as the published ones do, unless its config names such a folder. Weights of
        the checkpoint's own come first.

    The image token needs an id, and the original vocabulary has none to spare: it grows by rows that are copies of
    its first, <unk>. That is no target in tuning, so the probability of each added row is close to 0.

    Raises InputError where the source is no LLaVA-1.5 checkpoint or its weights do not fit its config.
    """
    destination = Path(destination)
    check_destination(destination)
    source = folder_of(source)
    with converting(source):
        model, processor = _convert(source, vision_tower)
    return save(destination, model, processor)


def _convert(
    source: Path, vision_tower: str | Path | None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor | None]:
    official = _read_config(source)
    weights = read_weights(source)
    vision = _add_tower(official, weights, vision_tower)
    tokenizer = read_tokenizer(source)
    image_id = len(weights[EMBEDDINGS]) if tokenizer is None else image_token_id(tokenizer)
    _make_room(weights, image_id)
    model = build(_config(official, vision, weights, image_id), weights)
    processor = None
    if tokenizer is not None:
        pad = official.get("image_aspect_ratio") == "pad"
        processor = build_processor(tokenizer, model.config, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD, pad=pad)
    return model, processor


def _read_config(source: Path) -> dict:
    path = source / "config.json"
    official = read_config(source, ("llava_llama", "llava"))
    aspect, merge = official.get("image_aspect_ratio", "square"), official.get("mm_patch_merge_type", "flat")
    if aspect not in ("pad", "square") or merge != "flat":
        raise InputError(f"{path}: image_aspect_ratio {aspect!r} and mm_patch_merge_type {merge!r} are not LLaVA-1.5's")
    if official.get("mm_use_im_start_end"):
        raise InputError(f"{path}: mm_use_im_start_end frames images with tokens, which LLaVA-1.5 does not do")
    feature = official.get("mm_vision_select_feature", "patch")
    if feature not in _STRATEGIES:
        raise InputError(f"{path}: mm_vision_select_feature {feature!r} is not known; {' or '.join(_STRATEGIES)} is")
    return official


def _add_tower(official: dict, weights: dict[str, Tensor], folder: str | Path | None) -> Any:
    """The tower's CLIPVisionConfig; its weights are added to ``weights`` where the checkpoint has none."""
    name = str(official.get("mm_vision_tower", ""))
    if folder is None and name and Path(name).is_dir():
        folder = name
    if folder is not None:
        tower = _load_tower(folder)
        if not tower_layers(weights):
            dtype = weights[EMBEDDINGS].dtype
            for key, tensor in tower.state_dict().items():
                weights[TOWER + key.removeprefix("vision_model.")] = tensor.to(dtype)
        return tower.config
    if not tower_layers(weights):
        raise InputError(
            f"the checkpoint contains no vision tower; give the folder of {name or _LARGE_336} with --vision-tower"
        )
    if "vision_config" in official:
        return CLIPVisionConfig(**official["vision_config"])
    if not name.endswith(_LARGE_336):
        raise InputError(f"mm_vision_tower {name!r} is not {_LARGE_336}; give its folder with --vision-tower")
    return CLIPVisionConfig(**_LARGE_336_SIZES)


def _load_tower(path: str | Path) -> CLIPVisionModel:
    try:
        folder = folder_of(path, called="vision tower")
        return cast(CLIPVisionModel, read_strictly(CLIPVisionModel, folder, unread=_CLIP_TEXT, dtype="auto"))
    except InputError as error:
        raise InputError(f"--vision-tower: not a CLIP model with safetensors weights: {error}") from error


def _make_room(weights: dict[str, Tensor], image_id: int) -> None:
    have = len(weights[EMBEDDINGS])
    if image_id < have:
        return
    if image_id >= have + _MOST_ROWS:
        raise InputError(
            f"the tokenizer's image token has id {image_id}, far beyond the {have} embeddings; give the tokenizer "
            "of this checkpoint"
        )
    more = -(-(image_id + 1) // _ROWS) * _ROWS - have
    for name in (EMBEDDINGS, HEAD):
        if name in weights:
            rows = weights[name]
            weights[name] = torch.cat([rows, rows[:1].expand(more, -1)])


def _config(official: dict, vision: Any, weights: dict[str, Tensor], image_id: int) -> LlavaConfig:
    text = {key: official[key] for key in _LLAMA_KEYS if official.get(key) is not None}
    text["vocab_size"] = len(weights[EMBEDDINGS])
    strategy = _STRATEGIES[official.get("mm_vision_select_feature", "patch")]
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text),
        image_token_index=image_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 + (strategy == "full"),
        vision_feature_layer=official.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
        projector_hidden_act="gelu",
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        dtype=str(weights[EMBEDDINGS].dtype).removeprefix("torch."),
    )
