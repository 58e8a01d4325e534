"""An adapter from a folder onto its base model, whole and on the right base, or an error."""

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import PreTrainedModel

from mdpo.errors import InputError

from .base_digest import weights_digest
from .model_card import RECORD_NAME

CONFIG_NAME = "adapter_config.json"


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """What the adapter's config says. Raises InputError where the folder holds no adapter, or a damaged one."""
    path = Path(folder).expanduser() / CONFIG_NAME
    if not path.is_file():
        raise InputError(f"adapter {folder} has no {CONFIG_NAME}: not a PEFT adapter; give the folder that save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected an object, found a {type(config).__name__}")
    return config


def load_adapter(
    model: PreTrainedModel, folder: str | Path, *, base: str | Path | None = None, trainable: bool = False
) -> PeftModel:
    """``model`` with the adapter at ``folder``.

    Args:
        base: the folder that the model came from, to hold it against the base that the adapter was trained on.
        trainable: whether the adapter is to be trained further.

    Raises InputError where the folder holds no adapter, it was trained on another base, or not every one of its weights
    finds its place.
    """
    folder = Path(folder).expanduser()
    adapter_config(folder)
    if base is not None:
        check_base(folder, base)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # it knows which are only tied to others
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, local_files_only=True)
        result = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UserWarning) as error:
        raise InputError(f"adapter {folder} does not fit the model: {_one_line(error)}; give it its own base") from error
    # peft passes over weights that have no place, and with them the adapter.
    if result.unexpected_keys and not adapted.peft_config["default"].is_prompt_learning:
        raise InputError(
            f"adapter {folder} has {result.unexpected_keys[0]}, for which the model has no place "
            f"({len(result.unexpected_keys)} such): it was trained on another model; give it its own base"
        )
    return adapted


def check_base(adapter: Path, base: str | Path) -> None:
    """Raises InputError where the run's record beside the adapter names another base than the one in ``base``."""
    trained_on = run_record(adapter).get("base_weights")
    if trained_on is None:
        return
    here = weights_digest(base)
    if here is not None and here != trained_on:
        raise InputError(
            f"adapter {adapter} was trained on another base model than {base}: their weights differ; give it its own base"
        )


def run_record(adapter: Path) -> dict[str, Any]:
    """What ``write_run_record`` left of the run, beside the adapter or, for a checkpoint, one folder up; empty without.

    Raises InputError for a damaged file.
    """
    for path in (adapter / RECORD_NAME, adapter.parent / RECORD_NAME):
        if not path.is_file() or (path.parent != adapter and not adapter.name.startswith("checkpoint-")):
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}; delete it to take the adapter as it is") from error
        return record if isinstance(record, dict) else {}
    return {}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


