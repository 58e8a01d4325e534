"""What the converters share: reading an official LLaVA-like checkpoint, and writing it as transformers' LLaVA."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mdpo.errors import InputError
from mdpo.output_checks import check_output_folder
from mdpo.outputs import whole_folder

from .folder import check_json_files, check_layers, check_safetensors, read_object, short, weight_names

EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
TOWER = "model.vision_tower.vision_tower.vision_model."
_IMAGE = "<image>"
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Vicuna's turns, in LLaVA's and in Bunny's tuning data alike: the answer follows "ASSISTANT:" after a space. A system
# turn takes the place of the default text; what Vicuna has no form for is refused.
_CHAT_TEMPLATE = (
    "{% if tools %}{{ raise_exception('Vicuna has no form for tools') }}{% endif %}"
    "{% if not messages or messages[0]['role'] != 'system' %}{{ '" + _SYSTEM.replace("'", "\\'") + " ' }}{% endif %}"
    "{% for message in messages %}"
    "{% set content = message['content'] if message['content'] is not string "
    "else [{'type': 'text', 'text': message['content']}] %}"
    "{% if message['role'] == 'system' and loop.first %}"
    "{% for part in content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('a system turn holds text alone') }}{% endif %}{% endfor %}{{ ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for part in content if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{{ raise_exception('a system turn stands first') }}"
    "{% else %}{{ raise_exception('Vicuna has no turn for the role ' + message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def check_destination(destination: Path) -> None:
    """Raises InputError where the folder cannot be made, or holds something already: asked before gigabytes
    are read.
    """
    check_output_folder(destination, "destination")
    if destination.exists() and any(destination.iterdir()):
        raise InputError(f"{destination} is not empty; give a new folder")


def read_config(source: Path, model_types: tuple[str, ...]) -> dict:
    """The official config. Raises InputError where it is another layout's, or has another projector."""
    path = source / "config.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: not a checkpoint folder")
    official = read_object(path)
    if "text_config" in official:
        raise InputError(f"{path} is in transformers' layout already: use the folder as it is")
    if official.get("model_type") not in model_types:
        known = " and ".join(map(repr, model_types))
        raise InputError(f"{path}: model_type is {_shown(official.get('model_type'))}, only {known} is converted")
    if official.get("mm_projector_type") != "mlp2x_gelu":
        raise InputError(f"{path}: mm_projector_type {_shown(official.get('mm_projector_type'))} is not 'mlp2x_gelu'")
    return official


def _shown(value: object) -> str:
    return short(ValueError(repr(value)), 60)


@contextmanager
def converting(source: Path) -> Iterator[None]:
    """Makes an InputError that names the source of whatever a foreign config leads transformers and torch to."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{source / 'config.json'} does not convert: {short(error)}; is the checkpoint whole?"
        ) from error


def read_weights(source: Path) -> dict[str, Tensor]:
    """Every tensor by its official name, from one file or from shards. Raises InputError without safetensors."""
    weights = {}
    for path in (source / name for name in weight_names(source)):
        if not path.is_file():
            raise InputError(
                f"{path} does not exist; only safetensors are read, because other formats contain pickles. Where there "
                "are .bin files: torch.load(FILE, weights_only=True) and safetensors.torch.save_file bring them "
                "over, a shard at a time; LLaVA-1.5 is on the hub in transformers' own layout as "
                "llava-hf/llava-1.5-7b-hf"
            )
        check_safetensors(path)
        with safe_open(path, "pt") as shard:
            weights.update((name, shard.get_tensor(name)) for name in shard.keys())
    check_layers(source / "config.json", len(weights))
    if EMBEDDINGS not in weights:
        raise InputError(f"{source} has no {EMBEDDINGS}: not a whole checkpoint; merge an adapter into its base first")
    return weights


def tower_layers(weights: dict[str, Tensor]) -> int:
    """How many layers of the vision tower the checkpoint holds."""
    prefix = f"{TOWER}encoder.layers."
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix)), default=-1)


def build(config: LlavaConfig, weights: dict[str, Tensor]) -> LlavaForConditionalGeneration:
    """The model around the official weights, as they are. Raises InputError where they do not fit ``config``."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    expected = model.state_dict()
    renamed = {_rename(name, expected): tensor for name, tensor in weights.items()}
    # The pooling head reads nothing that the language model sees; older saves carry buffers.
    buffers = ("inv_freq", "position_ids")
    renamed = {n: t for n, t in renamed.items() if ".vision_tower.head." not in n and not n.endswith(buffers)}
    if config.tie_word_embeddings:
        renamed.setdefault(HEAD, renamed["model.language_model.embed_tokens.weight"])
    renamed.update(_unused_norm(expected, renamed))
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


def _rename(name: str, expected: dict[str, Tensor]) -> str:
    if name.startswith(TOWER):
        # versions of transformers differ by one level in the tower's names
        nested = "model.vision_tower.vision_model."
        is_nested = any(key.startswith(nested) for key in expected)
        return (nested if is_nested else "model.vision_tower.") + name[len(TOWER) :]
    if name.startswith("model.mm_projector."):
        _, _, layer, parameter = name.split(".")
        return f"model.multi_modal_projector.linear_{1 if layer == '0' else 2}.{parameter}"
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name


def _unused_norm(expected: dict[str, Tensor], renamed: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """post_layernorm comes after the features are taken: some saves leave it out, and its value is never read."""
    for name, tensor in expected.items():
        if ".post_layernorm." in name and name not in renamed:
            yield name, torch.full(tensor.shape, float(name.endswith("weight")), dtype=tensor.dtype)


def read_tokenizer(source: Path) -> PreTrainedTokenizerBase | None:
    """The source's tokenizer with an image token, which takes the next free id; None where the source has none."""
    if not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return None
    check_json_files(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever a foreign file leads it to
        raise InputError(f"{source} has no tokenizer that loads: {short(error)}") from error
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE]})
    tokenizer.image_token = _IMAGE
    return tokenizer


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return cast(int, tokenizer.convert_tokens_to_ids(_IMAGE))


def build_processor(
    tokenizer: PreTrainedTokenizerBase, config: LlavaConfig, *, mean: list[float], std: list[float], pad: bool
) -> LlavaProcessor:
    """pad: an image to a square of the mean colour, before it is resized; otherwise what sticks out is cut off."""
    vision: Any = config.vision_config
    image_processor = LlavaImageProcessorPil(
        do_pad=pad,
        size={"shortest_edge": vision.image_size},
        crop_size={"height": vision.image_size, "width": vision.image_size},
        image_mean=mean,
        image_std=std,
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(vision.model_type == "clip_vision_model"),
        chat_template=_CHAT_TEMPLATE,
    )


def save(destination: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor | None) -> Path:
    """Writes the folder, whole or not at all. Raises OutputError where the disk is full or refuses."""
    with whole_folder(destination) as part:
        if processor is not None:
            processor.save_pretrained(part)
        model.save_pretrained(part)
    return destination
