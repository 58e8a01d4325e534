"""Tiny random models, their processors and preference rows: seconds on a CPU, the real classes all the way."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import InternVLProcessor, Qwen2VLProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SIDE, PATCH = 32, 8
VOCABULARY = 400
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WORDS = "a an the cat dog red blue big small sits runs on under table grass and with sees one two three".split()

# In one of two layers, and shorter than every prompt with an image
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]}
_TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT_CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_TEXT, num_attention_heads=4),
    "llama-gqa": lambda: transformers.LlamaConfig(**_TEXT, num_attention_heads=4, num_key_value_heads=2),
    "mistral": lambda: transformers.MistralConfig(
        **_TEXT, num_attention_heads=4, num_key_value_heads=2, sliding_window=None
    ),
    "mistral-window": lambda: transformers.MistralConfig(
        **_TEXT, num_attention_heads=4, num_key_value_heads=2, sliding_window=6
    ),
    "phi": lambda: transformers.PhiConfig(**_TEXT, num_attention_heads=2, partial_rotary_factor=0.4),
    "qwen2": lambda: transformers.Qwen2Config(**_TEXT, num_attention_heads=4, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**_TEXT, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    "qwen3-window": lambda: transformers.Qwen3Config(
        **_TEXT, **WINDOW, num_attention_heads=4, num_key_value_heads=2, head_dim=8
    ),
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=["<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "what is this? USER: ASSISTANT:"] * 8, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def processor(
    text: transformers.PreTrainedTokenizerFast | None = None, template: str = TEMPLATE, *, class_token: bool = True
) -> transformers.LlavaProcessor:
    """class_token: whether the tower has one, as CLIP's has and SigLIP's has not."""
    return transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        text or tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default" if class_token else "full",
        num_additional_image_tokens=int(class_token),
        chat_template=template,
    )


def llava_next_processor() -> transformers.LlavaNextProcessor:
    return transformers.LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


class _PicturesAlone(InternVLProcessor):
    """InternVL's processor without its video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def internvl_processor() -> InternVLProcessor:
    names = ("start_image_token", "<img>"), ("end_image_token", "</img>"), ("context_image_token", "<image>")
    plain = tokenizer()
    return _PicturesAlone(
        GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=plain.backend_tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            extra_special_tokens=dict(names) | {"video_token": "<video>"},
        ),
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        chat_template=TEMPLATE,
    )


class _Qwen2VLPicturesAlone(Qwen2VLProcessor):
    """Without its video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def qwen2_vl_processor() -> Qwen2VLProcessor:
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    images = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=16 * 16, max_pixels=64 * 64)
    return _Qwen2VLPicturesAlone(images, words, chat_template=TEMPLATE)


def idefics3_processor() -> transformers.Idefics3Processor:
    images = Idefics3ImageProcessorPil(size={"longest_edge": 4 * SIDE}, max_image_size={"longest_edge": SIDE})
    return transformers.Idefics3Processor(images, tokenizer(), image_seq_len=4, chat_template=TEMPLATE)


def llava(text: str = "llama", seed: int = 0) -> transformers.LlavaForConditionalGeneration:
    return _build(
        transformers.LlavaForConditionalGeneration,
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**_VISION),
            text_config=TEXT_CONFIGS[text](),
            image_token_id=3,
            image_seq_length=(SIDE // PATCH) ** 2,
        ),
        seed,
    )


# LLaVA-NeXT's resolutions, scaled down
PINPOINTS = [[SIDE * height, SIDE * width] for height, width in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def llava_next(
    text: str = "mistral", tower: str = "clip", seed: int = 0
) -> transformers.LlavaNextForConditionalGeneration:
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION) if tower == "clip" else _siglip(),
        text_config=TEXT_CONFIGS[text](),
        image_token_id=3,
        image_seq_length=(SIDE // PATCH) ** 2,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    return _build(transformers.LlavaNextForConditionalGeneration, config, seed)


def llava_onevision(seed: int = 0) -> transformers.LlavaOnevisionForConditionalGeneration:
    """Of pictures of more than two tiles the patches are scaled down."""
    config = transformers.LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=TEXT_CONFIGS["qwen2"](),
        image_token_index=3,
        video_token_index=7,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    return _build(transformers.LlavaOnevisionForConditionalGeneration, config, seed)


def _siglip() -> transformers.SiglipVisionConfig:
    return transformers.SiglipVisionConfig(**_VISION, vision_use_head=False)


def bunny(seed: int = 0) -> transformers.LlavaForConditionalGeneration:
    return _build(
        transformers.LlavaForConditionalGeneration,
        transformers.LlavaConfig(
            vision_config=_siglip(),
            text_config=TEXT_CONFIGS["phi"](),
            image_token_id=3,
            image_seq_length=(SIDE // PATCH) ** 2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        seed,
    )


def idefics3(seed: int = 0) -> transformers.Idefics3ForConditionalGeneration:
    return _build(transformers.Idefics3ForConditionalGeneration, transformers.Idefics3Config(**_idefics3()), seed)


def smolvlm(seed: int = 0) -> transformers.SmolVLMForConditionalGeneration:
    """With tied embeddings, as the small ones have."""
    config = transformers.SmolVLMConfig(**_idefics3(tie_word_embeddings=True))
    return _build(transformers.SmolVLMForConditionalGeneration, config, seed)


def _idefics3(**changes) -> dict:
    text = {"model_type": "llama", **_TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 2}
    return {"text_config": text, "vision_config": _VISION, "image_token_id": 3, "scale_factor": 2, **changes}


def internvl(text: str = "qwen2", seed: int = 0) -> transformers.InternVLForConditionalGeneration:
    config = transformers.InternVLConfig(
        vision_config=_VISION,
        text_config=TEXT_CONFIGS[text](),
        image_token_id=3,
        downsample_ratio=0.5,
        tie_word_embeddings=text == "qwen2",
    )
    return _build(transformers.InternVLForConditionalGeneration, config, seed)


_QWEN_IDS = {"image_token_id": 3, "vision_start_token_id": 5, "vision_end_token_id": 6, "video_token_id": 7}


def _mrope(**changes) -> dict:
    return {
        **_TEXT,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_theta": 1e4,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        **changes,
    }


def qwen2_vl(seed: int = 0, **text) -> transformers.Qwen2VLForConditionalGeneration:
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    config = transformers.Qwen2VLConfig(text_config=_mrope(**text), vision_config=vision, **_QWEN_IDS)
    return _build(transformers.Qwen2VLForConditionalGeneration, config, seed)


def qwen2_5_vl(seed: int = 0, **text) -> transformers.Qwen2_5_VLForConditionalGeneration:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "spatial_merge_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=_mrope(**text), vision_config=vision, **_QWEN_IDS)
    return _build(transformers.Qwen2_5_VLForConditionalGeneration, config, seed)


# Two levels of deepstack features for three text layers
_QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "spatial_merge_size": 2,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}
_QWEN3_TEXT = {
    **_TEXT,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [2, 3, 3],
        "mrope_interleaved": True,
        "rope_theta": 1e4,
    },
    "tie_word_embeddings": False,
}


def qwen3_vl(seed: int = 0) -> transformers.Qwen3VLForConditionalGeneration:
    config = transformers.Qwen3VLConfig(text_config=_QWEN3_TEXT, vision_config=_QWEN3_VISION, **_QWEN_IDS)
    return _build(transformers.Qwen3VLForConditionalGeneration, config, seed)


def glm4v(seed: int = 0) -> transformers.Glm4vForConditionalGeneration:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "image_size": 32,
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    text = {**_QWEN3_TEXT, "num_hidden_layers": 2, "rope_parameters": rope}
    config = transformers.Glm4vConfig(text_config=text, vision_config=vision, **_QWEN_IDS)
    return _build(transformers.Glm4vForConditionalGeneration, config, seed)


_QWEN3_5_VISION = {name: value for name, value in _QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
_QWEN3_5_TEXT = {
    **_QWEN3_TEXT,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "rope_parameters": {**_QWEN3_TEXT["rope_parameters"], "partial_rotary_factor": 1.0},
}


def qwen3_5(seed: int = 0) -> transformers.Qwen3_5ForConditionalGeneration:
    config = transformers.Qwen3_5Config(text_config=_QWEN3_5_TEXT, vision_config=_QWEN3_5_VISION, **_QWEN_IDS)
    return _remembering(_build(transformers.Qwen3_5ForConditionalGeneration, config, seed))


def qwen3_5_moe(seed: int = 0) -> transformers.Qwen3_5MoeForConditionalGeneration:
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    text = {**_QWEN3_5_TEXT, **experts}
    config = transformers.Qwen3_5MoeConfig(text_config=text, vision_config=_QWEN3_5_VISION, **_QWEN_IDS)
    return _remembering(_build(transformers.Qwen3_5MoeForConditionalGeneration, config, seed))


def _remembering(model):
    """With states that last for a prompt: as they are drawn, most are gone after a token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.sub_(parameter.mean() + 3)
    return model


def gemma4(seed: int = 0) -> transformers.Gemma4ForConditionalGeneration:
    """The small kind: embeddings for every layer, keys and values of an earlier layer, larger heads where there is no
    window, a cap on the logits."""
    text = {
        **_TEXT,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 6,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
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
    config = transformers.Gemma4Config(
        text_config=text,
        vision_config=vision,
        image_token_id=3,
        video_token_id=7,
        audio_token_id=8,
        boi_token_id=5,
        eoi_token_id=6,
    )
    return _build(transformers.Gemma4ForConditionalGeneration, config, seed)


def qwen3_vl_moe(seed: int = 0) -> transformers.Qwen3VLMoeForConditionalGeneration:
    text = {**_QWEN3_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=_QWEN3_VISION, **_QWEN_IDS)
    return _build(transformers.Qwen3VLMoeForConditionalGeneration, config, seed)


def _build(kind, config, seed: int):
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():  # the default initialisation is so flat that errors would hide in it
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def records(folder: Path, count: int, *, seed: int = 0) -> list[dict]:
    """Rows in the mDPO format, their images written below ``folder``."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        pixels = generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        chosen, rejected = (" ".join(generator.choice(WORDS, generator.integers(2, 7))) for _ in range(2))
        rows.append(
            {
                "id": f"row{index}",
                "img_path": f"{index}.png",
                "prompt": "what is this?",
                "chosen": chosen,
                "rejected": rejected,
            }
        )
    return rows


# Families whose processor AutoProcessor reads without torchvision
WORLDS = {
    "llava": (llava, processor),
    "llava_next": (llava_next, llava_next_processor),
    "bunny": (bunny, lambda: processor(class_token=False)),
}


def world(folder: Path, count: int = 12, family: str = "llava") -> tuple[Path, Path]:
    """A model folder and a data file, as a user has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in WORLDS[family]:
        make().save_pretrained(folder / "model")
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in records(folder, count)))
    return folder / "model", data
