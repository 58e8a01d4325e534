"""Which checkpoint a run goes on from, chosen before the model is loaded, and what of it is checked when there
is one.
"""

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import PeftModel
from torch import nn

from mdpo.config import MDPOConfig
from mdpo.errors import InputError
from mdpo.models.folder import check_weight_files, short
from mdpo.run_folder import way_anew

from .checkpoints import checkpoint_folder, checkpoint_step, checkpoints_newest_first, recover
from .manifest import SETTINGS_NAME, Unfit, check_signed, read_json
from .saved_state import check_parts, check_progress, check_random_states, check_schedule, read_state
from .weights import check_adapters

_log = logging.getLogger(__name__)


def checkpoint_to_resume(args: MDPOConfig, requested: str | bool | None) -> str | None:
    """The folder of the checkpoint to go on from, None where none is asked for. Needs no model.

    requested: a checkpoint's folder, or True for the newest below ``output_dir`` that is whole and as it was written;
        others are passed over, by name and reason.

    One process reads the files, since all of them see the same. Raises InputError, on every process, for a folder that
    is no such checkpoint, and where there is none.
    """
    if not requested:
        return None
    if args.deepspeed_plugin is not None:
        raise InputError("resume_from_checkpoint: DeepSpeed's checkpoints contain pickles; resume under DDP or FSDP2")
    answer: list[Any] = [None]
    if args.process_index == 0:
        try:
            recover(args.output_dir or ".")
            answer = [str(_newest(args) if requested is True else _given(args, Path(requested)))]
        except (InputError, OSError) as error:
            answer = [InputError(str(error)) if isinstance(error, InputError) else _unreadable(args, error)]
    if args.world_size > 1:
        dist.broadcast_object_list(answer, src=0, device=args.device)
    if isinstance(answer[0], InputError):
        raise answer[0]
    return answer[0]


def _unreadable(args: MDPOConfig, error: OSError) -> InputError:
    return InputError(f"cannot resume below {args.output_dir}: {error.strerror or error}; take another checkpoint")


def _newest(args: MDPOConfig) -> Path:
    passed_over = []
    for folder in checkpoints_newest_first(args.output_dir or "."):
        try:
            check_folder(folder, args)
        except Unfit as problem:
            passed_over.append(f"{folder.name} {problem}")
            _log.warning("%s %s: passed over", folder, problem)
        else:
            return folder
    reasons = f" ({'; '.join(passed_over[:3])})" if passed_over else ""
    raise InputError(
        f"resume_from_checkpoint: {args.output_dir} contains no whole checkpoint{reasons}; "
        f"{way_anew(args.output_dir or '.')}"
    )


def _given(args: MDPOConfig, folder: Path) -> Path:
    try:
        check_folder(folder, args)
    except Unfit as problem:
        raise refusal(folder, problem) from problem
    return folder


def refusal(folder: str | Path, problem: Unfit) -> InputError:
    remedy = "" if "take another" in str(problem) or "that version" in str(problem) else "; take another checkpoint"
    return InputError(f"cannot resume from {folder}: it {problem}{remedy}")


def check_folder(folder: Path, args: MDPOConfig) -> None:
    """Whether a checkpoint is as it was written, and holds what a run of these settings goes on with; without its model
    and rows. Raises Unfit."""
    step = check_signed(folder)["step"]
    if checkpoint_step(folder) not in (None, step):
        raise Unfit(f"was written at step {step}, not at that of its name")
    check_parts(folder, scaler=args.fp16)
    state = read_state(folder, step)
    if args.max_steps > 0 and step > args.max_steps:
        raise Unfit(f"is of step {step}, and this run ends at max_steps: {args.max_steps}")
    check_schedule(folder, step, exactly=not args.fp16)
    check_random_states(folder)
    if args.load_best_model_at_end:
        check_best(folder, state, args)


def check_best(folder: Path, state: dict[str, Any], args: MDPOConfig) -> None:
    """Raises Unfit where the best checkpoint so far, which the run would end with, is not there as it was written."""
    if state["best_model_checkpoint"] is None:
        return
    best = best_folder(folder, state["best_model_checkpoint"], args)
    try:
        if best is None:
            raise Unfit("is not there any more")
        if best.resolve() != folder.resolve():
            check_signed(best)
    except Unfit as problem:
        raise Unfit(
            f"needs the best checkpoint so far, {Path(state['best_model_checkpoint']).name}, which {problem}; put "
            "it back, set load_best_model_at_end: false, or take another checkpoint"
        ) from problem


def best_folder(folder: Path, saved: str, args: MDPOConfig) -> Path | None:
    """Where the checkpoint is that a state names as the best: by its step, in this run's folder or beside ``folder``,
    since a run may have been moved."""
    step = checkpoint_step(saved)
    places = (
        []
        if step is None
        else [checkpoint_folder(args.output_dir or ".", step), checkpoint_folder(folder.parent, step)]
    )
    return next((place for place in places if place.is_dir()), None)


def check_for_model(folder: Path, model: nn.Module, *, sharded: bool, max_steps: int, steps_per_epoch: int) -> None:
    """Raises InputError where a checkpoint that ``check_folder`` let pass is not of this model, or not of these rows.

    sharded: whether the run is one of FSDP, which keeps weights and optimizer in folders of their own.
    """
    try:
        state = read_state(folder, check_signed(folder, digests=False)["step"])
        check_progress(state, max_steps=max_steps, steps_per_epoch=steps_per_epoch)
    except Unfit as problem:
        raise refusal(folder, problem) from problem
    names = [path.name for path in folder.iterdir()]
    try:
        if sharded:
            if not any(name.startswith("pytorch_model_fsdp") for name in names):
                raise InputError("FSDP's weights are missing; take another checkpoint")
        elif isinstance(model, PeftModel):
            _check_adapters_alone(model, folder)
            check_adapters(model, folder)
        elif any(name.startswith("adapter_") for name in names):
            raise InputError("it contains an adapter, and this run trains the model itself (use_lora)")
        else:
            check_weight_files(folder)
    except InputError as error:
        raise InputError(f"cannot resume from {folder}: {error}") from error
    except Exception as error:  # a stranger's files can make the libraries raise anything
        raise InputError(f"cannot resume from {folder}: {short(error)}; take another checkpoint") from error


def _check_adapters_alone(model: PeftModel, folder: Path) -> None:
    """transformers would load a whole model's weights in place of the adapter, and adapters that the model does not
    have.
    """
    strange = [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()]
    strange += [
        path.parent.name
        for path in sorted(folder.glob("*/adapter_model.*"))
        if path.parent.name not in model.peft_config
    ]
    if strange:
        raise InputError(f"it contains {strange[0]}, which is not of this run's adapter; take another checkpoint")


def saved_settings(folder: Path) -> dict[str, Any]:
    """Raises InputError where they cannot be read."""
    try:
        return read_json(folder / SETTINGS_NAME)
    except Unfit as problem:
        raise refusal(folder, problem) from problem
