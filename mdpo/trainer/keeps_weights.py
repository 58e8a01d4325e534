"""A Trainer that never goes on with other weights than a checkpoint's, nor ends without the ones it trained."""

# transformers types a Trainer's attributes as all they could be.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mdpo.errors import InputError, OutputError, TrainingError
from mdpo.models.adapters import name_base
from mdpo.models.folder import short
from mdpo.models.logps import unwrap
from mdpo.outputs import unwritten, whole_contents, whole_file

from .checkpoints import checkpoints_newest_first, last_whole_checkpoint, remove
from .way_on import remedy, resumes, way_on
from .weights import adapter_folder, check_adapters, load_weights, save_weights_alone

if TYPE_CHECKING:
    from .folder import RunFolder

_log = logging.getLogger(__name__)

_CARD = "README.md"
# Without its config nothing takes a folder for a model or an adapter.
_CONFIGS = ("config.json", "adapter_config.json")
_SHARDS = ("model*.safetensors", "model.safetensors.index.json")  # as many as there were before, under other names


class KeepsWeights(Trainer):
    """``transformers.Trainer`` with its loading and its last saving replaced; FSDP and DeepSpeed keep their own."""

    run_folder: "RunFolder"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        folder = self.state.best_model_checkpoint
        try:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                super()._load_best_model()
            elif isinstance(self.model, PeftModel):
                check_adapters(self.model, folder)
                super()._load_from_checkpoint(folder)  # the other looks for an adapter called "default" alone
            else:
                load_weights(self.model, folder)
        except InputError as error:  # at the end of a training that is not to be lost for it
            last = last_whole_checkpoint(self.args.output_dir)
            raise TrainingError(
                f"the best checkpoint cannot be loaded: {error}; the last weights are in {last}"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        for adapter in self.model.peft_config if isinstance(self.model, PeftModel) else ():
            name_base(adapter_folder(output_dir or self.args.output_dir, adapter), unwrap(self.model).name_or_path)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the base class, but whole or not at all; where a file beside the weights cannot be written, the weights
        are.

        On a full disk checkpoints older than the newest make room, oldest first, if ``save_total_limit`` says that they
        may go. Where that is not enough, the weights are kept as a checkpoint.

        Raises TrainingError that says where the weights are.
        """
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save or _internal_call and output_dir is not None:  # a checkpoint's
            super().save_model(output_dir, _internal_call)
            return
        try:
            with self.run_folder.held_to_save(folder):
                self._save_whole(folder)
        except TrainingError:
            raise
        except OutputError as error:
            self._save_without_room(folder, error)
        except Exception as error:  # whatever it is, what was trained is worth more
            if self.is_fsdp_enabled:
                raise
            try:
                path = save_weights_alone(self.model, folder)
            except Exception:
                raise self._unsaved(folder, error) from error
            raise TrainingError(
                f"not everything could be saved ({short(error)}); the weights are in {path}, without the files "
                "that belong to them"
            ) from error

    def _save_whole(self, folder: Path) -> None:
        with whole_contents(folder, last=_CONFIGS, instead_of=_SHARDS) as part:
            with suppress(OSError):  # PEFT adds to a card that is there
                shutil.copyfile(folder / _CARD, part / _CARD)
            super().save_model(str(part), _internal_call=True)

    def _save_without_room(self, folder: Path, error: OutputError) -> None:
        while self._drop_a_checkpoint(folder, error):
            try:
                self._save_whole(folder)
                return
            except OutputError as again:
                error = again
        raise self._unsaved(folder, error.__cause__ or error) from error

    def _drop_a_checkpoint(self, folder: Path, error: OutputError) -> bool:
        """Removes the oldest checkpoint, where that is allowed and can help: not the newest whole one, nor the best."""
        newest, limit = last_whole_checkpoint(self.args.output_dir), self.args.save_total_limit
        if not limit or newest is None or "the disk is full" not in str(error):
            return False
        older = [path for path in checkpoints_newest_first(self.args.output_dir) if path.parent == newest.parent]
        best = self.state.best_model_checkpoint
        older = [path for path in older if path.name != newest.name and (best is None or path.name != Path(best).name)]
        if not older or newest.stat().st_dev != folder.stat().st_dev:
            return False
        oldest = older[-1]
        _log.warning("%s: the disk is full; %s is removed to make room, as save_total_limit allows", folder, oldest)
        remove(oldest)
        return True

    def _unsaved(self, folder: Path, error: BaseException) -> TrainingError:
        reason = unwritten(error) or short(error)
        return TrainingError(f"the model could not be saved to {folder}: {reason}; {self._keep_weights(reason)}")

    def _keep_weights(self, reason: str) -> str:
        """Keeps the weights wherever there is room, unless they are kept already. Returns where, and how to go on.

        reason: why they could not be saved.
        """
        step, best = self.state.global_step, self.state.best_model_checkpoint
        way = ""
        if resumes(self.args):
            way = (
                f"; {remedy(reason)}run again with --resume_from_checkpoint true: it trains nothing again, and saves "
                "them"
            )
        if self.args.load_best_model_at_end and best is not None:
            return f"its weights are those of the best checkpoint, {best}{way}"
        if not self._is_kept(step) and step and self.args.world_size == 1 and not self.is_deepspeed_enabled:
            with suppress(Exception):  # most likely there is no room for that either
                self._save_checkpoint(self.model, trial=None)
        last = last_whole_checkpoint(self.args.output_dir)
        if self._is_kept(step):
            return f"its weights are in the checkpoint {last}{way}"
        state = way_on(self.args, reason)
        if not self.is_fsdp_enabled:
            with suppress(Exception):
                path = save_weights_alone(self.model, Path(self.args.output_dir, f"weights-{step}"))
                return f"its weights alone are in {path}, without the files that belong to them; {state}"
        return state

    def _is_kept(self, step: int) -> bool:
        last = last_whole_checkpoint(self.args.output_dir)
        return last is not None and last.name == f"{PREFIX_CHECKPOINT_DIR}-{step}"

    def save_state(self) -> None:
        """As the base class. Raises OutputError where the disk is full or refuses."""
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir, TRAINER_STATE_NAME)
        try:
            with whole_file(path) as part:
                self.state.save_to_json(str(part))
        except OutputError as error:
            reason = unwritten(error.__cause__ or error) or short(error)
            raise OutputError(
                f"{path} could not be written: {reason}; it contains the steps' numbers. What has been saved is "
                "whole, and needs no other run"
            ) from error
