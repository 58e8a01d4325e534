"""A model and its processor from a folder."""

from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import is_torchvision_available

from mdpo.errors import InputError


def load(path: str | Path, *, dtype: str = "auto") -> PreTrainedModel:
    """The bare Hugging Face model at ``path``: config and safetensors weights are enough.

    dtype: "auto" keeps the checkpoint's, else a torch dtype's name such as "bfloat16".

    Raises InputError where the folder is missing, holds an adapter alone, or is not an image-text model.
    """
    folder = _existing(path)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"{folder} holds an adapter alone; give the base model's folder, and the adapter with --adapter"
            )
        raise InputError(f"{folder} has no config.json: not a Hugging Face model folder")
    try:
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} does not load as an image-text model: {error}") from error


def load_processor(path: str | Path) -> ProcessorMixin:
    """The processor at ``path``. Raises InputError where there is none that handles images."""
    folder = _existing(path)
    # Named, because without torchvision transformers falls back to Pillow with a warning for every processor.
    backend = {} if is_torchvision_available() else {"backend": "pil"}
    try:
        processor = AutoProcessor.from_pretrained(folder, **backend)
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
