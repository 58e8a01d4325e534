"""``mdpo plan`` and ``mdpo train --memory``: from a configuration to a plan."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from mdpo.config import MDPOConfig, RunConfig, load_config, parse_overrides
from mdpo.data import DataOptions, PreferenceDataset, data_files, read_rows
from mdpo.errors import InputError
from mdpo.models import load_processor, lora_expression, torch_dtype
from mdpo.models.adapters import adapter_config
from mdpo.models.load import model_config

from .choose import Plan, Wishes, choose, smallest, wished_optimizers
from .footprint import ADAM_BYTES
from .layer import Precision
from .lengths import Examples, from_lengths, log_normal
from .shapes import SHAPES, Adaptation, ModelShape, read_shape
from .size import gibibytes, parse_size
from .table import table


def run_plan(options: argparse.Namespace) -> None:
    """Prints the table and the plan. Raises InputError where nothing fits."""
    overrides = parse_overrides(options.overrides)
    # A plan is made where there is no GPU yet; a configuration with bf16 would be refused there.
    here = {} if torch.cuda.is_available() else {"use_cpu": True}
    run, args = load_config(options.config, {**overrides, **here})
    plan_run(run, args, parse_size(options.memory), options.lora_pattern, cuda=True)


def planned_settings(run: RunConfig, args: MDPOConfig, memory: str, lora_pattern: str) -> dict[str, Any]:
    """The keys that ``mdpo train --memory`` sets. Raises InputError where nothing fits."""
    return plan_run(run, args, parse_size(memory), lora_pattern, cuda=not args.use_cpu).settings


def plan_run(run: RunConfig, args: MDPOConfig, memory_bytes: int, lora_pattern: str, *, cuda: bool) -> Plan:
    """The plan of a run for ``memory_bytes`` of one device, printed. lora_pattern: LoRA's targets where the run names none.

    Raises InputError where nothing fits, with the smallest that would, or where a key is missing that stands for what
    is not on this machine.
    """
    config = _model_config(run)
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer not in ADAM_BYTES:
        raise InputError(f"optim: {optimizer!r} is not planned for; choose from {', '.join(ADAM_BYTES)}")
    if not (run.use_lora or (run.freeze_vision_tower and run.freeze_multi_modal_projector)):
        raise InputError("freeze_vision_tower, freeze_multi_modal_projector: only frozen ones are planned for")
    shape = read_shape(config, _adaptation(run, args, lora_pattern))
    examples = _examples(run, args, shape)
    wishes = _wishes(run, args, shape, optimizer, cuda)
    chosen = choose(shape, examples, wishes, memory_bytes)
    if chosen is None:
        raise InputError(_nothing_fits(run, shape, examples, wishes, memory_bytes))
    columns = []
    for quantized in wishes.quantized:
        only = replace(wishes, quantized=(quantized,))
        plan = choose(shape, examples, only, memory_bytes)
        columns.append((plan or smallest(shape, examples, only), plan is not None))
    print(table(columns, chosen, examples, memory_bytes))
    return chosen


def _adaptation(run: RunConfig, args: MDPOConfig, lora_pattern: str) -> Adaptation:
    if run.adapter_name_or_path is None:
        pattern = lora_expression(run.lora_target_modules or lora_pattern)
        return Adaptation(rank=run.lora_r if run.use_lora else 0, pattern=pattern)
    config = adapter_config(run.adapter_name_or_path)
    targets = config.get("target_modules") or lora_pattern
    if not isinstance(targets, str):  # peft takes the end of a name
        targets = rf"(.*\.)?({'|'.join(map(re.escape, targets))})"
    return Adaptation(rank=config.get("r", run.lora_r), pattern=targets, is_reference=args.reference != "base")


def _wishes(run: RunConfig, args: MDPOConfig, shape: ModelShape, optimizer: str, cuda: bool) -> Wishes:
    weight_bytes = shape.dtype_bytes if run.dtype == "auto" else torch_dtype(run.dtype).itemsize
    autocast = args.bf16 or args.fp16
    return Wishes(
        precision=Precision(weight_bytes=weight_bytes, autocast=autocast, cuda=cuda, liger=args.use_liger_kernel),
        quantized=(True,) if run.load_in_4bit else (False, True) if run.use_lora else (False,),
        optimizers=wished_optimizers(optimizer),
        token_budget=args.token_budget,
        examples_per_step=args.examples_per_step,
    )


def _model_config(run: RunConfig) -> PreTrainedConfig:
    if run.plan_model_shape is not None:
        if run.plan_model_shape not in SHAPES:
            raise InputError(f"plan_model_shape: {run.plan_model_shape!r} is unknown; choose from {', '.join(SHAPES)}")
        if not Path(run.model_name_or_path, "config.json").is_file():
            return SHAPES[run.plan_model_shape]()
    if not Path(run.model_name_or_path, "config.json").is_file():
        raise InputError(
            f"model_name_or_path: {run.model_name_or_path} has no config.json to plan from; put it there, or set "
            f"plan_model_shape to one of {', '.join(SHAPES)}"
        )
    return model_config(Path(run.model_name_or_path))


def _examples(run: RunConfig, args: MDPOConfig, shape: ModelShape) -> Examples:
    images = 0 if args.drop_images else 1 + args.uses_image_rejected
    if data_files(run.train_data) and Path(run.model_name_or_path).is_dir():
        rows = read_rows(
            run.train_data, run.image_dir, allow_outside=run.allow_outside, ignore_columns=args.ignore_columns
        )
        dataset = PreferenceDataset(rows, load_processor(run.model_name_or_path), DataOptions.of(args))
        return from_lengths(dataset.lengths.tolist(), images=images, image_tokens=shape.image_tokens)
    keys = ("plan_prompt_tokens", "plan_response_tokens_median", "plan_response_tokens_max")
    missing = [key for key in keys if getattr(run, key) is None]
    if missing:
        raise InputError(
            f"train_data: {run.train_data} or the processor in {run.model_name_or_path} is not on this machine, so its "
            f"lengths have to be said: set {', '.join(missing)}"
        )
    prompt, median, most = (getattr(run, key) for key in keys)
    if args.max_length is not None:
        most = min(most, args.max_length - prompt)
    if min(prompt, median, most) < 1:
        raise InputError(f"{', '.join(keys)}: expected numbers above 0 that max_length leaves room for")
    return log_normal(
        prompt_tokens=prompt, response_tokens_median=median, response_tokens_max=most, images=images,
        image_tokens=shape.image_tokens,
    )  # fmt: skip


def _nothing_fits(run: RunConfig, shape: ModelShape, examples: Examples, wishes: Wishes, memory_bytes: int) -> str:
    """The smallest that would fit, and what each remedy would bring."""
    least = smallest(shape, examples, wishes)
    parts = least.footprint.parts
    tokens = sum(parts[name] for name in ("boundaries", "kept layers", "recomputed layer", "in flight", "head", "inputs"))
    weights = "in 4 bits" if least.quantized else "not quantised"
    remedies = [f"max_length shortens the longest example, whose {examples.longest} packed tokens take {gibibytes(tokens)} GiB"]
    if run.use_lora:
        adapter = sum(parts[name] for name in ("adapter", "gradients", "optimizer", "casts"))
        remedies.append(f"lora_r {max(run.lora_r // 2, 1)} halves the {gibibytes(adapter)} GiB of the adapter")
    else:
        remedies.append("use_lora trains an adapter instead of the weights")
    return (
        f"nothing fits in {gibibytes(memory_bytes)} GiB: the smallest needs {gibibytes(least.footprint.total)} GiB "
        f"(weights {weights}, {least.optimizer}, {least.checkpoint_layers} of {shape.layers} layers checkpointed, "
        f"token_budget {least.token_budget}). To change: {'; '.join(remedies)}"
    )
