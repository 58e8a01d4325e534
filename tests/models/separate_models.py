"""Image-text-to-text models that no packed row is made of, tiny and random, and pictures as their processors return
them.

A picture has sizes of its own where the family takes any, so that a batch of several is filled up as it would be in
training.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

IMAGE = 3  # the placeholder's id
VOCABULARY = 400

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 2,
    "max_position_embeddings": 512,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
GRID_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "spatial_merge_size": 2,
    "num_position_embeddings": 64,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
MARKS = {
    "video_token_id": 7,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
    "image_start_token_id": 5,
    "image_end_token_id": 6,
    "video_start_token_id": 8,
    "video_end_token_id": 9,
}

Images = dict[str, Tensor]


class Tiny(NamedTuple):
    """config: what the model's config is made of. images: a picture, of the given number of patches each way. tokens:
    that a picture of 4 times 2 patches takes, and one of 2 times 4."""

    config: dict[str, Any]
    images: Callable[[torch.Generator, int, int], Images]
    tokens: tuple[int, int]


def square(generator: torch.Generator, rows: int, columns: int) -> Images:
    return {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)}


def tiles(generator: torch.Generator, rows: int, columns: int) -> Images:
    """As many tiles as the picture has columns."""
    return {"pixel_values": torch.randn(columns, 3, 32, 32, generator=generator)}


def listed_tiles(generator: torch.Generator, rows: int, columns: int) -> Images:
    """One picture of as many tiles as it has columns, and a mask."""
    mask = torch.ones(1, columns, 32, 32, dtype=torch.int64)
    return {"pixel_values": torch.randn(1, columns, 3, 32, 32, generator=generator), "pixel_attention_mask": mask}


def sized(generator: torch.Generator, rows: int, columns: int) -> Images:
    """Of any size, which is told."""
    sizes = torch.tensor([[8 * rows, 8 * columns]])
    return {"pixel_values": torch.randn(1, 3, 8 * rows, 8 * columns, generator=generator), "image_sizes": sizes}


def grid(generator: torch.Generator, rows: int, columns: int, values: int = 3 * 2 * 4 * 4) -> Images:
    """Patches one behind the other, and how they stood."""
    patches = torch.randn(rows * columns, values, generator=generator)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}


def resolutions(generator: torch.Generator, rows: int, columns: int) -> Images:
    """The whole picture and the tiles of its best resolution, as LLaVA-NeXT and OneVision have it."""
    values = torch.randn(1, 3, 3, 32, 32, generator=generator)
    return {"pixel_values": values, "image_sizes": torch.tensor([[32, 64] if columns > rows else [64, 32]])}


def llava(**changes: Any) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_id": IMAGE,
        **changes,
    }


def siglip(text: str, **changes: Any) -> dict[str, Any]:
    vision = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
    return {"text_config": {"model_type": text, **TEXT}, "vision_config": vision, "image_token_id": IMAGE, **changes}


def multimodal_rope(
    text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    return {
        "text_config": {**TEXT, "rope_parameters": MROPE, **(text or {})},
        "vision_config": {**GRID_VISION, **(vision or {})},
        "image_token_id": IMAGE,
        **MARKS,
        **changes,
    }


GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
PINPOINTS = [[32, 64], [64, 32]]


def gemma4(**text: Any) -> dict[str, Any]:
    """The small kind: embeddings for every layer, keys and values of an earlier layer, a cap on the logits."""
    own = {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 16,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 1,
        "final_logit_softcapping": 3.0,
        "global_head_dim": 16,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 8,
        "pooling_kernel_size": 2,
        "position_embedding_size": 16,
    }
    return {
        "text_config": {**TEXT, **own, **text},
        "vision_config": vision,
        "image_token_id": IMAGE,
        "video_token_id": 7,
        "audio_token_id": 8,
        "boi_token_id": 5,
        "eoi_token_id": 6,
    }


def positioned(generator: torch.Generator, rows: int, columns: int) -> Images:
    """Patches with where they stand, (-1, -1) for fill."""
    places = torch.cartesian_prod(torch.arange(columns), torch.arange(rows))
    fill = torch.full((16 - len(places), 2), -1)
    values = torch.rand(1, 16, 3 * 8 * 8, generator=generator)
    values[:, len(places) :] = 0
    return {"pixel_values": values, "image_position_ids": torch.cat([places, fill])[None]}


MODELS: dict[str, Tiny] = {
    "gemma3": Tiny(
        {
            "text_config": {**TEXT, **GEMMA},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "image_token_id": IMAGE,
            "mm_tokens_per_image": 4,
        },
        tiles,
        (8, 16),
    ),
    "paligemma": Tiny(siglip("gemma", projection_dim=32), tiles, (32, 64)),
    "mistral3": Tiny(
        {
            "text_config": {"model_type": "mistral", **TEXT, "sliding_window": None},
            "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 8},
            "image_token_id": IMAGE,
            "spatial_merge_size": 2,
        },
        sized,
        (2, 2),
    ),
    "qwen3_5": Tiny(
        multimodal_rope(
            {**LINEAR, "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}}
        ),
        grid,
        (2, 2),
    ),
    "qwen3_5_moe": Tiny(
        multimodal_rope(
            {
                **LINEAR,
                **EXPERTS,
                "shared_expert_intermediate_size": 16,
                "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            }
        ),
        grid,
        (2, 2),
    ),
    "glm4v": Tiny(multimodal_rope({"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}), grid, (2, 2)),
    "glm4v_moe": Tiny(
        multimodal_rope(
            {
                "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0},
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "n_shared_experts": 1,
                "first_k_dense_replace": 1,
            }
        ),
        grid,
        (2, 2),
    ),
    "glm46v": Tiny(
        multimodal_rope(
            {"model_type": "glm4v_text", "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
            {"model_type": "glm4v_vision"},
        ),
        grid,
        (2, 2),
    ),
    "glm_ocr": Tiny(multimodal_rope({"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}), grid, (2, 2)),
    "idefics2": Tiny(
        {
            "text_config": {"model_type": "mistral", **TEXT, "sliding_window": None},
            "vision_config": VISION,
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
            },
            "image_token_id": IMAGE,
        },
        listed_tiles,
        (8, 16),
    ),
    "llava_onevision": Tiny(siglip("qwen2", image_grid_pinpoints=PINPOINTS), resolutions, (56, 52)),
    "llava_next_video": Tiny(
        llava(image_grid_pinpoints=PINPOINTS, video_token_id=7, vision_feature_layer=-1), resolutions, (56, 52)
    ),
    "vipllava": Tiny(llava(vision_feature_layer=[-1, -2]), tiles, (32, 64)),
    "aya_vision": Tiny(siglip("cohere2"), tiles, (8, 16)),
    "cohere2_vision": Tiny(siglip("cohere2", alignment_intermediate_size=32), tiles, (8, 16)),
    "deepseek_vl": Tiny(siglip("llama"), tiles, (32, 64)),
    "janus": Tiny(
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {**VISION, "projection_dim": 32},
            "image_token_id": IMAGE,
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 8,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1],
                "num_res_blocks": 1,
                "projection_dim": 32,
                "image_token_embed_dim": 16,
                "num_patches": 4,
            },
        },
        tiles,
        (32, 64),
    ),
    "got_ocr2": Tiny(
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {
                "hidden_size": 16,
                "output_channels": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 16,
                "mlp_dim": 16,
                "global_attn_indexes": [0],
                "window_size": 0,
            },
            "image_token_id": IMAGE,
        },
        lambda g, r, c: {"pixel_values": torch.randn(1, 3, 64, 64, generator=g)},
        (1, 1),
    ),
    "lighton_ocr": Tiny(
        {
            "text_config": {"model_type": "qwen3", **TEXT},
            "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 8},
            "image_token_id": IMAGE,
            "spatial_merge_size": 2,
        },
        sized,
        (2, 2),
    ),
    "llama4": Tiny(
        {
            "text_config": {
                **TEXT,
                "intermediate_size_mlp": 32,
                "num_local_experts": 2,
                "interleave_moe_layer_step": 2,
            },
            "vision_config": {
                **VISION,
                "intermediate_size": 64,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "pixel_shuffle_ratio": 0.5,
            },
            "image_token_id": IMAGE,
        },
        tiles,
        (8, 16),
    ),
    "lfm2_vl": Tiny(
        {
            "text_config": {
                "model_type": "lfm2",
                **TEXT,
                "layer_types": ["conv", "full_attention"],
                "block_auto_adjust_ff_dim": False,
            },
            "vision_config": {"model_type": "siglip2_vision_model", **VISION, "num_patches": 16},
            "image_token_id": IMAGE,
            "projector_hidden_size": 16,
        },
        lambda g, r, c: {
            "pixel_values": torch.randn(1, 32, 3 * 64, generator=g) * (torch.arange(32) < r * c)[:, None],
            "spatial_shapes": torch.tensor([[r, c]]),
            "pixel_attention_mask": (torch.arange(32) < r * c)[None].long(),
        },
        (2, 2),
    ),
    "ovis2": Tiny(
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {**VISION, "num_visual_indicator_tokens": 2, "hidden_stride": 2, "vocab_size": 32},
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": [10, 11],
            "hidden_size": 32,
            "vocab_size": VOCABULARY,
        },
        tiles,
        (8, 16),
    ),
    "video_llava": Tiny(llava(video_token_id=7, vision_feature_layer=-1), tiles, (32, 64)),
    "granite4_vision": Tiny(
        llava(
            image_grid_pinpoints=PINPOINTS,
            vision_config={"model_type": "clip_vision_model", **VISION, "hidden_size": 64},
            downsample_rate="1/2",
            deepstack_layer_map=[[-1, 0]],
            spatial_target_layers=[1],
            projector_dropout=0.0,
            qformer_config={
                "model_type": "blip_2_qformer",
                "hidden_size": 16,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "encoder_hidden_size": 16,
            },
            text_config={**TEXT, "logits_scaling": 4.0},
        ),
        resolutions,
        (16, 14),
    ),
    "aria": Tiny(
        {
            "text_config": {**TEXT, "moe_num_experts": 2, "moe_topk": 1, "moe_num_shared_experts": 1},
            "vision_config": {"model_type": "idefics3_vision", **VISION},
            "image_token_id": IMAGE,
            "projector_patch_to_query_dict": {16: 4},
        },
        lambda g, r, c: {
            "pixel_values": torch.randn(1, 3, 32, 32, generator=g),
            "pixel_mask": torch.ones(1, 32, 32, dtype=torch.bool),
        },
        (4, 4),
    ),
    "gemma4": Tiny(gemma4(), positioned, (2, 2)),
    "exaone4_5": Tiny(
        {
            "text_config": {
                "model_type": "exaone4",
                **TEXT,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": GRID_VISION | {"num_key_value_heads": 2},
            "image_token_id": IMAGE,
            **MARKS,
        },
        grid,
        (2, 2),
    ),
    "hyperclovax_vision_v2": Tiny(
        {
            "text_config": {"model_type": "hyperclovax", **TEXT, "logits_scaling": 0.25},
            "vision_config": {
                "model_type": "qwen2_5_vl_vision",
                **GRID_VISION,
                "window_size": 16,
                "fullatt_block_indexes": [0],
            },
            "image_token_id": IMAGE,
            **MARKS,
        },
        grid,
        (2, 2),
    ),
    "video_llama_3": Tiny(
        {"text_config": {"model_type": "qwen2", **TEXT}, "vision_config": VISION, "image_token_id": IMAGE, **MARKS},
        lambda g, r, c: grid(g, r, c, 3 * 8 * 8) | {"image_merge_sizes": torch.tensor([2])},
        (2, 2),
    ),
    "mistral_large4": Tiny(
        {
            "text_config": {
                **TEXT,
                "num_key_value_heads": 2,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 16,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "index_head_dim": 16,
                "index_n_heads": 2,
            },
            "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 8},
            "image_token_id": IMAGE,
            "spatial_merge_size": 2,
        },
        sized,
        (2, 2),
    ),
    "cosmos3_omni": Tiny(
        multimodal_rope(
            {"model_type": "qwen3_vl_text", "rope_parameters": {**MROPE, "mrope_interleaved": True}},
            {"model_type": "qwen3_vl_vision", "deepstack_visual_indexes": [0]},
        ),
        grid,
        (2, 2),
    ),
    "qianfan_ocr": Tiny(
        {
            "text_config": {"model_type": "qwen3", **TEXT},
            "vision_config": VISION,
            "image_token_id": IMAGE,
            "downsample_ratio": 0.5,
        },
        tiles,
        (8, 16),
    ),
}


def build(kind: str, seed: int = 0, vocabulary: int = VOCABULARY):
    config = AutoConfig.for_model(kind, **copy.deepcopy(MODELS[kind].config))
    config.get_text_config().vocab_size = vocabulary
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():  # the default initialisation is so flat that errors would hide in it
        for parameter in model.parameters():
            parameter.copy_(parameter.nan_to_num() + 0.05 * torch.randn_like(parameter))
    return model
