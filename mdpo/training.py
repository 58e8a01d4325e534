"""``mdpo train``: from a configuration to a run in its folder."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from mdpo.config import MDPOConfig, RunConfig
from mdpo.data import DataOptions, PictureSize, PreferenceDataset, Rows, TextOptions, rows_of_run, size_pictures
from mdpo.errors import InputError
from mdpo.hub import folder_of
from mdpo.launch import launch
from mdpo.memory import AUTO, free_memory, memory_of
from mdpo.memory.allocator import use_expandable_segments
from mdpo.memory.automatic import automatic
from mdpo.memory.commands import planned_settings
from mdpo.memory.constraints import counted, data_of
from mdpo.models import (
    LANGUAGE_LINEAR,
    check_lora_targets,
    check_trainable,
    freeze_vision,
    load,
    load_processor,
    load_with_adapter,
    lora_expression,
)
from mdpo.models.adapters import adapter_config
from mdpo.models.base_digest import weights_digest
from mdpo.models.model_card import write_run_record
from mdpo.objectives import objective_of
from mdpo.run_lock import RunLock
from mdpo.run_source import RunSource
from mdpo.settings import ADAPTER, idle_settings
from mdpo.shown import say
from mdpo.stops import resumed_command
from mdpo.trainer import MDPOTrainer, check_run
from mdpo.trainer.folder import begin, hold_folder
from mdpo.trainer.machine import compiler_fault_anywhere
from mdpo.trainer.preflight import check_settings
from mdpo.trainer.ranks import meet, misses_a_rank, over_ranks, together, without_a_rank
from mdpo.trainer.resume import checkpoint_to_resume, saved_settings
from mdpo.trainer.run_settings import chosen_by
from mdpo.trainer.signals import active, name_of
from mdpo.trainer.way_on import resumes

_log = logging.getLogger(__name__)


def train(options: argparse.Namespace) -> int:
    """The command; returns the exit code. options: ``config``, ``memory``, ``accelerate``, ``overrides`` and
    what was typed, ``words``."""
    if options.accelerate is not None:
        launch(options.accelerate, options.words)
    use_expandable_segments()
    source, chosen = RunSource.of(options), {}
    run, args = source.load()
    if source.names_folder and args.process_index == 0:
        say(f"output_dir: {args.output_dir} (set --output_dir for another)")
    lora_expression(run.lora_target_modules)
    check_run(args, ("",) if run.eval_data is not None or run.eval_fraction else ())
    if options.memory is not None:
        memory = memory_of(options.memory, lambda: _free_on_each(args))
        chosen = planned_settings(run, args, memory, LANGUAGE_LINEAR, cuda=_on_gpu(args))
        run, args = source.load(chosen)
    check_settings(args)
    for line in idle_settings(run, ADAPTER) if args.process_index == 0 else ():
        _log.warning(line)
    inputs = _inputs(run)
    try:
        meet(args)
        together(args, lambda: check_trainable(run.model_name_or_path))  # before a folder is made, or data fetched
        with together(args, partial(hold_folder, args, args)) or nullcontext() as lock:
            together(args, partial(begin, args, _resume_from(args.resume_from_checkpoint), inputs))
            return _train(run, args, lock, options, source, chosen)
    except RuntimeError as error:
        if misses_a_rank(args, error):
            raise without_a_rank(args) from error
        raise


def _train(
    run: RunConfig,
    args: MDPOConfig,
    lock: RunLock | None,
    options: argparse.Namespace,
    source: RunSource,
    chosen: dict[str, Any],
) -> int:
    """The run, in a folder that is its own; returns the exit code.

    lock: on the folder, on the main process. options: the command. chosen: settings that win over the source's.
    """
    resume = together(args, lambda: checkpoint_to_resume(args, _resume_from(args.resume_from_checkpoint)))
    processor = together(args, lambda: _processor(run))
    rows, eval_rows = together(args, lambda: _training_rows(run, args))
    data: Rows | PreferenceDataset = rows
    if _on_gpu(args) and options.memory is None:
        data = together(args, lambda: PreferenceDataset(rows, processor, DataOptions.of(args, objective_of(args))))
        run, args = source.load(chosen | _chosen(run, args, data, resume))
    model = together(args, lambda: _model(run, args))
    trainer = MDPOTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=eval_rows,
        processing_class=processor,
        peft_config=_lora(run) if run.use_lora and run.adapter_name_or_path is None else None,
    )
    main_process = trainer.is_world_process_zero()
    trainer.run_folder.take_over(lock)
    record = partial(
        write_run_record,
        str(args.output_dir),
        asdict(run),
        base_weights=weights_digest(folder_of(run.model_name_or_path)),
        text=TextOptions.of(args).values(),
    )
    trainer.run_folder.at_first_step(record)
    trainer.train(resume_from_checkpoint=resume)
    stop = trainer.stop_on_signal
    if not stop.stopped:
        together(args, trainer.save_model)
        together(args, trainer.save_state)
        together(args, trainer.create_model_card)
    if main_process:
        say(_stopped(trainer, options.words) if stop.stopped else f"saved to {args.output_dir}")
    if args.push_to_hub and not stop.stopped:
        address = together(args, trainer.upload)
        if main_process:
            say(f"uploaded: {address}")
    # If one process exits while another is still saving, torchrun kills them all.
    trainer.accelerator.wait_for_everyone()
    current = active()
    if current is not None:
        current.over = True
    trainer.accelerator.end_training()
    return 128 + (stop.received or 0) if stop.stopped else 0


def _chosen(run: RunConfig, args: MDPOConfig, data: PreferenceDataset, resume: str | None) -> dict[str, Any]:
    """What is chosen for a run on the GPU, said in one line. resume: the checkpoint to go on from."""
    memory = memory_of(AUTO, lambda: _free_on_each(args))
    fault = compiler_fault_anywhere(args)
    recorded = together(args, lambda: None if resume is None else chosen_by(saved_settings(Path(resume))))
    chosen = together(
        args,
        lambda: automatic(
            run,
            args,
            lambda shape: counted(args, shape, data_of(run, data)),
            memory,
            LANGUAGE_LINEAR,
            processes=args.world_size,
            compiler_fault=fault,
            recorded=recorded,
        ),
    )
    if args.process_index == 0:
        _log.info(chosen.line)
    return chosen.settings


def _on_gpu(args: MDPOConfig) -> bool:
    return args.device.type == "cuda"


def _free_on_each(args: MDPOConfig) -> int:
    """Bytes that are free on every card of the run."""
    return over_ranks(args, free_memory(args.device), "min")


def _processor(run: RunConfig) -> ProcessorMixin:
    return size_pictures(load_processor(run.model_name_or_path), PictureSize.of(run))


def _model(run: RunConfig, args: MDPOConfig) -> PreTrainedModel | PeftModel:
    asked: dict[str, Any] = {"dtype": run.dtype, "load_in_4bit": run.load_in_4bit}
    if run.adapter_name_or_path is not None:
        _check_lora_settings(run)
        return load_with_adapter(
            run.model_name_or_path, run.adapter_name_or_path, trainable=True, fused=args.fused_lora, **asked
        )
    model = load(run.model_name_or_path, **asked)
    if run.use_lora:
        check_lora_targets(model, run.lora_target_modules)
    else:
        freeze_vision(model, tower=run.freeze_vision_tower, projector=run.freeze_multi_modal_projector)
    return model


def _stopped(trainer: MDPOTrainer, words: Sequence[str]) -> str:
    """What became of a run that was stopped, and what to do with it."""
    args, line = trainer.args, f"stopped by {name_of(trainer.stop_on_signal.received or 0)}"
    if not trainer.has_trained:
        return f"{line} before the first step; nothing was trained"
    line = f"{line} after step {trainer.state.global_step}"
    if not resumes(args):
        reason = "save_only_model leaves" if args.save_only_model else "DeepSpeed's checkpoints leave"
        return (
            f"{line}; its weights are in the newest checkpoint of {args.output_dir}, but {reason} nothing to resume "
            "from"
        )
    launcher = ", under the same launcher," if args.world_size > 1 else ""
    return f"{line}; go on{launcher} with: {resumed_command(words)}"


def _resume_from(value: str | bool | None) -> str | bool | None:
    """``true`` is the newest checkpoint, also where it was written as text."""
    return {"true": True, "false": None}.get(str(value).lower(), value)


def _inputs(run: RunConfig) -> dict[str, str | None]:
    """What the run reads, by setting; of a list of files each by itself."""
    found: dict[str, str | None] = {
        "model_name_or_path": run.model_name_or_path,
        "adapter_name_or_path": run.adapter_name_or_path,
    }
    for name in ("train_data", "eval_data"):
        given = getattr(run, name)
        if isinstance(given, (list, dict)):
            found |= {f"{name}[{number}]": path for number, path in enumerate(given)}
        else:
            found[name] = given
    return found


def _training_rows(run: RunConfig, args: MDPOConfig) -> tuple[Rows, Rows | None]:
    rows = rows_of_run(run.train_data, run, args)
    if run.eval_data is not None:
        return rows, rows_of_run(run.eval_data, run, args)
    held_out = round(len(rows) * run.eval_fraction)
    if not held_out and not run.eval_fraction:
        return rows, None
    if not 0 < held_out < len(rows):
        raise InputError(
            f"eval_fraction: {run.eval_fraction} of {len(rows)} rows is {held_out}, which leaves nothing to "
            f"{'train' if held_out else 'evaluate'} on; choose another share"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).numpy()
    return rows.select(order[held_out:]), rows.select(order[:held_out])


def _check_lora_settings(run: RunConfig) -> None:
    """Raises InputError where a setting asks for another LoRA than the adapter that the run goes on from."""
    config = adapter_config(str(run.adapter_name_or_path))
    defaults = {f.name: f.default for f in fields(RunConfig)}
    for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
        key = "r" if name == "lora_r" else name if name in config else name.removeprefix("lora_")
        asked, has = getattr(run, name), config.get(key)
        if asked != defaults[name] and asked != has:
            raise InputError(
                f"{name}: {asked!r}, but the adapter at {run.adapter_name_or_path} has {has!r}; leave it out"
            )


def _lora(run: RunConfig) -> LoraConfig:
    return LoraConfig(
        r=run.lora_r,
        lora_alpha=run.lora_alpha,
        lora_dropout=run.lora_dropout,
        target_modules=lora_expression(run.lora_target_modules),
        task_type="CAUSAL_LM",
    )
