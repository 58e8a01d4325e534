"""Values that no run can use: out of range, not finite, or of a form that would fail only once the model is loaded."""

import json
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.deepspeed import is_deepspeed_available
from transformers.trainer_pt_utils import AcceleratorConfig

from mdpo.errors import InputError
from mdpo.typed import is_text, path_problem

from .types import shortened, shown

# The numbers that make sense; transformers checks few of them.
_RANGES = {
    "learning_rate": "[0, inf)", "weight_decay": "[0, inf)", "max_grad_norm": "[0, inf)", "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)", "adam_epsilon": "[0, inf)", "num_train_epochs": "(0, inf)", "warmup_steps": "[0, inf)",
    "logging_steps": "[0, inf)", "save_steps": "(0, inf)", "eval_steps": "(0, inf)", "eval_delay": "[0, inf)",
    "save_total_limit": "(0, inf)", "seed": "[0, 4294967295]", "data_seed": "[0, 9223372036854775807]",
    "dataloader_num_workers": "[0, 1024]", "dataloader_prefetch_factor": "(0, 10000]", "ddp_timeout": "(0, inf)",
    "ddp_bucket_cap_mb": "(0, inf)", "torch_empty_cache_steps": "(0, inf)",
}  # fmt: skip
# Settings that name a file or a folder.
PATHS = (
    "model_name_or_path",
    "train_data",
    "adapter_name_or_path",
    "image_dir",
    "eval_data",
    "output_dir",
    "reference_cache_dir",
    "resume_from_checkpoint",
    "chat_template",
)
_LARGEST = 2**63 - 1
# What the loss computes with, in float32.
BETA, ANCHOR = "[1e-30, 1e30]", "[-1e30, 1e30]"
# Mappings that may also be the name of a JSON file; the others only as JSON text.
_FILES = ("accelerator_config", "fsdp_config", "deepspeed")
_MAPPINGS = (*_FILES, "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs")
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_LAYERWISE = "it steps inside the backward, and here a step has several of them, one per micro-batch"


def check_values(args: Any) -> None:
    """Raises InputError for the first value that cannot be used. args: as given, before transformers reads them."""
    check_numbers(args)
    check_paths(args)
    for name, interval in _RANGES.items():
        check_range(name, getattr(args, name, None), interval)
    _check_choices(args)
    if args.max_steps == 0 or args.max_steps < -1:
        raise InputError(f"max_steps is {args.max_steps}; expected a number above 0, or -1 for num_train_epochs")
    for name in _MAPPINGS:
        _check_mapping(name, getattr(args, name, None))
    _check_accelerator(args)
    _check_optimizer(args)
    _check_schedule(args)
    _check_checkpointing(args)
    _check_workers(args)
    _check_compile(args)
    if args.deepspeed and not is_deepspeed_available():
        raise InputError("deepspeed: the package is not installed; pip install deepspeed, or leave it out")


def check_numbers(config: Any) -> None:
    """Raises InputError for a number that is infinite, is none, or has more digits than a computer's integers; and for
    text with a character that no file, path or log takes. Looks at every field of ``config``, and into lists."""
    for field in fields(config):
        value = getattr(config, field.name, None)
        for entry in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(entry, float) and not math.isfinite(entry):
                raise InputError(f"{field.name} is {entry}; expected a finite number")
            if isinstance(entry, int) and abs(entry) > _LARGEST:
                raise InputError(f"{field.name} is {shown(entry)}; expected a number of at most {_LARGEST}")
            if isinstance(entry, str) and not is_text(entry):
                raise InputError(
                    f"{field.name}: {shown(entry)} contains a character that is not text (NUL, or bytes that are not "
                    "UTF-8); take it out"
                )


def check_paths(config: Any) -> None:
    """Raises InputError for a path that ``path_problem`` finds something wrong with."""
    for name in PATHS:
        value = getattr(config, name, None)
        if name == "chat_template" and isinstance(value, str) and value.strip():  # it may be the template itself
            continue
        for path in value if isinstance(value, (list, dict)) else [value]:
            problem = path_problem(path) if isinstance(path, str) else None
            if problem is not None:
                raise InputError(f"{name}: {problem}")


def check_shares(name: str, value: Any) -> None:
    """Raises InputError for a mapping of data sets to shares that is empty, or has a share that is not a number above
    0.
    """
    if not isinstance(value, dict):
        return
    if not value:
        raise InputError(f"{name}: the mapping is empty; give data sets with their shares")
    for path, share in value.items():
        if not isinstance(path, str):
            raise InputError(f"{name}: a data set is {shown(path)}; expected its name; put it in quotes")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise InputError(
                f"{name}: the share of {shown(path)} is {shown(share)}; expected a number above 0; leave it out to "
                "read none of it"
            )


def check_range(name: str, value: Any, interval: str) -> None:
    """Raises InputError for a number outside of ``interval``, written as in "[0, 1)"; only numbers are looked at."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        wanted = (
            f"in {interval}"
            if math.isfinite(high)
            else f"above {low:g}"
            if interval[0] == "("
            else f"of at least {low:g}"
        )
        raise InputError(f"{name} is {shown(value)}; expected a number {wanted}")


def _check_choices(args: Any) -> None:
    """Words of which a few are known: by TrainingArguments' annotations, by its fields' choices, or by its code."""
    for name, hint in typing.get_type_hints(TrainingArguments).items():
        for option in typing.get_args(hint):
            value = getattr(args, name, None)
            if isinstance(option, type) and issubclass(option, Enum) and value is not None:
                _check_word(name, value, [member.value for member in option])
    for field in fields(args):
        if "choices" in field.metadata and getattr(args, field.name) is not None:
            _check_word(field.name, getattr(args, field.name), list(field.metadata["choices"]))
    if isinstance(args.include_num_input_tokens_seen, str):
        _check_word("include_num_input_tokens_seen", args.include_num_input_tokens_seen, ["no", "all", "non_padding"])
    debug = args.debug.split() if isinstance(args.debug, str) else args.debug or []
    for word in debug:
        _check_word("debug", word, ["underflow_overflow"])  # the other is a TPU's


def _check_word(name: str, value: Any, choices: list[str]) -> None:
    if getattr(value, "value", value) not in choices:
        raise InputError(f"{name}: {shown(value)} is unknown; choose from {', '.join(choices)}")


def _check_mapping(name: str, value: Any) -> None:
    if value is None or isinstance(value, (Mapping, AcceleratorConfig)):
        return
    if not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)}; expected a mapping")
    if name in _FILES and not value.startswith("{"):
        if not value:  # deepspeed: "" is off
            return
        if not os.path.isfile(value):  # Path's own raises for a name that is too long
            raise InputError(f"{name} is {shown(value)}, and there is no such file; expected a mapping or a JSON file")
        value = Path(value).read_text(encoding="utf-8", errors="replace")
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise InputError(f"{name} is {shown(value)}; expected a mapping such as {{key: value}}")


def _check_accelerator(args: Any) -> None:
    """What of accelerate's configuration has a meaning where batches are planned steps."""
    value = args.accelerator_config
    if value is None or value == "":
        return
    if isinstance(value, str):
        value = json.loads(value if value.startswith("{") else Path(value).read_text(encoding="utf-8"))
    given = dict(value) if isinstance(value, Mapping) else value.to_dict()
    defaults = AcceleratorConfig().to_dict() | {"use_configured_state": False}
    for key, entry in given.items():
        if key not in defaults:
            raise InputError(f"accelerator_config: unknown key {shown(key)}; choose from {', '.join(defaults)}")
        if key == "use_configured_state":
            if not isinstance(entry, bool):
                raise InputError(f"accelerator_config.{key} is {shown(entry)}; expected true or false")
        elif entry != defaults[key] and (entry or defaults[key]):  # an empty mapping is as good as none
            raise InputError(f"accelerator_config.{key}: the planner deals the rows, not accelerate; leave it out")


def _check_optimizer(args: Any) -> None:
    name = str(getattr(args.optim, "value", args.optim))
    if name.startswith("schedule_free"):
        raise InputError(f"optim: {name} keeps two sets of weights, and the wrong one would be saved; choose another")
    if name in ("lomo", "adalomo") or name.endswith("_layerwise"):
        raise InputError(f"optim: {name} is not supported: {_LAYERWISE}; choose another, such as adamw_torch_fused")
    for part in args.optim_args.replace(" ", "").split(",") if args.optim_args else ():
        if part.count("=") != 1:
            raise InputError(f"optim_args is {shown(args.optim_args)}; expected name=value, separated by commas")


def _check_schedule(args: Any) -> None:
    """Builds the schedule on a toy optimizer, so that its keywords, and those that it lacks, are tried before the model
    is loaded."""
    keywords = args.lr_scheduler_kwargs or {}
    keywords = json.loads(keywords) if isinstance(keywords, str) else dict(keywords)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=8,
            scheduler_specific_kwargs=keywords,
        )
        for _ in range(8):
            optimizer.step()
            # A schedule that follows a metric takes one; its keywords have been read by now.
            if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                schedule.step()
    except Exception as error:  # whatever a schedule does with a keyword that it cannot use
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        if not keywords:
            raise InputError(
                f"lr_scheduler_type: {shown(name)} does not work without lr_scheduler_kwargs: {shortened(error)}"
            ) from error
        raise InputError(f"lr_scheduler_kwargs: {name} does not take {shown(keywords)}: {shortened(error)}") from error


def _check_checkpointing(args: Any) -> None:
    """The keywords of checkpointing: torch's, and from transformers 5.23 on which layers and where they are kept."""
    known = {"use_reentrant", "preserve_rng_state", "determinism_check", "debug", "context_fn", "early_stop"}
    if hasattr(args, "activation_checkpointing_kwargs"):
        known |= {"every_n_layers", "offload"}
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        value = getattr(args, name, None) or {}
        keywords = json.loads(value) if isinstance(value, str) else value
        for key, entry in keywords.items():
            if key not in known:
                raise InputError(f"{name}: unknown key {shown(key)}; choose from {', '.join(sorted(known))}")
            if key == "every_n_layers":
                if isinstance(entry, bool) or not isinstance(entry, int) or entry < 1:
                    raise InputError(f"{name}.{key} is {shown(entry)}; expected a whole number above 0")
                if args.checkpoint_layers is not None:
                    raise InputError(f"{name}.{key}: checkpoint_layers says which layers too; keep one of them")
            elif key not in ("context_fn", "determinism_check") and not isinstance(entry, bool):
                raise InputError(f"{name}.{key} is {shown(entry)}; expected true or false")
            if key == "offload" and entry and (args.use_cpu or not torch.cuda.is_available()):
                raise InputError(
                    f"{name}.{key}: it moves what a GPU keeps to the CPU, and this machine has no GPU; leave it out"
                )
            if key == "determinism_check":
                _check_word(f"{name}.{key}", entry, ["default", "none"])


def _check_workers(args: Any) -> None:
    if args.dataloader_multiprocessing_context is not None:
        methods = torch.multiprocessing.get_all_start_methods()
        _check_word("dataloader_multiprocessing_context", args.dataloader_multiprocessing_context, methods)
    if args.dataloader_num_workers:
        return
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if getattr(args, name):
            raise InputError(f"{name}: there are no workers; set dataloader_num_workers, or leave it out")


def _check_compile(args: Any) -> None:
    if args.torch_compile_mode is not None:
        _check_word("torch_compile_mode", args.torch_compile_mode, list(_COMPILE_MODES))
    if args.torch_compile_backend is not None:
        backends = [backend.value.lower() for backend in DynamoBackend]
        _check_word("torch_compile_backend", str(args.torch_compile_backend).lower(), backends)
