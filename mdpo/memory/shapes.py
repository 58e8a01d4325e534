"""What of a model decides its memory: read off its config, with the model built on the meta device, without weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from mdpo.errors import InputError
from mdpo.models import language_layers, not_compiled
from mdpo.packing import Separate, family_of_config

from .counted import CountedLayers, Unplanned
from .lengths import Picture

# Text models whose layers, in a packed row, ``layer`` has the equation for.
_EQUATION = ("llama", "mistral", "phi", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
# A layer's linear layers by what they read. Those that read the same share one saved input.
_GROUPS = {
    "attention": ("q_proj", "k_proj", "v_proj"),
    "attention_out": ("o_proj", "dense"),
    "mlp": ("gate_proj", "up_proj", "fc1"),
    "mlp_out": ("down_proj", "fc2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """What trains. rank 0 is full fine-tuning of the language side; pattern: a regular expression of LoRA's targets.

    is_reference: whether the adapter is the reference too, so that its starting values are kept beside it.
    """

    rank: int
    pattern: str = ""
    is_reference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What decides what a layer of the language model keeps, where all are alike and ``layer`` has their equation.

    groups: for each set of a layer's linear layers that read the same input, its width and how many of them train.
    trains: whether the layer itself does, and no adapter of it. rank: of an adapter, else 0.
    activation: of the MLP, by its name in the config. gated: its input passes two linear layers.
    pre_norms: norms in a layer. rms: RMSNorm, computed in fp32 by hand; else one LayerNorm kernel.
    head_norms: an RMSNorm of query and key in every head.
    """

    hidden_size: int
    intermediate_size: int
    query_size: int
    key_size: int
    heads: int
    rank: int
    trains: bool
    groups: dict[str, tuple[int, int]]
    activation: str
    gated: bool
    pre_norms: int
    rms: bool
    head_norms: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a model; parameters are counted, not bytes.

    layer: of the language model, by an equation where there is one, else counted.
    separate: whether its branches are sequences of their own, each with its picture.
    language_linear: of the language model's linear layers, which 4 bits apply to. largest_linear: of the largest of
    them. other: everything else (embeddings, head, norms, experts in a stack, projector, tower).
    trained: what has a gradient; its share that no adapter but the model itself holds is trained_base.
    kept: of those, the ones whose starting values the reference keeps.
    eager: why its layers are not compiled; None where they can be.
    image_tokens: placeholders of one image, 0 where that depends on its size. image_patches: what the tower makes of it
    at first. tower_width: channels of a tower layer, its MLP's included. pixels: values of one processed image.
    """

    layers: int
    layer: LayerShape | CountedLayers
    separate: bool
    hidden_size: int
    vocabulary: int
    language_linear: int
    largest_linear: int
    other: int
    trained: int
    trained_base: int
    kept: int
    rank: int
    trained_head: bool
    eager: str | None
    image_tokens: int
    image_patches: int
    tower_width: int
    pixels: int
    dtype_bytes: int


def read_shape(config: PreTrainedConfig, adaptation: Adaptation) -> ModelShape:
    """The shape of the model that ``config`` describes, trained as ``adaptation`` says.

    Raises:
        InputError: no layer matches the pattern.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = language_layers(model)
    start = next(name for name, module in model.named_modules() if module is layers) + "."
    language = {name: module for name, module in linears.items() if name.startswith(start)}
    adapted = {name for name in linears if adaptation.rank and re.fullmatch(adaptation.pattern, name)}
    if adaptation.rank and not adapted:
        raise InputError(f"lora_target_modules: {adaptation.pattern!r} matches no linear layer of the model")
    text = config.get_text_config()
    trained, trained_base, trains = _trained(model, start.removesuffix("layers."), adaptation, linears, adapted)
    total = sum(parameter.numel() for parameter in model.parameters())
    language_linear = sum(module.weight.numel() for module in language.values())
    family = family_of_config(config)
    separate = isinstance(family, Separate)
    if not separate and family.carries_state:
        raise Unplanned(
            f"model_name_or_path: the memory of a {config.model_type!r} model cannot be planned, since its layers "
            "with linear attention fill prompts and responses up, by what no length says; set token_budget and "
            "gradient_checkpointing by hand"
        )
    image_tokens, pixels = _image_tokens(config), _pixels(config)
    first = {
        name.removeprefix(f"{start}0."): module for name, module in language.items() if name.startswith(f"{start}0.")
    }
    if separate or text.model_type not in _EQUATION:
        layer = CountedLayers(config, rank=adaptation.rank, pattern=adaptation.pattern, masked=separate)
        trained = layer.trained if adaptation.rank else trained
    else:
        layer = _layer_shape(text, layers, first, adaptation.rank, lambda name: trains(f"{start}0.{name}"))
    return ModelShape(
        layers=len(layers),
        layer=layer,
        separate=separate,
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size,
        language_linear=language_linear,
        largest_linear=max(module.weight.numel() for module in language.values()),
        other=total - language_linear,
        trained=trained,
        trained_base=trained_base,
        rank=adaptation.rank,
        kept=trained if adaptation.is_reference else trained_base,
        trained_head=trains("lm_head"),
        eager=not_compiled(model),
        image_tokens=image_tokens,
        image_patches=image_tokens,
        tower_width=_tower_width(config.vision_config, model),
        pixels=pixels,
        dtype_bytes=_dtype_bytes(config),
    )


def with_picture(shape: ModelShape, picture: Picture) -> ModelShape:
    """The shape with its images as large as ``picture``."""
    return replace(
        shape, image_tokens=picture.tokens, image_patches=max(picture.patches, picture.tokens), pixels=picture.pixels
    )


def _layer_shape(
    text: Any, layers: nn.ModuleList, linears: dict[str, nn.Linear], rank: int, trains: Callable[[str], bool]
) -> LayerShape:
    """linears: of the first layer, which the others are like, by name in it."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return LayerShape(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        query_size=text.num_attention_heads * head_dim,
        key_size=text.num_key_value_heads * head_dim,
        heads=text.num_attention_heads,
        rank=rank,
        trains=not rank,
        groups=_groups(linears, trains),
        activation=text.hidden_act,
        gated=any(name.endswith("gate_proj") for name in linears),
        pre_norms=sum("norm" in name for name, _ in layers[0].named_children()),
        rms=not any(isinstance(module, nn.LayerNorm) for module in layers.modules()),
        head_norms=any(name.endswith("q_norm") for name, _ in layers[0].named_modules()),
    )


def _trained(
    model: nn.Module, inside: str, adaptation: Adaptation, linears: dict[str, nn.Linear], adapted: set[str]
) -> tuple[int, int, Callable[[str], bool]]:
    """Parameters that train, those of them that are the model's own, and whether a linear layer trains."""
    if adaptation.rank:
        sizes = (linears[name].in_features + linears[name].out_features for name in adapted)
        return adaptation.rank * sum(sizes), 0, lambda name: name in adapted
    base = sum(p.numel() for name, p in model.named_parameters() if name.startswith((inside, "lm_head.")))
    return base, base, lambda name: True


def _groups(linears: dict[str, nn.Linear], trains: Callable[[str], bool]) -> dict[str, tuple[int, int]]:
    last = {name.rpartition(".")[2]: (name, module) for name, module in linears.items()}
    found = {}
    for group, suffixes in _GROUPS.items():
        members = [last[suffix] for suffix in suffixes if suffix in last]
        found[group] = members[0][1].in_features, sum(trains(name) for name, _ in members)
    return found


def _image_tokens(config: PreTrainedConfig) -> int:
    if config.model_type != "llava":
        return 0
    vision = config.vision_config
    extra = vision.model_type == "clip_vision_model" and config.vision_feature_select_strategy == "full"
    return (vision.image_size // vision.patch_size) ** 2 + extra


def _tower_width(vision: Any, model: nn.Module) -> int:
    if hasattr(vision, "embed_dim") and hasattr(
        vision, "mlp_ratio"
    ):  # Qwen2-VL, whose hidden_size is that of the text model
        return round((4 + 2 * vision.mlp_ratio) * vision.embed_dim)
    if hasattr(vision, "hidden_size") and hasattr(vision, "intermediate_size"):
        return 4 * vision.hidden_size + 2 * vision.intermediate_size
    text = set(
        cast(Any, model).get_decoder().modules()
    )  # a config of another make: by the largest linear layer outside the text
    outside = (module for module in model.modules() if isinstance(module, nn.Linear) and module not in text)
    return max(
        (4 * min(sizes) + 2 * max(sizes) for sizes in ((m.in_features, m.out_features) for m in outside)), default=0
    )


def _dtype_bytes(config: PreTrainedConfig) -> int:
    dtype = config.dtype or torch.float32
    return (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize


def _pixels(config: PreTrainedConfig) -> int:
    return 3 * config.vision_config.image_size**2 if config.model_type == "llava" else 0


def _llava_7b() -> PreTrainedConfig:
    """https://huggingface.co/llava-hf/llava-1.5-7b-hf"""
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(vocab_size=32064, max_position_embeddings=4096),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        dtype="bfloat16",
    )


def _bunny_3b() -> PreTrainedConfig:
    """https://huggingface.co/BAAI/Bunny-v1_0-3B, as ``mdpo convert bunny`` writes it: its tower without the
    last layer.
    """
    phi: Any = transformers.PhiConfig  # whose signature leaves its rotary settings out
    return transformers.LlavaConfig(
        text_config=phi(
            vocab_size=51200,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            partial_rotary_factor=0.4,
            hidden_act="gelu_pytorch_tanh",
        ),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        dtype="bfloat16",
    )


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {"llava-1.5-7b": _llava_7b, "bunny-v1.0-3b": _bunny_3b}
