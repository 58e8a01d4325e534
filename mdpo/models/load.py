"""A model and its processor from a folder."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import is_torchvision_available

from mdpo.errors import InputError

from .quantize import check_quantized, keep_training_layout, nf4_config


def load(path: str | Path, *, dtype: str = "auto", load_in_4bit: bool = False) -> PreTrainedModel:
    """The bare Hugging Face model at ``path``: config and safetensors weights are enough.

    dtype: "auto" keeps the checkpoint's, else a torch dtype's name such as "bfloat16".
    load_in_4bit: the language model's linear layers in NF4, computed in dtype; tower, projector and head keep dtype.
        On the GPU where there is one.

    Raises InputError where the folder is missing, holds an adapter alone, or is not an image-text model.
    """
    folder = _existing(path)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"{folder} holds an adapter alone; give the base model's folder, and the adapter with --adapter"
            )
        raise InputError(f"{folder} has no config.json: not a Hugging Face model folder")
    quantization = {"quantization_config": nf4_config(_dtype(folder, dtype))} if load_in_4bit else {}
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True, **quantization)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} does not load as an image-text model: {error}") from error
    if load_in_4bit:
        check_quantized(model)
        keep_training_layout(model)
    return model


def _dtype(folder: Path, name: str) -> torch.dtype:
    """The dtype that ``name`` stands for; "auto" is the checkpoint's, float32 where its config names none."""
    found = AutoConfig.from_pretrained(folder).dtype or torch.float32 if name == "auto" else name
    return torch_dtype(found) if isinstance(found, str) else found


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name. Raises InputError where torch has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype {name!r} is none that torch has; take bfloat16 or float32")
    return dtype


def load_processor(path: str | Path) -> ProcessorMixin:
    """The processor at ``path``. Raises InputError where there is none that handles images."""
    folder = _existing(path)
    # Named, because without torchvision transformers falls back to Pillow with a warning for every processor.
    backend = {} if is_torchvision_available() else {"backend": "pil"}
    try:
        processor = AutoProcessor.from_pretrained(folder, **backend)
    except ImportError as error:  # Qwen-VL, InternVL and SmolVLM have a video processor, which needs torchvision
        raise InputError(f"{folder}: the processor lacks a package, mostly torchvision: {error}") from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} has no processor that loads: {error}") from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise InputError(f"{folder} has a {type(processor).__name__}, but training needs a processor with images")
    return processor


def _existing(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"model folder {folder} does not exist")
    return folder
