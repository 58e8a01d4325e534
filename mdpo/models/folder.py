"""A model folder's files before anything is built from them: present, whole, and not somebody's code."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mdpo.errors import InputError
from mdpo.reading import parse_json, read_bytes
from mdpo.shown import shown

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What from_pretrained reads of a folder, as far as it is JSON.
_JSON = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "adapter_config.json",
)


# Where a config sends transformers for something that is not in the folder, or for code: names of keys, anywhere in it.
_ELSEWHERE = ("audio_tokenizer", "transformers_weights", "use_pretrained_backbone", "custom_generate")
_LAYERS = re.compile(r"layer|depth|block|stage|expert")
_MOST_LAYERS = 512  # where the weights have fewer tensors than that
_DEEPEST = 40
_COUNTS = re.compile(r"num_.*tokens|seq_len|max_.*(patches|tiles)|(patches|tiles)$|max_num|frames")
_MOST_TILES, _MOST_TOKENS, _LONGEST_SIDE, _MOST_PIXELS = 1024, 2**16, 2**13, 2**26


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises InputError that names the file where it holds none."""
    content = read_bytes(path)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {short(error)}; copy it again from where it came") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it is a {type(value).__name__}; expected an object; copy it again")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A part of an object that was read: as it is where it is an object too, else empty."""
    return value if isinstance(value, dict) else {}


def check_json_files(folder: Path) -> None:
    """Raises InputError for the first of the folder's settings files that is torn, or that leads out of the folder."""
    for name in _JSON:
        path = folder / name
        if path.exists():
            content = read_object(path)
            if name.endswith("config.json"):
                _check_inside(path, content)
            if name.endswith("processor_config.json"):
                _check_sizes(path, content)


def _check_inside(path: Path, content: dict[str, Any]) -> None:
    """Raises InputError where a config asks for what is not in its folder: another model, a kernel from the hub."""
    for key, value, depth in _entries(content):
        if depth > _DEEPEST:
            raise InputError(f"{path} is damaged: nested too deeply; copy it again from where it came")
        elsewhere = key in _ELSEWHERE and value not in (None, False)
        kernel = key.endswith("_implementation") and "/" in str(value)
        if elsewhere or kernel or (isinstance(value, str) and value.startswith(("hf-hub:", "hf_hub:"))):
            raise InputError(
                f"{path}: {shown(key)} leads outside the folder, to {short(ValueError(repr(value)), 80)}; nothing "
                "is fetched and nobody's code is run: take the key out, or use another model"
            )


def _check_sizes(path: Path, content: dict[str, Any]) -> None:
    """Raises InputError where a processor's config has pictures blown up, or cut into numbers of pieces, without
    measure.
    """
    for key, value, _ in _entries(content):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        many = _COUNTS.search(key)
        most = _MOST_TILES if many and "patches" in many.group() else _MOST_TOKENS if many else _MOST_PIXELS
        most = _LONGEST_SIDE if key in ("height", "width") else most
        if key == "shortest_edge" and "merge_size" not in content and "merge_size" not in str(content):
            most = _LONGEST_SIDE  # where pictures are cut into patches of any number, it is a number of pixels
        if not -most <= value <= most:
            raise InputError(
                f"{path}: {shown(key)} is {short(ValueError(value), 40)}, above {most:,}, the most that is taken "
                "for an image; copy the file again from where it came"
            )


def check_layers(path: Path, tensors: int) -> None:
    """Raises InputError where the config at ``path`` asks for more layers than weights could fill.

    tensors: in the folder's weights.
    """
    for key, value, _ in _entries(read_object(path)):
        if isinstance(value, int) and _LAYERS.search(key) and value > max(_MOST_LAYERS, tensors):
            raise InputError(
                f"{path}: {shown(key)} is {short(ValueError(value), 40)}, but the weights are {tensors} tensors; "
                "give the config.json that belongs to these weights"
            )


def _entries(content: Any, depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Every key with its value, however deep. What is deeper than the deepest that is allowed is not gone into."""
    if depth > _DEEPEST + 1:
        return
    for key, value in content.items() if isinstance(content, Mapping) else [("", value) for value in content]:
        yield key, value, depth
        if isinstance(value, (Mapping, list)):
            yield from _entries(value, depth + 1)


def check_beside(folder: Path) -> None:
    """Raises InputError where a model's folder holds an adapter too, which transformers would put into the model."""
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder / 'adapter_config.json'} stands beside a model's config.json; keep adapters in a folder of "
            "their own"
        )


def check_safetensors(path: Path) -> list[str]:
    """The names of the file's tensors. Raises InputError where the file is missing, cut short or not safetensors."""
    return list(tensor_shapes(path))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the file's tensors by name. Raises InputError as ``check_safetensors``."""
    if not path.is_file():
        raise InputError(f"{path} is {'not a file' if path.exists() else 'missing'}; copy it again from where it came")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} is damaged or was not copied completely ({size} bytes: {short(error)}); copy it again"
        ) from error


def weight_names(folder: Path) -> list[str]:
    """The names of the files that hold the model's weights: one, or those that the index names. They may be missing.

    Raises InputError for a damaged index, and for one that leads out of the folder.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.exists():
        return [WEIGHTS]
    table = read_object(index).get("weight_map")
    names = list(table.values()) if isinstance(table, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{index} is damaged: its weight_map does not name files of the folder")
    return sorted(set(names))


def check_weight_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the folder's weights by name.

    Raises InputError where they are not safetensors, or a file of them is missing or cut short.
    """
    names = weight_names(folder)
    if names == [WEIGHTS] and not (folder / WEIGHTS).is_file():
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        remedy = (
            f"{pickles[0]} is a pickle, which is not read: save the model again as safetensors" if pickles else None
        )
        raise InputError(f"{folder} has no {WEIGHTS} (or {INDEX}); {remedy or 'copy the weights there'}")
    return {tensor: shape for name in names for tensor, shape in tensor_shapes(folder / name).items()}


def check_not_quantized(folder: Path, config: dict[str, Any]) -> None:
    """Raises InputError for weights that somebody else has quantised (AWQ, GPTQ, fp8): what trains and what the
    reference is would be another model than the one that was quantised. bitsandbytes' own are left to load_in_4bit."""
    settings = config.get("quantization_config")
    if not settings:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method not in ("bitsandbytes", None) or not isinstance(settings, dict):
        raise InputError(
            f"{folder}: the weights are quantised with {short(ValueError(method), 40)}, which is not trained on "
            "here; give the folder of the unquantised model, with load_in_4bit where memory is short"
        )


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def short(error: BaseException, limit: int = 240) -> str:
    """A library's message on one line, shortened, its control characters spelled out."""
    text = shown(" ".join(str(error)[: 4 * limit].split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
