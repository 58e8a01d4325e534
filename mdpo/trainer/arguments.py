"""What of the settings can be judged only beside the device, the rows and the model."""

import copy
import logging
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import ParallelMode

from mdpo.config import MDPOConfig
from mdpo.errors import InputError
from mdpo.objectives import objective_of
from mdpo.packing import branch_of
from mdpo.settings import OBJECTIVE, idle_arguments, idle_settings, shortened

from .metrics import metrics_of

_log = logging.getLogger(__name__)


def eval_names(eval_dataset: object) -> tuple[str, ...]:
    """The names of the evaluation's data sets: one without a name is "", and () stands for no rows."""
    return () if eval_dataset is None else tuple(eval_dataset) if isinstance(eval_dataset, dict) else ("",)


def check_run(args: MDPOConfig, names: tuple[str, ...]) -> None:
    """What can be said before the model is loaded. Raises InputError that names the setting.

    names: from ``eval_names``.
    """
    if args.fp16 and args.device.type == "cpu":
        raise InputError("fp16: a CPU has no float16 training; set bf16, or neither")
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise InputError(
            "fsdp: this is a single process; start the run with accelerate launch or torchrun, or leave it out"
        )
    _check_optimizer_arguments(args)
    if names:
        _check_metric(args, names)
    else:
        _check_nothing_is_evaluated(args)


def settle_evaluation(args: MDPOConfig, rows: int) -> None:
    """Rows that are held out are evaluated: once an epoch, unless the user has said otherwise.

    rows: how many they are.
    """
    if args.eval_strategy != IntervalStrategy.NO or not rows:
        return
    if args.eval_strategy_given:
        _say(args, f"eval_strategy: no, so the {rows} evaluation rows are not used while training")
        return
    args.eval_strategy = IntervalStrategy.EPOCH
    args.do_eval = True
    _say(args, f"eval_strategy: epoch, because there are {rows} evaluation rows; set eval_strategy to change it")


def say_what_has_no_effect(args: MDPOConfig) -> None:
    """One line for each setting that was given and does nothing in this run."""
    for line in (*idle_arguments(args), *idle_settings(args, OBJECTIVE)):
        _say(args, line)


def check_warmup(args: MDPOConfig, steps: int) -> None:
    """steps: of the run. Raises InputError where the schedule divides by the steps after the warm-up, and there are
    none.
    """
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if schedule == "polynomial" and args.get_warmup_steps(steps) == steps:
        raise InputError(
            f"lr_scheduler_type: polynomial has no steps to decay over, because the warmup takes all of the {steps} "
            "steps; lower warmup_steps, or train for more"
        )


def check_fsdp(plugin: Any) -> None:
    """plugin: accelerate's. Raises InputError for FSDP's first version."""
    if plugin.fsdp_version != 2:
        raise InputError(
            "fsdp: version 1 flattens the weights that the log-probs read one by one; set version 2 (FSDP2)"
        )


def check_weights(args: MDPOConfig, model: nn.Module) -> None:
    """Raises InputError where fp16 cannot train weights of the model's dtype."""
    if not args.fp16:
        return
    if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        raise InputError(
            "fp16: the weights are bfloat16, which has a larger range than float16; set bf16, or dtype: float32"
        )
    if any(parameter.dtype == torch.float16 and parameter.requires_grad for parameter in model.parameters()):
        raise InputError("fp16: gradients of float16 weights cannot be unscaled; set dtype: float32")


def _check_nothing_is_evaluated(args: MDPOConfig) -> None:
    # A strategy, and eval_steps, may have been chosen for one of those that stand before them.
    wishes = {
        "load_best_model_at_end": args.load_best_model_at_end,
        "save_strategy": args.save_strategy == "best",
        "lr_scheduler_type": args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
        "eval_steps": args.eval_steps is not None and not args.eval_strategy_given,
        "eval_strategy": args.eval_strategy != IntervalStrategy.NO,
        "eval_on_start": args.eval_on_start,
        "do_eval": args.do_eval,
    }
    for name, wished in wishes.items():
        if wished:
            raise InputError(
                f"{name}: no rows to evaluate on; give eval_data or eval_fraction (eval_dataset in "
                f"Python), or leave {name} out"
            )


def _check_metric(args: MDPOConfig, names: tuple[str, ...]) -> None:
    if args.metric_for_best_model is None:
        return
    wanted = args.metric_for_best_model.removeprefix("eval_")
    objective = objective_of(args)
    read = {"chosen", "rejected", *(branch for term in objective.terms for branch in term.branches)}
    if args.drop_images:
        read = {branch for branch in read if not branch_of(branch).needs_image}
    measured = [metric.name for metric in metrics_of(objective.branches, objective.terms) if metric.branches <= read]
    known = [f"{name}_{metric}".removeprefix("_") for name in names for metric in measured]
    if wanted not in known:
        raise InputError(f"metric_for_best_model: {wanted!r} is not measured; choose from {', '.join(known)}")


def _check_optimizer_arguments(args: MDPOConfig) -> None:
    """Every name in optim_args has to be read: with another value, the optimizer has to be given something else."""
    optimizer = str(getattr(args.optim, "value", args.optim))
    if {"galore", "apollo"} & set(optimizer.split("_")):  # these are built on the model's layers
        return
    for part in filter(None, (args.optim_args or "").replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        try:
            given = _optimizer_keywords(args, part)
        except ImportError:  # without its package nothing can be tried; the run will name the package
            return
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"optim_args: {optimizer} does not take {part}: {error}") from error
        try:
            read = given != _optimizer_keywords(args, f"{name}={_other(value)}")
        except (ValueError, TypeError, AttributeError):  # it minds the value
            read = True
        if not read:
            raise InputError(f"optim_args: {optimizer} reads no {name!r}; leave it out")
    if args.optim_args:
        kind, keywords = Trainer.get_optimizer_cls_and_kwargs(args)
        try:  # its own checks of the values, which would come after the model is loaded
            kind([torch.zeros(1, requires_grad=True)], **keywords)
        except (ValueError, TypeError) as error:
            raise InputError(f"optim_args: {optimizer} does not take {args.optim_args}: {shortened(error)}") from error


def _optimizer_keywords(args: MDPOConfig, optim_args: str) -> Any:
    changed = copy.copy(args)
    changed.optim_args = optim_args
    return Trainer.get_optimizer_cls_and_kwargs(changed)


def _other(value: str) -> str:
    """A value of the same kind as the one that is written."""
    if value.lower() in ("true", "false"):
        return "false" if value.lower() == "true" else "true"
    try:
        return str(int(value) + 1) if value.isdigit() else str(float(value) + 1)
    except ValueError:
        return f"{value}_"


def _say(args: MDPOConfig, line: str) -> None:
    if args.process_index == 0:
        _log.warning(line)
