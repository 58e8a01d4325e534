"""A config against the weights beside it, before memory is taken: what does not fit by far is not built."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from mdpo.errors import InputError

from .folder import check_layers, read_object, short

# Spelled out in every call: without the first, transformers asks on a terminal whether to run the folder's code;
# without the second it asks the hub for what the folder lacks.
LOCAL = {"trust_remote_code": False, "local_files_only": True}

_PACKED = 8  # weights in 4 bits, two a byte, beside their scales
_TIMES = 2  # heads that are saved once and used twice, norms that are not read
_SLACK = 2**22  # numbers


def check_proportion(kind: Any, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Builds the model of the folder's config without memory, and counts its numbers.

    Args:
        kind: a model class, or an auto class.
        folder: of config.json.
        shapes: of the folder's weights, by name.

    Raises InputError where the config is none of ``kind``'s, or asks for several times the numbers that the weights
    have.
    """
    path = folder / "config.json"
    check_layers(path, len(shapes))
    automatic = hasattr(kind, "from_config")
    config = model_config(folder)
    try:
        if not automatic:  # of a config of several models, the class takes its own part
            config = kind.config_class.from_pretrained(folder, **LOCAL)
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=False) if automatic else kind(config)
    except Exception as error:  # transformers raises whatever a foreign config leads it to
        raise InputError(f"{folder} does not load as {called(kind)}: {short(error)}") from error
    asked = sum(parameter.numel() for parameter in model.parameters())
    asked += sum(buffer.numel() for buffer in model.buffers())
    stored = sum(prod(shape) for shape in shapes.values())
    times = _PACKED if getattr(config, "quantization_config", None) else _TIMES
    if asked > times * stored + _SLACK:
        raise InputError(
            f"{path} asks for {asked:,} numbers, but the weights hold {stored:,}; give the config.json that "
            "belongs to these weights"
        )


def model_config(folder: Path) -> Any:
    """The config of the model at ``folder``.

    Raises InputError where it is torn, or of no model that transformers has.
    """
    read_object(folder / "config.json")
    try:
        return AutoConfig.from_pretrained(folder, **LOCAL)
    except Exception as error:  # transformers raises whatever a foreign file leads it to
        raise InputError(f"{folder / 'config.json'} is not a model's config: {short(error)}") from error


def called(kind: Any) -> str:
    """What a model class is called in messages."""
    return "an image-text model" if kind is AutoModelForImageTextToText else kind.__name__
