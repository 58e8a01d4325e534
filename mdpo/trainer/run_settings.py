"""What a run's weights depend on: written into each of its checkpoints, and compared before one is gone on from."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from PIL import Image
from torch import nn

from mdpo.config import MDPOConfig
from mdpo.data import PreferenceDataset, TextOptions
from mdpo.data.images import StoredImage
from mdpo.errors import InputError

# The token budget is not among them: a step's gradient does not depend on how it is cut.
_SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "bf16", "fp16",
    "examples_per_step",
    "beta", "objective", "conditional", "anchors", "anchor", "negative", "negative_per_epoch", "drop_images",
    "max_length", "reference",
    "disable_dropout", "changed_weight",
)  # fmt: skip
_ADAPTER = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "bias",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
)
# What a run has chosen on its machine, and a run that goes on with it takes over where it fits. Not compared: how a
# step is cut, what is recomputed and who computes the layers leaves the numbers as they are, but for rounding.
_CHOICES = {"token_budget": int, "checkpoint_layers": int | None, "gradient_checkpointing": bool, "layers": str}
_CHOSEN = "chosen"
_PICTURES = "max_pixels, min_pixels, image_processor_kwargs"
# Of a checkpoint that was written before there was the setting.
_BEFORE = {"objective": "mdpo"}
# Of an image's file its size and its end are compared: a PNG ends with a checksum of its pixels, a JPEG with the last
# of them. Of more images than this, as many are looked at, spread over the rows.
_TAIL, _IMAGES = 4096, 20_000


def run_settings(
    args: MDPOConfig, model: nn.Module, dataset: PreferenceDataset | None, reference: str
) -> dict[str, Any]:
    """What this run's weights depend on, as JSON can hold it. reference: ``reference_weights``, of the run's start."""
    settings: dict[str, Any] = {name: getattr(args, name) for name in _SETTINGS}
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    settings |= {"weights.dtype": base.dtype, "weights.quantization": getattr(base, "quantization_method", None)}
    if isinstance(model, PeftModel):
        adapter = model.peft_config[model.active_adapters[0]]
        settings |= {f"adapter.{name}": getattr(adapter, name, None) for name in _ADAPTER}
    trained = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    by = "use_lora, lora_target_modules, freeze_vision_tower, freeze_multi_modal_projector"
    settings[f"trained parameters ({by})"] = f"{len(trained)} ({_digest(trained)})"
    settings["weights of the reference (base model, adapter to go on from)"] = reference
    settings["system_prompt, chat_template, chat_template_kwargs, prompt_is_rendered"] = TextOptions.of(
        args
    ).digest()  # a template by its content, not its path
    if dataset is not None:
        settings[_PICTURES] = dataset.size_settings()
        settings["rows"] = f"{len(dataset)} ({dataset.digest()})"
        settings["images of the rows"] = _images(dataset)
    return json.loads(
        json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )


def recorded(args: MDPOConfig, layers: str) -> dict[str, Any]:
    """What this run has chosen, as ``chosen_by`` finds it again. layers: eager, compiled or Liger's."""
    return {_CHOSEN: {name: layers if name == "layers" else getattr(args, name) for name in _CHOICES}}


def chosen_by(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What the run of a checkpoint has chosen; None where its settings do not say, or not in full.

    settings: of the checkpoint.
    """
    found = settings.get(_CHOSEN)
    if not isinstance(found, dict) or any(not isinstance(found.get(name), kind) for name, kind in _CHOICES.items()):
        return None
    return found


def check_same_run(folder: Path, theirs: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises InputError that names the first difference between the checkpoint's settings and this run's."""
    # Where the checkpoint does not say, the lengths of its rows do.
    theirs = {_PICTURES: settings.get(_PICTURES)} | _BEFORE | theirs
    for name, value in settings.items():
        if name != _CHOSEN and theirs.get(name) != value:
            raise InputError(
                f"cannot resume from {folder}: {name} was {theirs.get(name)!r} and is {value!r} now; set it back, "
                "or give another output_dir for a run of its own"
            )


def _images(dataset: PreferenceDataset) -> str:
    counts = dataset.rows.images.counts()
    with_images = np.flatnonzero(counts)
    every = -(-len(with_images) // _IMAGES) or 1
    seen: dict[Path, str] = {}
    rows = (dataset.rows[index] for index in with_images[::every].tolist())
    marks = [_mark(image, seen) for row in rows for image in (*row.images, *row.rejected_images)]
    return f"{int(counts.sum())} ({_digest(marks)})"


def _mark(image: Any, seen: dict[Path, str]) -> str:
    """What is compared of an image: of a file, or of stored bytes, length and end; of a picture in memory, its size."""
    if isinstance(image, Image.Image):
        return f"{image.mode} {image.size}"
    if isinstance(image, StoredImage):
        data = image.read()
        return f"{len(data)} {hashlib.blake2b(data[-_TAIL:], digest_size=6).hexdigest()}"
    if image not in seen:
        try:
            with open(image, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(size - _TAIL, 0))
                seen[image] = f"{size} {hashlib.blake2b(file.read(), digest_size=6).hexdigest()}"
        except OSError as error:  # reading the row will say so, with its name
            seen[image] = f"unreadable ({error.strerror})"
    return seen[image]


def _digest(lines: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()
