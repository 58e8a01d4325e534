"""An adapter from a folder onto its base model, whole and on the right base, or an error."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from mdpo.errors import InputError
from mdpo.hub import base_of, folder_of, with_revision
from mdpo.outputs import write_text
from mdpo.shown import shown

from .base_digest import weights_digest
from .folder import read_object, short, tensor_shapes
from .fused_lora import can_fuse, fuse_lora
from .load import load
from .model_card import BASE_NAME, RECORD_NAME
from .patterns import check_patterns, texts_of

CONFIG_NAME = "adapter_config.json"


# Values of these keys may exceed every size that the adapter's weights have: they scale, seed and count steps.
_NO_SIZE = re.compile(r"alpha|seed|key|step|delta|scal|ind(ex|ic)|layer|_t$|^t|version|bits", re.IGNORECASE)
_SMALL = 128


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """What the config says of the adapter in ``folder``, or of that name on the hub. Raises InputError where there is
    none, or a damaged one."""
    path = folder_of(folder, "config", called="adapter") / CONFIG_NAME
    if not path.exists():
        raise InputError(
            f"adapter {folder} has no {CONFIG_NAME}: not a PEFT adapter; give the folder that save_pretrained wrote"
        )
    return read_object(path)


def load_adapter(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    base: str | Path | None = None,
    trainable: bool = False,
    fused: bool = False,
    revision: str | None = None,
) -> PeftModel:
    """``model`` with the adapter at ``folder``, which may be ``owner/name`` or ``owner/name@revision`` on the hub.

    Args:
        base: the folder or name that the model came from, to hold it against the base that the adapter was trained on.
        trainable: whether the adapter is to be trained further.
        fused: whether LoRA layers are ``fuse_lora``'s.
        revision: branch, tag or commit of the adapter on the hub.

    Raises InputError where the folder holds no adapter or a damaged one, it was trained on another base, or not every
    one of its weights finds its place.
    """
    folder = folder_of(with_revision(folder, revision), called="adapter")
    base = None if base is None else folder_of(base)
    _check_config(folder, [name for name, _ in model.named_modules() if name])
    if base is not None:
        check_base(folder, base)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # it knows which are only tied to others
            config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
            config = fuse_lora(config) if fused and can_fuse(config) else config
            adapted = PeftModel.from_pretrained(
                model, str(folder), is_trainable=trainable, config=config, local_files_only=True
            )
        result = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # peft raises whatever a foreign config leads it to
        raise InputError(
            f"adapter {folder} does not fit the model: {short(error, 300)}; give it its own base, or copy "
            f"{CONFIG_NAME} and the weights again"
        ) from error
    # peft passes over weights that have no place, and with them the adapter.
    if result.unexpected_keys and not adapted.peft_config["default"].is_prompt_learning:
        raise InputError(
            f"adapter {folder} has {shown(result.unexpected_keys[0])}, for which the model has no place "
            f"({len(result.unexpected_keys)} such): it was trained on another model; give it its own base"
        )
    here = base or getattr(model, "name_or_path", None)
    if here:  # saving looks there for the base's config: not on the hub under whatever name the adapter brought
        adapted.peft_config["default"].base_model_name_or_path = str(here)
    return adapted


def load_with_adapter(
    path: str | Path,
    adapter: str | Path,
    *,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    trainable: bool = False,
    fused: bool = False,
) -> PeftModel:
    """The model at ``path`` with the adapter at ``adapter`` on it.

    Args:
        path, dtype, load_in_4bit: as for ``load``.
        adapter: its folder, or on the hub ``owner/name`` or ``owner/name@revision``.
        trainable: whether the adapter is to be trained further.
        fused: whether LoRA layers are ``fuse_lora``'s.

    Raises:
        InputError: as ``load`` and ``load_adapter``.
    """
    model = load(path, dtype=dtype, load_in_4bit=load_in_4bit)
    return load_adapter(model, adapter, base=path, trainable=trainable, fused=fused)


def name_base(folder: str | Path, base: str | Path) -> None:
    """Has the adapter saved in ``folder`` name its base as the hub does, with the commit that it was trained on, so
    that whoever gets it finds the base. In memory the base's folder stays: peft asks for its config at every saving.

    base: the folder that it was loaded from; of one outside the hub's cache nothing is changed. Raises OutputError
    where the file cannot be written.
    """
    name = base_of(base)
    if name is None:
        return
    path = Path(folder, CONFIG_NAME)
    config = read_object(path) | {"base_model_name_or_path": name.repo, "revision": name.revision}
    write_text(path, json.dumps(config, indent=2, sort_keys=True))


def _check_config(folder: Path, names: list[str]) -> None:
    """Whether the adapter's files may be handed to peft.

    names: of the model's modules.

    Raises InputError where the config leads elsewhere, asks for sizes that the weights do not have, or has a regular
    expression that does not end; and where the weights are damaged or missing.
    """
    config, path = adapter_config(folder), folder / CONFIG_NAME
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise InputError(
            f"{path}: peft_type is {short(ValueError(repr(kind)), 60)}, which peft does not know; is it another "
            "adapter's?"
        )
    leads = [key for key in ("tokenizer_kwargs", "prompt_tuning_init_state_dict_path") if config.get(key)]
    leads += ["prompt_tuning_init"] if config.get("prompt_tuning_init") == "TEXT" else []
    if kind == "XLORA" or leads:
        raise InputError(
            f"{path}: {leads[0] if leads else 'peft_type XLORA'} leads to files that are not in the folder; use "
            "another adapter"
        )
    tokens = config.get("alora_invocation_tokens")
    if tokens is not None and not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
        raise InputError(
            f"{path}: alora_invocation_tokens is not a list of token ids; correct it, or use another adapter"
        )
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.exists() and (folder / WEIGHTS_NAME).exists():
        raise InputError(
            f"{folder / WEIGHTS_NAME} is a pickle, which is not read: save the adapter again as safetensors"
        )
    largest = max([_SMALL, *(size for shape in tensor_shapes(weights).values() for size in shape)])
    for key, value in _numbers(config):
        if not _NO_SIZE.search(key) and (value > largest or value < -1):
            raise InputError(
                f"{path}: {shown(key)} is {short(ValueError(value), 40)}, which is no size of the adapter's "
                f"weights; give the {CONFIG_NAME} that belongs to them"
            )
    patterns = {
        f"{path}: {key}": text
        for key in (
            "target_modules",
            "exclude_modules",
            "layers_pattern",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
        )
        for text in texts_of(config.get(key))
    }
    check_patterns(patterns, names, "correct it, or use another adapter")


def _numbers(content: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in a config, with its key."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _numbers(value, f"{name}.{key}" if name else key)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, name)
    elif isinstance(content, int) and not isinstance(content, bool):
        yield name, content


def check_base(adapter: Path, base: str | Path) -> None:
    """Raises InputError where the run's record beside the adapter, or what was published of it, names another base than
    the one in ``base``."""
    published = adapter / BASE_NAME
    trained_on = (read_object(published) if published.is_file() else run_record(adapter)).get("base_weights")
    if trained_on is None:
        return
    here = weights_digest(base)
    if here is not None and here != trained_on:
        raise InputError(
            f"adapter {adapter} was trained on another base model than {base}: their weights differ; give it its "
            "own base"
        )


def run_record(adapter: Path) -> dict[str, Any]:
    """What ``write_run_record`` left of the run, beside the adapter or, for a checkpoint, one folder up; empty without.

    Raises InputError for a damaged file.
    """
    for path in (adapter / RECORD_NAME, adapter.parent / RECORD_NAME):
        if not path.is_file() or (path.parent != adapter and not adapter.name.startswith("checkpoint-")):
            continue
        return read_object(path)
    return {}
