"""A Trainer that goes on from a checkpoint exactly, or says in one line what of it cannot be."""

# transformers types a Trainer's attributes as all they could be.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_callback import ExportableState, TrainerState

from mdpo.errors import InputError, TrainingError
from mdpo.models.folder import some

from .checkpoints import last_whole_checkpoint
from .finite import weights_not_finite
from .keeps_checkpoints import KeepsCheckpoints
from .manifest import Unfit, check_signed
from .resume import best_folder
from .saved_state import read_pickle, read_state, reason

# Of a schedule's saved values, those that other versions of torch have.
_OTHER_VERSIONS = {"verbose", "_is_initial", "_get_lr_called_within_step"}
# An optimizer's values that are as large as their weight, by torch's names.
_OF_A_WEIGHT = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")


class GoesOn(KeepsCheckpoints):
    """``transformers.Trainer`` whose loading of a checkpoint ends in InputError where what is loaded does not fit."""

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        started = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            folder = Path(resume_from_checkpoint)
            best = read_state(folder, self.state.global_step)["best_model_checkpoint"]
            best = None if best is None else best_folder(folder, best, self.args)
            self.state.best_model_checkpoint = None if best is None else str(best)
            # The base class writes the states of this run's callbacks over those of the checkpoint's, by name, and
            # fails for a callback that is new.
            callbacks = [*self.callback_handler.callbacks, self.control]
            mine = [callback for callback in callbacks if isinstance(callback, ExportableState)]
            self.state.stateful_callbacks = TrainerState(stateful_callbacks=mine).stateful_callbacks
        # What a checkpoint's state says of these is what its own run was set to.
        self.state.compute_steps(self.args, max_steps)
        return started

    def _load_callback_state(self) -> None:
        with _refusing("the checkpoint", "the callbacks' states in trainer_state.json"):
            super()._load_callback_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _refusing(resume_from_checkpoint, "its weights"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        bad = weights_not_finite(self.model)
        if bad:
            raise InputError(
                f"cannot resume from {resume_from_checkpoint}: {len(bad)} of its weights are not finite "
                f"({some(bad)}); take another checkpoint"
            )

    def _load_best_model(self) -> None:
        folder = str(self.state.best_model_checkpoint)
        try:
            check_signed(Path(folder))
        except Unfit as problem:  # at the end of a training that is not to be lost for it
            last = last_whole_checkpoint(str(self.args.output_dir))
            raise TrainingError(
                f"the best checkpoint cannot be loaded: {folder} {problem}; the last weights are in {last}"
            ) from problem
        super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        fresh = [dict(group) for group in self.optimizer.param_groups]
        with _refusing(checkpoint, "scheduler.pt"):
            _check_same_kind(read_pickle(Path(checkpoint, "scheduler.pt")), self.lr_scheduler.state_dict())
        with _refusing(checkpoint, "its optimizer"):
            super()._load_optimizer_and_scheduler(checkpoint)
            _check_groups(self.optimizer.param_groups, fresh, self.lr_scheduler)
            if not self.is_fsdp_enabled:
                _check_states(self.optimizer, self.state.global_step)

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is None or scaler is None:
            return
        with _refusing(checkpoint, "scaler.pt"):
            saved, fresh = read_pickle(Path(checkpoint, "scaler.pt")), scaler.state_dict()
            _check_same_kind(saved, fresh)
            for name, value in fresh.items():
                if name not in ("scale", "_growth_tracker") and saved[name] != value:
                    raise Unfit(f"{name} is {saved[name]} instead of {value}")
            if not 0 < saved["scale"] < math.inf:
                raise Unfit(f"the scale is {saved['scale']}")
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _refusing(str(checkpoint), "its random state"):
            super()._load_rng_state(checkpoint)


@contextmanager
def _refusing(folder: str, what: str) -> Iterator[None]:
    """Turns whatever loading a file raises into InputError: the files may be a stranger's."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"cannot resume from {folder}: {what} does not fit ({reason(error)}); take another checkpoint"
        ) from error


def _check_same_kind(saved: Any, fresh: dict[str, Any]) -> None:
    """torch puts whatever stands in a schedule's file over the schedule's attributes. Raises Unfit."""
    if not isinstance(saved, dict):
        raise Unfit(f"it is a {type(saved).__name__}, not a dict")
    known = fresh.keys() | _OTHER_VERSIONS
    differing = [str(name)[:40] for name in saved if name not in known] + sorted(
        fresh.keys() - _OTHER_VERSIONS - saved.keys()
    )
    if differing:
        raise Unfit(f"{differing[0]!r} is not a value of this run's, or is missing")
    for name, value in fresh.items():
        theirs = saved.get(name, value)
        numbers = all(isinstance(each, (int, float)) for each in (theirs, value))
        if not (numbers or type(theirs) is type(value) or value is None or theirs is None):
            raise Unfit(f"{name} is a {type(theirs).__name__}, not a {type(value).__name__}")
        if isinstance(value, list) and (len(theirs) != len(value) or not all(map(_alike, theirs, value))):
            raise Unfit(f"{name} is not this run's")
    if saved.get("base_lrs") != fresh.get("base_lrs"):
        raise Unfit(f"base_lrs is {str(saved.get('base_lrs'))[:60]} instead of {fresh.get('base_lrs')}")


def _alike(one: Any, other: Any) -> bool:
    if isinstance(other, (int, float)):
        return isinstance(one, (int, float)) and math.isfinite(one)
    return type(one) is type(other)


def _check_groups(groups: list[dict[str, Any]], fresh: list[dict[str, Any]], schedule: Any) -> None:
    """Whether an optimizer's groups have this run's numbers, and the learning rate that the schedule has reached.

    Raises Unfit.
    """
    for number, (group, before) in enumerate(zip(groups, fresh, strict=True)):
        for name, value in before.items():
            if name not in ("lr", "params") and _numeric(value) and group.get(name) != value:
                raise Unfit(f"{name} is {str(group.get(name))[:40]} instead of {value}")
        if isinstance(schedule, LambdaLR):
            rate = schedule.base_lrs[number] * schedule.lr_lambdas[number](schedule.last_epoch)
            if not math.isclose(float(group["lr"]), rate, rel_tol=1e-6, abs_tol=1e-15):
                raise Unfit(f"its learning rate is {float(group['lr']):g}, and the schedule's is {rate:g}")


def _numeric(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_numeric, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_states(optimizer: Any, step: int) -> None:
    """Whether what an optimizer keeps of each weight is of the weight's shape, finite, and of no later step.

    Raises Unfit.
    """
    if step and not optimizer.state:
        raise Unfit("it contains no weights")
    largest = []
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and name in _OF_A_WEIGHT and value.shape != parameter.shape:
                raise Unfit(f"{name} has the shape {tuple(value.shape)} instead of {tuple(parameter.shape)}")
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                wide = torch.promote_types(value.dtype, torch.float32)
                largest.append(torch.linalg.vector_norm(value, math.inf, dtype=wide).isfinite().to(parameter.device))
        if "step" in state and not 0 <= float(state["step"]) <= step:
            raise Unfit(f"it has made {float(state['step']):g} steps, not {step}")
    if largest and not torch.stack(largest).all():
        raise Unfit("it contains numbers that are not finite")
