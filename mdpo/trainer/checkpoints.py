"""What makes a checkpoint safe to come back to: that it is whole, and that it is this run's."""

import hashlib
import json
import logging
import re
import signal
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mdpo.config import MDPOConfig
from mdpo.data import DataOptions, PreferenceDataset
from mdpo.errors import InputError
from mdpo.models.folder import check_weight_files, read_object

from .weights import check_adapters

_log = logging.getLogger(__name__)

SETTINGS_NAME = "mdpo_settings.json"
# What the trained weights depend on. The token budget is not among them: a step's gradient does not depend on its cut.
_SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "bf16", "fp16", "examples_per_step",
    "beta", "conditional", "anchors", "anchor", "negative", "negative_per_epoch", "drop_images", "max_length", "reference",
    "disable_dropout",
)  # fmt: skip
_ADAPTER = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias", "use_rslora", "use_dora", "rank_pattern",
    "alpha_pattern",
)  # fmt: skip


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint below ``output_dir`` that was written to its end; torn ones are passed over, by name."""
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if is_whole(folder):
            return folder
        _log.warning("%s was not written to its end: passed over", folder)
    return None


def is_whole(folder: Path) -> bool:
    """transformers writes the trainer's state last, so a state that can be read stands for all the rest."""
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def check_complete(folder: Path, model: nn.Module, *, sharded: bool = False, scaler: bool = False) -> None:
    """Raises InputError, naming the file, where the checkpoint lacks something that a run needs to go on as if it had
    not stopped: transformers starts what is missing afresh, without a word.

    sharded: whether the run is one of FSDP, which keeps weights and optimizer in folders of their own. scaler: whether
        it scales its loss (fp16).
    """
    names = {path.name for path in folder.iterdir()}
    optimizer = {"optimizer.pt", "optimizer.bin"} & names or {name for name in names if name.startswith("optimizer_")}
    random_states = {name for name in names if name.startswith("rng_state") and name.endswith(".pth")}
    if not optimizer and "scheduler.pt" not in names and not random_states:
        raise InputError(
            f"cannot resume from {folder}: it was saved with save_only_model, without the optimizer, the schedule and the "
            "random state that a run goes on with; take another checkpoint, or start a new run from its weights"
        )
    needed = {"optimizer.pt": optimizer, "scheduler.pt": "scheduler.pt" in names, "rng_state.pth": random_states}
    if scaler:
        needed["scaler.pt"] = "scaler.pt" in names
    # A run may go on with more or fewer processes; of those that there were, each has left its state.
    ranks = [int(found[1]) for found in map(re.compile(r"rng_state_(\d+)\.pth").fullmatch, random_states) if found]
    needed |= {f"rng_state_{rank}.pth": rank in ranks for rank in range(max(ranks, default=-1) + 1)}
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise InputError(f"cannot resume from {folder}: {', '.join(missing)} is missing; take another checkpoint")
    torn = [path.name for path in sorted(folder.glob("*.pt*")) if path.is_file() and not zipfile.is_zipfile(path)]
    if torn:  # what torch.save writes is a zip file, whose table of contents comes last
        raise InputError(f"cannot resume from {folder}: {torn[0]} was not written to its end; take another checkpoint")
    if sharded:
        if not any(name.startswith("pytorch_model_fsdp") for name in names):
            raise InputError(f"cannot resume from {folder}: FSDP's weights are missing; take another checkpoint")
    elif isinstance(model, PeftModel):
        check_adapters(model, folder)
    elif any(name.startswith("adapter_") for name in names):
        raise InputError(f"cannot resume from {folder}: it holds an adapter, and this run trains the model itself (use_lora)")
    else:
        check_weight_files(folder)


def check_best(folder: Path) -> None:
    """Raises InputError where the best checkpoint so far, which the run would end with, is not there any more."""
    best = read_object(folder / TRAINER_STATE_NAME).get("best_model_checkpoint")
    if best is not None and not Path(best).is_dir():
        raise InputError(
            f"cannot resume from {folder}: the best checkpoint so far, {best}, is not there any more, and "
            "load_best_model_at_end would need it; put it back, or set load_best_model_at_end: false"
        )


def run_settings(
    args: MDPOConfig, model: nn.Module, dataset: PreferenceDataset | None, reference: str
) -> dict[str, Any]:
    """What this run's weights depend on, as JSON can hold it. reference: ``reference_weights``, of the run's start."""
    settings: dict[str, Any] = {name: getattr(args, name) for name in _SETTINGS}
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    settings |= {"weights.dtype": base.dtype, "weights.quantization": getattr(base, "quantization_method", None)}
    if isinstance(model, PeftModel):
        adapter = model.peft_config[model.active_adapters[0]]
        settings |= {f"adapter.{name}": getattr(adapter, name, None) for name in _ADAPTER}
    trained = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    by = "use_lora, lora_target_modules, freeze_vision_tower, freeze_multi_modal_projector"
    settings[f"trained parameters ({by})"] = f"{len(trained)} ({_digest(trained)})"
    settings["weights of the reference (base model, adapter to go on from)"] = reference
    settings["system_prompt, chat_template, chat_template_kwargs, prompt_is_rendered"] = DataOptions.of(args).text.digest()  # a template by its content, not its path
    if dataset is not None:
        settings["rows"] = f"{len(dataset)} ({dataset.digest()})"
    return json.loads(json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()


def check_same_run(folder: Path, settings: dict[str, Any]) -> None:
    """Raises InputError that names the first difference between the checkpoint's settings and this run's."""
    path = folder / SETTINGS_NAME
    if not path.is_file():
        raise InputError(f"{folder} has no {SETTINGS_NAME}: it was not written by this trainer")
    theirs = read_object(path)
    for name, value in settings.items():
        if theirs.get(name) != value:
            raise InputError(
                f"cannot resume from {folder}: {name} was {theirs.get(name)!r} and is {value!r} now; set it back, or give "
                "another output_dir for a run of its own"
            )


class StopOnSignal(TrainerCallback):
    """SIGTERM (a preempted job): finish the step, write a checkpoint, end the training loop."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.received = False
        try:
            self._previous = signal.signal(signal.SIGTERM, self._remember)
        except ValueError:  # not the main thread, where Python allows no handlers
            _log.warning("training runs outside the main thread: SIGTERM will not write a checkpoint")

    def _remember(self, number: int, frame: Any) -> None:
        self.received = True

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.received:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
