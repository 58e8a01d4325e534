"""Bunny's official layout → a LLaVA in transformers' terms: SigLIP tower, two-layer GELU projector, Phi."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PhiConfig,
    SiglipVisionConfig,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mdpo.errors import InputError

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
_WEIGHTS = "model.safetensors"
_TOWER = "model.vision_tower.vision_tower.vision_model."
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# The answer follows "ASSISTANT:" after a space, as in Bunny's tuning data.
_CHAT_TEMPLATE = (
    "{{ '" + _SYSTEM.replace("'", "\\'") + " ' }}"
    "{% for message in messages %}"
    "{% set content = message['content'] if message['content'] is not string "
    "else [{'type': 'text', 'text': message['content']}] %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for part in content if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def convert_bunny(source: str | Path, destination: str | Path) -> Path:
    """Writes the checkpoint at ``source`` to ``destination`` for ``mdpo.models.load``; returns ``destination``.

    A source with ``config.json`` and safetensors weights alone is enough. Where it has a tokenizer too, a
    ``LlavaProcessor`` is written beside the weights. Vision sizes come from the config's ``vision_config``, which
    describes the tower before Bunny drops its last layer, else from siglip-so400m-patch14-384.

    Raises InputError where the source is no Bunny-Phi checkpoint or its weights do not fit its config.
    """
    source, destination = Path(source), Path(destination)
    official = _read_config(source)
    weights = _read_weights(source)
    model = _build(official, weights)
    if destination.exists() and any(destination.iterdir()):
        raise InputError(f"{destination} is not empty; give a new folder")
    processor = _processor(source, model.config)
    if processor is not None:
        processor.save_pretrained(destination)
    model.save_pretrained(destination)
    return destination


def _read_config(source: Path) -> dict:
    path = source / "config.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: not a checkpoint folder")
    official = json.loads(path.read_text())
    if official.get("model_type") != "bunny-phi":
        raise InputError(f"{path}: model_type is {official.get('model_type')!r}, only 'bunny-phi' is converted")
    if official.get("mm_projector_type") != "mlp2x_gelu":
        raise InputError(f"{path}: mm_projector_type {official.get('mm_projector_type')!r} is not 'mlp2x_gelu'")
    return official


def _read_weights(source: Path) -> dict[str, Tensor]:
    index = source / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [_WEIGHTS]
    weights = {}
    for path in (source / name for name in names):
        if not path.is_file():
            raise InputError(f"{path} does not exist; only safetensors are read, for other formats hold pickles")
        with safe_open(path, "pt") as shard:
            weights.update((name, shard.get_tensor(name)) for name in shard.keys())
    return weights


def _build(official: dict, weights: dict[str, Tensor]) -> LlavaForConditionalGeneration:
    vision = {**_SIGLIP_SO400M, **official.get("vision_config", {})}
    vision = {key: vision[key] for key in _VISION_KEYS if key in vision}
    # The checkpoint holds the layers that are left, and the features are the last one's, before post_layernorm.
    vision["num_hidden_layers"] = _tower_layers(weights)
    text = {key: official[key] for key in _PHI_KEYS if official.get(key) is not None}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=PhiConfig(**text),
        image_token_id=text["vocab_size"] - 1,  # embeddings are padded past the tokenizer's last id
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        dtype=str(weights["model.embed_tokens.weight"].dtype).removeprefix("torch."),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    expected = model.state_dict()
    renamed = {_rename(name, expected): tensor for name, tensor in weights.items()}
    # The pooling head reads nothing that the language model sees; older saves carry a rotary buffer.
    renamed = {n: t for n, t in renamed.items() if ".vision_tower.head." not in n and not n.endswith("inv_freq")}
    if config.tie_word_embeddings:
        renamed.setdefault("lm_head.weight", renamed["model.language_model.embed_tokens.weight"])
    for name, tensor in _unused_norm(expected, renamed):
        renamed[name] = tensor
    problems = [f"missing {name}" for name in expected.keys() - renamed.keys()]
    problems += [f"unknown {name}" for name in renamed.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(renamed[name].shape)}, config says {tuple(expected[name].shape)}"
        for name in expected.keys() & renamed.keys()
        if renamed[name].shape != expected[name].shape
    ]
    if problems:
        raise InputError(f"the weights do not fit config.json: {'; '.join(sorted(problems)[:5])}")
    model.load_state_dict(renamed, assign=True)
    return model


def _tower_layers(weights: dict[str, Tensor]) -> int:
    prefix = f"{_TOWER}encoder.layers."
    layers = {int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix)}
    if not layers:
        raise InputError("the checkpoint holds no vision tower; save it together with the tower's weights")
    return max(layers) + 1


def _rename(name: str, expected: dict[str, Tensor]) -> str:
    if name.startswith(_TOWER):
        # versions of transformers differ by one level in the tower's names
        nested = "model.vision_tower.vision_model."
        is_nested = any(key.startswith(nested) for key in expected)
        return (nested if is_nested else "model.vision_tower.") + name[len(_TOWER) :]
    if name.startswith("model.mm_projector."):
        _, _, layer, parameter = name.split(".")
        return f"model.multi_modal_projector.linear_{1 if layer == '0' else 2}.{parameter}"
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name


def _unused_norm(expected: dict[str, Tensor], renamed: dict[str, Tensor]):
    """post_layernorm comes after the features are taken: some saves leave it out, and its value is never read."""
    for name, tensor in expected.items():
        if ".post_layernorm." in name and name not in renamed:
            yield name, torch.full(tensor.shape, float(name.endswith("weight")), dtype=tensor.dtype)


def _processor(source: Path, config: LlavaConfig) -> LlavaProcessor | None:
    """The processor, where the source has a tokenizer; the image token takes the next free id."""
    if not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return None
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    if config.image_token_id >= config.text_config.vocab_size:
        raise InputError(f"{source}: no room for the image token: the vocabulary's {len(tokenizer)} ids are all taken")
    tokenizer.image_token = "<image>"
    side = config.vision_config.image_size
    # Bunny pads an image to a square of its mean colour, then resizes.
    image_processor = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=_CHAT_TEMPLATE,
    )
