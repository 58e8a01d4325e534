"""transformers' TrainingArguments, field by field: what this trainer refuses, what has no meaning for it, and ranges.

A field that is in none of these tables is honoured; ``tests/settings/test_every_argument.py`` tries each of them.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

from mdpo.errors import InputError

from .values import check_values

# Refused when set to anything but the default: they would train on something else than the user asked for.
REFUSED = {
    "per_device_train_batch_size": "micro-batches are counted in tokens; set token_budget instead",
    "per_device_eval_batch_size": "micro-batches are counted in tokens; set token_budget instead",
    "gradient_accumulation_steps": (
        "a step is planned whole, so that its gradient is a mean over its examples however they are packed; "
        "set examples_per_step and token_budget instead"
    ),
    "auto_find_batch_size": "a step keeps its size; set token_budget, or let mdpo train --memory 24GiB plan it",
    "label_smoothing_factor": (
        "it smooths the labels of a cross-entropy, which is not the loss here (cDPO's label_smoothing, which flips "
        "preferences, is not implemented); leave it out"
    ),
    "neftune_noise_alpha": (
        "the noise would be in the policy's embeddings and not in the reference's, so that rewards measure noise; "
        "leave it out"
    ),
    "train_sampling_strategy": "the planner draws a step's rows from data_seed and packs them by length; leave it out",
    "dataloader_drop_last": (
        "an epoch's last step is a mean over the rows that are left, not a padded one; leave it out"
    ),
    "dataloader_in_order": (
        "steps run in the order in which they were planned, so that a run can resume; leave it out"
    ),
    "bf16_full_eval": ("rows are evaluated in the dtype of training, so that rewards can be compared; set bf16"),
    "fp16_full_eval": ("rows are evaluated in the dtype of training, so that rewards can be compared; set fp16"),
    "include_for_metrics": "compute_metrics is not supported; MDPOTrainer.predict(rows) returns every row's numbers",
    "batch_eval_metrics": "compute_metrics is not supported; MDPOTrainer.predict(rows) returns every row's numbers",
    "enable_jit_checkpoint": "SIGTERM writes a checkpoint without it; leave it out",
    "parallelism_config": "tensor, context and sequence parallelism cannot split a packed row; use DDP or FSDP2",
    "do_predict": "a training run predicts nothing; use mdpo score, or MDPOTrainer.predict(rows)",
}
# In a YAML file or on the command line these are refused at their default too: it says what is not so.
ALWAYS_REFUSED = ("per_device_train_batch_size", "per_device_eval_batch_size")

Condition = Callable[[Any], bool]
_NUMBERS = "an evaluation keeps a few numbers per row, none of them on the device"
_UPLOADS = "a run uploads once, at its end"


def _always(args: Any) -> bool:
    return True


def _is(name: str, *values: object) -> Condition:
    return lambda args: _word(getattr(args, name)) in values


def _is_not(name: str, *values: object) -> Condition:
    return lambda args: _word(getattr(args, name)) not in values


def _optimizer_without(part: str) -> Condition:
    return lambda args: part not in _word(args.optim)


def _untracked(*trackers: str) -> Condition:
    """No tracker that reads the field; without names, no tracker at all."""
    return lambda args: not (set(args.report_to) & set(trackers) if trackers else args.report_to)


# Without effect when the condition holds: said once, when set to anything but the default.
IDLE: dict[str, tuple[Condition, str]] = {
    "average_tokens_across_devices": (_always, "a step's loss is a mean over its examples on all devices"),
    "logging_nan_inf_filter": (_always, "a loss that is not finite ends the run before it is logged"),
    "eval_do_concat_batches": (_always, _NUMBERS),
    "eval_use_gather_object": (_always, _NUMBERS),
    "eval_accumulation_steps": (_always, _NUMBERS),
    "remove_unused_columns": (_always, "rows are read column by column; none of them reaches the model's forward"),
    "label_names": (_always, "preference rows have no labels"),
    "length_column_name": (_always, "rows are measured in tokens, not by a column"),
    "local_rank": (_always, "the launcher's environment gives the rank"),
    "hub_token": (_is("push_to_hub", False), "push_to_hub is off"),
    "hub_private_repo": (_is("push_to_hub", False), "push_to_hub is off"),
    "hub_model_id": (_is("push_to_hub", False), "push_to_hub is off"),
    "hub_strategy": (_always, _UPLOADS),
    "hub_always_push": (_always, _UPLOADS),
    "hub_revision": (_is("push_to_hub", False), "push_to_hub is off"),
    "run_name": (_untracked(), "no tracker is named in report_to"),
    "project": (_untracked("trackio"), "report_to does not name trackio"),
    "trackio_space_id": (_untracked("trackio"), "report_to does not name trackio"),
    "trackio_bucket_id": (_untracked("trackio"), "report_to does not name trackio"),
    "trackio_static_space_id": (_untracked("trackio"), "report_to does not name trackio"),
    "liger_kernel_config": (_is("use_liger_kernel", False), "use_liger_kernel is off"),
    "activation_checkpointing_kwargs": (_is("gradient_checkpointing", False), "gradient_checkpointing is off"),
    "gradient_checkpointing_kwargs": (_is("gradient_checkpointing", False), "gradient_checkpointing is off"),
    "fsdp_config": (_is("fsdp", None, "", False), "fsdp is off"),
    "optim_target_modules": (
        lambda args: not {"galore", "apollo"} & set(_word(args.optim).split("_")),
        "only GaLore and APOLLO optimizers read it",
    ),
    "adam_beta1": (_is("optim", "sgd", "adagrad", "rmsprop", "adafactor"), "optim is not an Adam"),
    "adam_beta2": (_is("optim", "sgd", "adagrad", "rmsprop", "adafactor"), "optim is not an Adam"),
    "adam_epsilon": (_is("optim", "sgd", "adagrad", "rmsprop", "adafactor"), "optim is not an Adam"),
    "warmup_steps": (
        lambda args: args.warmup_steps > 0 and _word(args.lr_scheduler_type) == "constant",
        "lr_scheduler_type constant has no warmup; set constant_with_warmup",
    ),
    "num_train_epochs": (lambda args: args.max_steps > 0, "max_steps says when the run ends"),
    "logging_steps": (_is_not("logging_strategy", "steps"), "logging_strategy is not steps"),
    "save_steps": (_is_not("save_strategy", "steps"), "save_strategy is not steps"),
    "save_total_limit": (_is("save_strategy", "no"), "save_strategy is no"),
    "save_only_model": (_is("save_strategy", "no"), "save_strategy is no"),
    "eval_steps": (_is_not("eval_strategy", "steps"), "eval_strategy is not steps"),
    "eval_delay": (_is("eval_strategy", "no"), "nothing is evaluated while training"),
}


def _word(value: Any) -> Any:
    return getattr(value, "value", value)


def changed(args: Any, name: str) -> bool:
    """Whether a field was set to anything but its default. False for a field that this version does not have."""
    return any(field.name == name and getattr(args, name) != default_of(field) for field in fields(args))


def default_of(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def check_arguments(args: Any) -> None:
    """Checks what the user set, before transformers reads it. Raises InputError: "KEY: what is wrong; what to do"."""
    for name, reason in REFUSED.items():
        if changed(args, name):
            raise InputError(f"{name}: {reason}")
    check_values(args)


def idle_arguments(args: Any) -> list[str]:
    """A line for each field that was set and has no effect in this run. args: with their defaults resolved."""
    lines = []
    for name, (condition, reason) in IDLE.items():
        # 5.23 keeps the old names of checkpointing equal to the new ones.
        renamed = name.startswith("gradient_") and hasattr(args, name.replace("gradient", "activation"))
        if not renamed and changed(args, name) and condition(args):
            lines.append(f"{name}: no effect, {reason}")
    return lines
