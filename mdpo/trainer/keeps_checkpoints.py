"""A Trainer whose checkpoints are whole or not there, hold no weight that is not finite, and go by their step."""

# transformers types a Trainer's attributes as all they could be.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from mdpo.config import MDPOConfig
from mdpo.errors import TrainingError
from mdpo.models.folder import short
from mdpo.outputs import unwritten

from .checkpoints import STAGING, checkpoint_folder, put_in_place, recover, rotate
from .finite import check_weights_finite
from .keeps_weights import KeepsWeights
from .manifest import sign
from .ranks import from_all_ranks, raised_by_all
from .way_on import way_on
from .weights import save_weights_alone


@dataclass
class _Saving:
    """A checkpoint on its way. error: the first that writing it met. pushes: whether it goes to the hub afterwards."""

    error: Exception | None = None
    pushes: bool = False


class KeepsCheckpoints(KeepsWeights):
    """``transformers.Trainer`` with the place that its checkpoints are written to replaced, and their rotation.

    The base class writes below STAGING, all ranks together. Then the main process notes every file's size and digest,
    brings all of it to the disk and gives it its name.
    """

    args: MDPOConfig
    _saving: _Saving | None = None
    _last_saved: Path | None = None

    def settings_of_checkpoints(self) -> dict[str, Any]:
        """What is written into every checkpoint, for a run that would go on from it to compare with."""
        raise NotImplementedError

    def keep_state(self, model: nn.Module) -> str:
        """Writes a checkpoint of the present step before a run ends in an error. Returns what is kept, in words."""
        if self.state.global_step == 0:
            return "nothing was trained yet"
        folder = checkpoint_folder(self._get_output_dir(None), self.state.global_step)
        if self._last_saved != folder:
            try:
                self._save_checkpoint(model, trial=None)
            except TrainingError as error:
                return str(error)
        return f"the state before it is kept in {folder}"

    def _save_checkpoint(self, model: nn.Module, trial: dict | None) -> None:
        """As the base class; a checkpoint that cannot be written, or should not be, leaves the one before.

        Raises TrainingError, on every rank.
        """
        folder = checkpoint_folder(self._get_output_dir(trial), self.state.global_step)
        check_weights_finite(self.model, self.args, f"the checkpoint of step {self.state.global_step}", sharded=True)
        saving = self._saving = _Saving()
        try:
            self._attempt(saving, lambda: super(KeepsCheckpoints, self)._save_checkpoint(model, trial))
        finally:
            self._saving = None
        self._raise_if_failed(saving, folder)
        if self.state.best_global_step:
            self._name_the_best(folder)
        if self.args.should_save:
            self._attempt(saving, lambda: self._finish(folder))
        self._raise_if_failed(saving, folder)
        self._last_saved = folder
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(folder.parent, self.args.save_total_limit, [folder, *([Path(best)] if best else [])])
        if saving.pushes:
            self._push_from_checkpoint(str(folder))

    def _name_the_best(self, folder: Path) -> None:
        """The best checkpoint by the name that it has, or is about to have: the base class looks for it below
        STAGING.
        """
        best = checkpoint_folder(folder.parent, self.state.best_global_step)
        if best == folder or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _finish(self, folder: Path) -> None:
        staged = folder.parent / STAGING / folder.name
        self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        sign(staged, self.settings_of_checkpoints(), self.state.global_step)
        put_in_place(staged, folder)

    def _attempt(self, saving: _Saving, write: Callable[[], None]) -> None:
        """Keeps the first error instead of raising it, so that no rank waits for one that has left."""
        try:
            write()
        except Exception as error:
            saving.error = saving.error or error

    def _raise_if_failed(self, saving: _Saving, folder: Path) -> None:
        error = saving.error
        reasons = from_all_ranks(self.args, [unwritten(error) or short(error)] if error else [])
        if not reasons:
            return
        state = ""
        if self.args.should_save:
            recover(folder.parent)
            state = self._rescued(error, folder)
        state += way_on(self.args, reasons[0], digests=False)
        raise raised_by_all(
            self.args, f"the checkpoint of step {self.state.global_step} could not be written: {reasons[0]}; {state}"
        ) from error

    def _rescued(self, error: Exception | None, folder: Path) -> str:
        """The weights alone, where a file beside them could not be written; torch and safetensors wrap a full disk in
        errors of their own."""
        if error is None or isinstance(error, (OSError, RuntimeError, SafetensorError)) or self.is_fsdp_enabled:
            return ""
        try:
            path = save_weights_alone(self.model, folder.with_name(f"weights-{self.state.global_step}"))
        except Exception:  # the first error says enough
            return ""
        return f"the step's weights are in {path}, and "

    # The base class writes a checkpoint's parts by these. Where each is one process's own work, the others' go on.

    def _get_output_dir(self, trial: dict | None) -> str:
        folder = super()._get_output_dir(trial)
        return folder if self._saving is None else str(Path(folder, STAGING))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the base class. Raises TrainingError where a trained weight is not finite: nothing is written then."""
        if self._saving is None:
            check_weights_finite(self.model, self.args, "the model", sharded=self.is_fsdp_enabled)
        self._part(lambda: super(KeepsCheckpoints, self).save_model(output_dir, _internal_call))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._part(lambda: super(KeepsCheckpoints, self)._save_optimizer_and_scheduler(output_dir))

    def _save_scaler(self, output_dir: str) -> None:
        self._part(lambda: super(KeepsCheckpoints, self)._save_scaler(output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        self._part(lambda: super(KeepsCheckpoints, self)._save_rng_state(output_dir))

    def _part(self, write: Callable[[], None]) -> None:
        if self._saving is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            write()
        elif self._saving.error is None:
            self._attempt(self._saving, write)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._saving is not None:  # its folder has another name soon
            self._saving.pushes = True
            return
        try:
            super()._push_from_checkpoint(checkpoint_folder)
        except Exception as error:
            raise TrainingError(f"{checkpoint_folder} is written, but could not be pushed: {short(error)}") from error
