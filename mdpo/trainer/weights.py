"""A checkpoint's weights: loaded whole or not at all, and saved even where a file beside them cannot be.

transformers saves several families under the names of older versions, which ``from_pretrained`` maps back, but its
Trainer loads a checkpoint with ``load_state_dict(strict=False)``: nothing fits, and nothing is said.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from mdpo.errors import InputError
from mdpo.models.folder import WEIGHTS, check_safetensors, some
from mdpo.models.load import read_strictly
from mdpo.outputs import whole_file


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Puts the weights of ``folder`` into the model, in place, bit for bit.

    model: bare, of the same config as the one that was saved. Takes a second copy of the weights on the CPU meanwhile.

    Raises InputError where the folder lacks a weight or has one that the model does not, where shapes differ, and where
    a weight that does not train is not the model's own: then the checkpoint is another base model's.
    """
    folder = Path(folder)
    own = model.state_dict()
    # Every weight comes back as it was: widening is exact, and so is narrowing to what it was widened from.
    dtypes = {tensor.dtype for tensor in own.values() if tensor.is_floating_point()}
    dtype = functools.reduce(torch.promote_types, dtypes)
    saved = read_strictly(type(model), folder, dtype=dtype).state_dict()
    _same_names(folder, set(own), set(saved))
    changed = sorted(name for name, tensor in own.items() if tensor.shape != saved[name].shape)
    if changed:
        name = changed[0]
        raise InputError(
            f"{folder}: {name} has the shape {tuple(saved[name].shape)} instead of {tuple(own[name].shape)}; "
            "it belongs to another model"
        )
    trained = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    for name in sorted(dict(model.named_parameters()).keys() - trained):
        if not torch.equal(saved[name].to(own[name].dtype), own[name].cpu()):
            raise InputError(
                f"{folder}: {name}, which does not train, is not what it is in the base model; resume with the "
                "base model that the run was started from"
            )
    model.load_state_dict(saved, strict=True)


def check_adapters(model: PeftModel, folder: str | Path) -> None:
    """Raises InputError where a saved adapter lacks a tensor that the model's has, or has another; PEFT only warns."""
    for adapter in model.peft_config:
        path = adapter_folder(folder, adapter) / SAFETENSORS_WEIGHTS_NAME
        own: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter)
        _same_names(path, set(own), set(check_safetensors(path)))
        with safe_open(path, framework="pt") as file:
            for name, tensor in own.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise InputError(
                        f"{path}: {name} has the shape {shape} instead of {tuple(tensor.shape)}; it belongs to "
                        "another run"
                    )


def _same_names(where: Path, own: set[str], saved: set[str]) -> None:
    for names, verb in ((own - saved, "lacks"), (saved - own, "has, and the model has not,")):
        if names:
            raise InputError(f"{where} {verb} {len(names)} tensors: {some(sorted(names))}; take another checkpoint")


def adapter_folder(folder: str | Path, adapter: str) -> Path:
    """Where PEFT saves an adapter: at the top if it is called "default", else in a folder of its name."""
    return Path(folder) if adapter == "default" else Path(folder, adapter)


def save_weights_alone(model: nn.Module, folder: str | Path) -> Path:
    """Writes the weights without any other file, for when one of those could not be written. Returns their file. Raises
    OutputError where the disk is full or refuses."""
    if isinstance(model, PeftModel):
        name = model.active_adapters[0]
        path = adapter_folder(folder, name) / SAFETENSORS_WEIGHTS_NAME
        adapter: Any = get_peft_model_state_dict(model, adapter_name=name)
        with whole_file(path) as part:
            save_file({key: tensor.contiguous() for key, tensor in adapter.items()}, part, metadata={"format": "pt"})
    else:
        path = Path(folder, WEIGHTS)
        with whole_file(path) as part:
            save_model(model, str(part), metadata={"format": "pt"})  # which keeps tied weights once
    return path
