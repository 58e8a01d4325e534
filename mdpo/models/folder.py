"""A model folder's files before anything is built from them: present, whole, and not somebody's code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mdpo.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What from_pretrained reads of a folder, as far as it is JSON.
_JSON = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "chat_template.json", "adapter_config.json",
)  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises InputError that names the file where it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(f"{path} is damaged: not JSON ({short(error)}); copy it again from where it came") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: expected an object, found a {type(value).__name__}; copy it again")
    return value


def check_json_files(folder: Path) -> None:
    """Raises InputError for the first of the folder's settings files that is torn."""
    for name in _JSON:
        if (folder / name).is_file():
            read_object(folder / name)


def check_safetensors(path: Path) -> list[str]:
    """The names of the file's tensors. Raises InputError where the file is missing, cut short or not safetensors."""
    if not path.is_file():
        raise InputError(f"{path} is missing; copy it again from where it came")
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} is damaged or was not copied to its end ({size} bytes: {short(error)}); copy it again"
        ) from error


def weight_names(folder: Path) -> list[str]:
    """The names of the files that hold the model's weights: one, or those that the index names. They may be missing.

    Raises InputError for a damaged index, and for one that leads out of the folder.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [WEIGHTS]
    table = read_object(index).get("weight_map")
    names = list(table.values()) if isinstance(table, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{index} is damaged: its weight_map does not name files of the folder")
    return sorted(set(names))


def check_weight_files(folder: Path) -> None:
    """Raises InputError where the folder's weights are not safetensors, or a file of them is missing or cut short."""
    names = weight_names(folder)
    if names == [WEIGHTS] and not (folder / WEIGHTS).is_file():
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        remedy = f"{pickles[0]} is a pickle, which is not read: save the model again as safetensors" if pickles else None
        raise InputError(f"{folder} has no {WEIGHTS} (or {INDEX}); {remedy or 'copy the weights there'}")
    for name in names:
        check_safetensors(folder / name)


def check_not_quantized(folder: Path, config: dict[str, Any]) -> None:
    """Raises InputError for weights that somebody else has quantised (AWQ, GPTQ, fp8): what trains and what the
    reference is would be another model than the one that was quantised. bitsandbytes' own are left to load_in_4bit."""
    settings = config.get("quantization_config")
    if not settings:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method not in ("bitsandbytes", None):
        raise InputError(
            f"{folder}: the weights are quantised with {method}, which is not trained on here; give the folder of the "
            "unquantised model, with load_in_4bit where memory is short"
        )


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def short(error: BaseException, limit: int = 240) -> str:
    """A library's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
