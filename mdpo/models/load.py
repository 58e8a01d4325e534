"""A model and its processor, from a folder or from the hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import is_torchvision_available

from mdpo.errors import InputError
from mdpo.hub import base_of, check_weights_there, folder_of, with_revision
from mdpo.packing import family_of

from .folder import check_beside, check_json_files, check_not_quantized, check_weight_files, read_object, short, some
from .proportion import LOCAL, called, check_proportion, model_config
from .quantize import check_quantized, keep_training_layout, nf4_config

# A tower's pooling head comes after the features that a vision-language model reads; in LLaVA, which reads a hidden
# state, so does the norm behind the last layer.
_UNREAD = re.compile(r"(vision_tower|vision_model|visual)\.(.*\.)?head\.|vision_tower\.(.*\.)?post_layernorm\.")


def load(
    path: str | Path, *, dtype: str = "auto", load_in_4bit: bool = False, revision: str | None = None
) -> PreTrainedModel:
    """The bare Hugging Face model at ``path``: config and safetensors weights are enough.

    Args:
        path: its folder, or on the hub ``owner/name`` or ``owner/name@revision``; a folder comes first.
        dtype: "auto" keeps the checkpoint's, else a torch dtype's name such as "bfloat16".
        load_in_4bit: the language model's linear layers in NF4, computed in dtype; tower, projector and head keep
            dtype. On the GPU where there is one.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: the folder is missing, holds an adapter alone or is not an image-text model; its weights are
            damaged, incomplete, quantised by another tool, or do not fit its config; the hub does not hand the model
            out.
    """
    path = with_revision(path, revision)
    check_model(path)  # before gigabytes are fetched
    chosen = dtype if dtype == "auto" else torch_dtype(dtype)
    folder = folder_of(path)
    quantization: dict[str, Any] = {"quantization_config": nf4_config(_dtype(folder, dtype))} if load_in_4bit else {}
    model = read_strictly(AutoModelForImageTextToText, folder, dtype=chosen, **quantization)
    if load_in_4bit:
        check_quantized(model)
        keep_training_layout(model)
    base = base_of(folder)
    if base is not None:  # cards name the base; the folder in the cache says nothing to anybody else
        model.config.name_or_path = base.repo
    return model


def check_trainable(path: str | Path) -> None:
    """As ``check_model``, for a model that is to be trained. Raises InputError also for a family that cannot be."""
    family_of(SimpleNamespace(config=model_config(check_model(path))))


def check_model(path: str | Path) -> Path:
    """Looks at a model before data and weights are fetched: at its settings, and at which files the hub has of it.

    Returns the folder of its settings. Raises InputError as ``load``, as far as no weights are needed to see it.
    """
    check_weights_there(path)
    folder = folder_of(path, "settings")
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise InputError(
                f"{folder} contains an adapter alone; give the base model's folder, and the adapter with --adapter, "
                "or to train it further as adapter_name_or_path"
            )
        raise InputError(
            f"{folder} has no config.json and is not a model; give a model's folder, or owner/name on the hub"
        )
    check_json_files(folder)
    check_not_quantized(folder, read_object(folder / "config.json"))
    if type(model_config(folder)) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        kind = short(ValueError(repr(model_config(folder).model_type)), 60)
        raise InputError(
            f"{folder} does not load as an image-text model: its model_type is {kind}; give a vision-language model"
        )
    return folder


def read_strictly(kind: Any, folder: Path, *, unread: str | None = None, **options: Any) -> PreTrainedModel:
    """``kind.from_pretrained(folder)``, which maps the names that weights were saved under to the model's own.

    kind: a model class or an auto class. unread: expression for names of weights that may be left over. options: of
        from_pretrained.

    Raises InputError where the weights are damaged, where the model has a weight that the files lack, where they have
    one that it does not know, and where shapes differ. transformers would draw the first at random and drop the others.
    """
    check_beside(folder)
    check_proportion(kind, folder, check_weight_files(folder))
    try:
        with _without_tables():
            model, found = kind.from_pretrained(
                folder, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **LOCAL, **options
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises whatever a foreign config leads it to
        raise InputError(f"{folder} does not load as {called(kind)}: {short(error)}") from error
    _refuse_unfit(folder, model, found, re.compile(unread or "(?!)"))
    return model


def _refuse_unfit(folder: Path, model: PreTrainedModel, found: dict[str, Any], unread: re.Pattern[str]) -> None:
    """found: what from_pretrained reports of the weights' names and shapes."""
    name = type(model).__name__
    parameters = {key for key, _ in model.named_parameters()}  # a tied weight counts once, a buffer not at all
    missing = sorted(key for key in found["missing_keys"] if key in parameters and not _UNREAD.search(key))
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the weights that {name} has: {some(missing)}; copy the folder again, or "
            "the config.json that belongs to it"
        )
    mismatched = sorted(tuple(entry) for entry in found["mismatched_keys"] if not _UNREAD.search(entry[0]))
    if mismatched:
        key, *shapes = mismatched[0]
        sizes = " instead of ".join(str(tuple(shape)) for shape in shapes)
        raise InputError(
            f"{folder}: {len(mismatched)} weights do not fit config.json: {key} has the shape {sizes}; "
            "give the config.json that belongs to these weights"
        )
    unknown = sorted(key for key in found["unexpected_keys"] if not (_UNREAD.search(key) or unread.search(key)))
    if unknown:
        raise InputError(
            f"{folder} has {len(unknown)} weights that {name} does not read: {some(unknown)}; it would be another "
            "model without them: give the config.json that belongs to these weights"
        )


@contextmanager
def _without_tables() -> Iterator[None]:
    """Keeps transformers from printing its table of weights: what it says is an error here, on one line."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _dtype(folder: Path, name: str) -> torch.dtype:
    """The dtype that ``name`` stands for; "auto" is the checkpoint's, float32 where its config names none."""
    found = model_config(folder).dtype or torch.float32 if name == "auto" else name
    return torch_dtype(found) if isinstance(found, str) else found


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name. Raises InputError where torch has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype: {name!r} is not a floating-point dtype of torch; use auto, bfloat16 or float32")
    return dtype


def load_processor(path: str | Path, *, revision: str | None = None) -> ProcessorMixin:
    """The processor of a model; of a repository on the hub no weights are fetched.

    Args:
        path, revision: as for ``load``.

    Raises:
        InputError: there is none that handles images, its files are torn, or the hub does not hand them out.
    """
    folder = folder_of(with_revision(path, revision), "settings")
    check_json_files(folder)
    # Named, because without torchvision transformers falls back to Pillow with a warning for every processor.
    backend = {} if is_torchvision_available() else {"backend": "pil"}
    try:
        processor = AutoProcessor.from_pretrained(folder, **backend, **LOCAL)
    except ImportError as error:  # Qwen-VL, InternVL and SmolVLM have a video processor, which needs torchvision
        raise InputError(
            f"{folder}: its processor needs a package that is not installed, usually torchvision: {short(error)}; "
            'pip install -e ".[vision]" in the clone of mDPO'
        ) from error
    except Exception as error:  # transformers raises whatever a foreign file leads it to
        raise InputError(f"{folder} has no processor that loads: {short(error)}") from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise InputError(
            f"{folder} has a {type(processor).__name__}, but training needs a processor with images; copy the model's "
            "processor files into it"
        )
    if (folder / "config.json").is_file():  # not beside an adapter
        check_processor(model_config(folder), processor, str(folder))
    _try(folder, processor)
    return processor


def _try(folder: Path, processor: Any) -> None:
    """Raises InputError where the processor fails on the first picture and the first text that it is given."""
    picture, token = Image.new("RGB", (64, 64), (200, 100, 50)), getattr(processor, "image_token", None)
    try:
        processor.tokenizer.decode(processor.tokenizer.encode("a picture"))
        if isinstance(token, str):
            processor(text=[token], images=[picture], return_tensors="pt")
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # as above
        raise InputError(
            f"{folder}: its processor fails on an image: {short(error)}; copy processor_config.json, "
            "preprocessor_config.json and the tokenizer's files again"
        ) from error


def check_processor(config: Any, processor: Any, where: str) -> None:
    """Whether the processor has what it counts image placeholders from, and names the placeholder that the model does.

    config: the model's. where: how the error begins.

    Raises InputError with the attribute and the value that the config implies.
    """
    vision = getattr(config, "vision_config", None)
    implied = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
    }
    for name, value in implied.items():
        if hasattr(processor, name) and getattr(processor, name) is None:
            raise InputError(
                f"{where}: {name} is not set, so image placeholders cannot be counted; set it to {value!r}, which the "
                "model's config implies (in a folder, in processor_config.json)"
            )
    theirs, own = getattr(processor, "image_token_id", None), getattr(config, "image_token_id", None)
    # Gemma 3 has one token in the text and another in its place: the processor says which become image features.
    if None not in (theirs, own) and own not in (theirs, *getattr(processor, "image_token_ids", ())):
        raise InputError(
            f"{where}: the processor's image token {getattr(processor, 'image_token', None)!r} has id {theirs}, "
            f"but the model's config says image_token_id {own}; use the processor that was saved with the model"
        )
