"""Models with the shapes of real ones and random weights: what a step costs does not depend on what it has learned."""

# transformers' configs take their keywords through a decorator that a type checker does not see.
# pyright: reportCallIssue=false

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from mdpo.models import LANGUAGE_LINEAR, fuse_lora, language_layers, share_inputs


@dataclass(frozen=True, slots=True)
class Shape:
    """A LLaVA's text and vision configs. image_tokens is a square: the tower's patches."""

    name: str
    text: transformers.PreTrainedConfig
    vision: type[transformers.PreTrainedConfig]
    tower: dict[str, int]
    patch_size: int


LLAVA_7B = Shape(
    "llava-1.5-7b",
    transformers.LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    ),
    transformers.CLIPVisionConfig,
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    14,
)
BUNNY_3B = Shape(
    "bunny-3b",
    transformers.PhiConfig(
        vocab_size=51200,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        partial_rotary_factor=0.4,
    ),
    transformers.SiglipVisionConfig,
    {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16},
    14,
)
# 0.4M parameters: for trying the bench itself.
TINY = Shape(
    "llava-tiny",
    transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    ),
    transformers.CLIPVisionConfig,
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    14,
)
# 58M parameters: large enough that the body, not Python, takes the time on two cores.
CPU_60M = Shape(
    "llava-60m",
    transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=12,
        max_position_embeddings=4096,
    ),
    transformers.CLIPVisionConfig,
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    14,
)


def build(shape: Shape, image_tokens: int, device: torch.device, *, lora_r: int = 64) -> PeftModel:
    """The model with a LoRA on the language model's linear layers, fused as the trainer has it, bf16 base on a GPU,
    adapters fp32, no checkpointing."""
    model = get_peft_model(build_base(shape, image_tokens, device), fuse_lora(adapter(lora_r))).train()
    share_inputs(model)
    return model


def build_base(shape: Shape, image_tokens: int, device: torch.device) -> transformers.PreTrainedModel:
    """The bare model, bf16 on a GPU and fp32 on a CPU. image_tokens: a square."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        return transformers.AutoModelForImageTextToText.from_config(config_of(shape, image_tokens), dtype=dtype)


def build_nf4_base(shape: Shape, image_tokens: int, device: torch.device) -> transformers.PreTrainedModel:
    """Random weights in 4 bits, a layer at a time: the whole model in bf16 would not fit under the cap. ImportError
    without bitsandbytes."""
    import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]  (an optional package)

    def quantize(layer: nn.Module) -> None:
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        for name, linear in linears:
            small = bnb.nn.Linear4bit(linear.in_features, linear.out_features, False, compute_dtype=linear.weight.dtype)
            small.weight = bnb.nn.Params4bit(
                linear.weight.data,
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=True,  # pyright: ignore[reportCallIssue]
            )
            small.bias = linear.bias
            layer.set_submodule(name, small.to(device))

    config = config_of(shape, image_tokens)
    text: Any = config.text_config
    count, text.num_hidden_layers = text.num_hidden_layers, 1
    with device:
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        layers = language_layers(model)
        quantize(layers[0])
        while len(layers) < count:
            layer = type(layers[0])(text, len(layers)).to(torch.bfloat16)
            quantize(layer)
            layers.append(layer)
    text.num_hidden_layers = count
    return model


def config_of(shape: Shape, image_tokens: int) -> transformers.LlavaConfig:
    """image_tokens: a square."""
    side = round(image_tokens**0.5)
    vision = shape.vision(**shape.tower, patch_size=shape.patch_size, image_size=side * shape.patch_size)
    siglip = vision.model_type == "siglip_vision_model"
    return transformers.LlavaConfig(
        vision_config=vision,
        text_config=copy.deepcopy(shape.text),  # trainers write their tokenizer's ids into it
        image_token_id=shape.text.vocab_size - 1,
        image_seq_length=side**2,
        vision_feature_layer=-1 if siglip else -2,
        vision_feature_select_strategy="full" if siglip else "default",
    )


def adapter(lora_r: int = 64) -> LoraConfig:
    """The paper's: every linear layer of the language model, α = 2r, no dropout."""
    return LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules=LANGUAGE_LINEAR)
