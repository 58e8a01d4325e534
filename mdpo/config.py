"""Every setting of a run: ``MDPOConfig`` for the trainer, ``RunConfig`` for what the command line adds around it.

The fields of our own are declared in ``mdpo.own_settings``; here they are read and checked.
"""

# eval_strategy may be None until __post_init__, which transformers' own may not.
# pyright: reportIncompatibleVariableOverride=false

import functools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from mdpo.errors import InputError
from mdpo.hub import with_revision
from mdpo.objectives import objective_of, read_objective
from mdpo.own_settings import OwnRunSettings, OwnTrainerSettings
from mdpo.settings import (
    ALWAYS_REFUSED,
    ANCHOR,
    BETA,
    PATHS,
    REFUSED,
    check_adapter,
    check_arguments,
    check_numbers,
    check_objective,
    check_parameters,
    check_paths,
    check_range,
    check_shares,
    coerce,
    dtype_name,
    given,
    is_flag,
    is_list,
    plain,
    read_argument,
    read_types,
    read_yaml,
    shortened,
    shown,
    unknown_key,
)
from mdpo.typed import path_problem

if TYPE_CHECKING:
    import torch


@dataclass
class MDPOConfig(OwnTrainerSettings, TrainingArguments):
    """The trainer's settings: those of ``transformers.TrainingArguments``, with the paper's defaults, and these.

    An optimizer step is ``examples_per_step`` preference pairs, in as many packed micro-batches as ``token_budget``
    asks for. ``per_device_train_batch_size`` and ``gradient_accumulation_steps`` are therefore refused; so are other
    arguments that would not do what they say (``mdpo/settings/arguments.py`` lists them).

    Raises InputError, "KEY: what is wrong; what to do", for a value that cannot be used.
    """

    eval_strategy: IntervalStrategy | str | None = None

    def __post_init__(self) -> None:
        self.objective = read_objective(self.objective)
        read_types(self, OwnTrainerSettings.__annotations__)
        # What was given in a file or on the command line replaces it (build_config).
        self.given = given(self, OwnTrainerSettings.__annotations__)
        for name in ("examples_per_step", "token_budget", "beta", "max_length"):
            check_range(name, getattr(self, name), "(0, inf)")
        check_range("checkpoint_layers", self.checkpoint_layers, "[0, inf)")
        check_range("sample_prompts", self.sample_prompts, "[0, inf)")
        check_arguments(self)
        check_range("beta", self.beta, BETA)
        for anchor in self.anchor if isinstance(self.anchor, list) else [self.anchor]:
            check_range("anchor", anchor, ANCHOR)
        self._read_eval_strategy()
        try:
            super().__post_init__()
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError, OSError) as error:
            raise InputError(shortened(error)) from error
        if self.checkpoint_layers is not None:
            # Renamed in transformers 5.23, which still has both names; the first exists in every version.
            self.gradient_checkpointing = self.checkpoint_layers > 0
            if hasattr(self, "activation_checkpointing"):
                self.activation_checkpointing = self.gradient_checkpointing
        check_objective(self)

    @property
    def has_checkpointing(self) -> bool:
        """Whether the user has said which layers to checkpoint, by any of the names that versions of
        transformers have.
        """
        names = ("gradient_checkpointing", "activation_checkpointing")
        return any(name in self.given for name in ("checkpoint_layers", *names, *(f"{name}_kwargs" for name in names)))

    def _read_eval_strategy(self) -> None:
        """Where the user has not chosen a strategy: the one that other settings ask for; the trainer adds the rest."""
        self.eval_strategy_given = self.eval_strategy is not None
        if self.eval_strategy_given:
            return
        self.eval_strategy = "no"
        save_strategy = getattr(self.save_strategy, "value", self.save_strategy)
        if self.eval_steps is not None:
            self.eval_strategy = "steps"
        elif self.load_best_model_at_end and save_strategy in ("steps", "epoch"):  # transformers wants them to match
            self.eval_strategy, self.eval_steps = save_strategy, self.save_steps if save_strategy == "steps" else None
        elif save_strategy == "best" or self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            self.eval_strategy = "epoch"

    @property
    def device(self) -> "torch.device":
        """Without the number that accelerate gives each process's CPU: no checkpoint can be loaded onto ``cpu:0``."""
        device = super().device
        return device if device.index is None or device.type != "cpu" else type(device)("cpu")

    @property
    def eval_batch_size(self) -> int:
        """Rows of an evaluation step on one device; transformers counts evaluation steps by it."""
        return -(-self.examples_per_step // self.world_size)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that a term of the objective reads; what none does is not computed."""
        return objective_of(self).read

    @property
    def negatives(self) -> int:
        """Rejected pictures of a row that a term of the objective reads."""
        return objective_of(self).negatives


@dataclass
class RunConfig(OwnRunSettings):
    """What ``mdpo train`` needs beside the trainer's settings."""

    def __post_init__(self) -> None:
        read_types(self, OwnRunSettings.__annotations__)
        self.given = given(self, OwnRunSettings.__annotations__)
        check_range("eval_fraction", self.eval_fraction, "[0, 1)")
        check_range("lora_dropout", self.lora_dropout, "[0, 1)")
        lengths = ("plan_prompt_tokens", "plan_response_tokens_median", "plan_response_tokens_max")
        for name in ("max_pixels", "min_pixels", "lora_r", "lora_alpha", *lengths):
            check_range(name, getattr(self, name), "(0, inf)")
        check_numbers(self)
        check_paths(self)
        check_shares("train_data", self.train_data)
        if self.model_revision is not None:
            self.model_name_or_path = with_revision(self.model_name_or_path, self.model_revision)
        check_range("lora_r", self.lora_r, "[1, 16384]")  # beyond any layer's width it is a mistyped number
        self.dtype = dtype_name(self.dtype)
        if self.eval_data is not None and self.eval_fraction:
            raise InputError("eval_fraction: eval_data is given too; keep one of them")
        if self.adapter_name_or_path is not None and not self.use_lora:
            raise InputError(
                "adapter_name_or_path: an adapter is trained further as an adapter; leave use_lora out, or merge it "
                "first"
            )
        if self.load_in_4bit and not self.use_lora:
            raise InputError("load_in_4bit: weights in 4 bits do not train; set use_lora, or leave load_in_4bit out")
        check_adapter(self)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[RunConfig, MDPOConfig]:
    """Reads a YAML file; ``overrides`` win over it. Relative paths are taken from the working directory.

    Raises InputError for a file that is not YAML, an unknown key (with what it is called here), a missing key, or a
    value that cannot be used.
    """
    path = Path(path)
    values = read_yaml(config_text(path), f"config {path}")
    values = {} if plain(values) is None else values
    if not isinstance(values, dict):
        raise InputError(f"config {path} is a {type(plain(values)).__name__}; expected keys and values")
    return build_config({**_named(values), **(overrides or {})}, source=str(path))


def config_text(path: Path) -> str:
    """The text of a YAML file, before anything of it is read. Raises InputError where there is none."""
    if not path.is_file():
        raise InputError(f"config {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a YAML file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} cannot be read as UTF-8 text: {error}; give a YAML file") from error


def build_config(values: Mapping[str, Any], *, source: str) -> tuple[RunConfig, MDPOConfig]:
    """The two configs from one flat mapping of plain values, or of what ``read_yaml`` returns.

    Raises InputError as ``load_config``.
    """
    values, known = _named(values), _hints()
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{source}: {unknown_key(key, known)}")
        if key in ALWAYS_REFUSED:
            raise InputError(f"{source}: {key}: {REFUSED[key]}")
        if key == "parallelism_config" and plain(value) is not None:  # YAML cannot hold one: say why it need not
            raise InputError(f"{source}: {key}: {REFUSED[key]}")
    _read_do_flags(values, source)
    if plain(values.get("report_to")) is False:
        values["report_to"] = "none"
    parts = []
    for kind in (RunConfig, MDPOConfig):
        chosen = {
            f.name: coerce(values[f.name], known[f.name], f"{source}: {f.name}")
            for f in fields(kind)
            if f.name in values
        }
        for f in fields(kind):
            required = f.default is f.default_factory  # both MISSING
            if required and f.init and f.name not in chosen:
                raise InputError(f"{source}: key {f.name!r} is missing; {f.metadata['help']}")
        try:
            parts.append(kind(**chosen))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        parts[-1].given = tuple(chosen)
    try:
        check_parameters(parts[1])  # once more: a default that stands in the file is given too
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return parts[0], parts[1]


def _read_do_flags(values: dict[str, Any], source: str) -> None:
    """``do_train`` and ``do_eval``, which transformers' scripts read and its trainer does not, mean what they say."""
    if plain(values.get("do_train")) is False:
        raise InputError(f"{source}: do_train: mdpo train trains; mdpo score evaluates without training")
    if plain(values.get("do_eval")) is False:
        if plain(values.get("eval_strategy", "no")) not in (False, "no"):
            raise InputError(f"{source}: do_eval: false, but eval_strategy is set; keep one of them")
        values["eval_strategy"] = "no"


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value`` and ``--key-with-dashes value`` pairs.

    Text is taken as it is; any other value is YAML, as ``read_yaml`` leaves it. A boolean may stand without a value,
    for true; a list may be written as several words. Keys that are not known are left to ``build_config`` to name.
    """
    overrides, rest, hints = {}, list(arguments), _hints()
    while rest:
        name = rest.pop(0)
        if not name.startswith("--"):
            raise InputError(f"unexpected argument {shown(name)}; model and data come first, then --key value")
        name, equals, value = name[2:].partition("=")
        key = name.replace("-", "_")
        if not equals:
            if not rest or rest[0].startswith("--"):
                if takes_value(key):
                    raise InputError(f"--{shown(name)[1:-1]} has no value; overrides are written --key value")
                overrides[key] = True
                continue
            words = [value := rest.pop(0)]
            while (key not in hints or is_list(hints[key])) and rest and not rest[0].startswith("--"):
                words.append(rest.pop(0))
            if len(words) > 1:
                overrides[key] = words
                continue
        if not value.strip() and key in PATHS:  # elsewhere an empty text is none
            raise InputError(f"--{name}: {path_problem(value)}")
        overrides[key] = read_argument(value, hints.get(key, str), f"--{name}")
    return overrides


def is_setting(name: str) -> bool:
    """Whether there is a setting of this name, written with underscores or dashes."""
    return name.replace("-", "_") in _hints()


def takes_value(option: str) -> bool:
    """Whether ``--key``, with dashes or underscores, is a setting that may not stand on the command line alone."""
    hints, key = _hints(), option.removeprefix("--").replace("-", "_")
    return key in hints and not is_flag(hints[key])


@functools.cache
def _hints() -> dict[str, Any]:
    """The type of every setting."""
    hints = {kind: typing.get_type_hints(kind) for kind in (RunConfig, MDPOConfig)}
    return {f.name: of_kind[f.name] for kind, of_kind in hints.items() for f in fields(kind) if f.init}


def _named(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Keys with underscores, also where they are written with dashes."""
    named = {}
    for key, value in values.items():
        name = key.replace("-", "_") if isinstance(key, str) else key
        if name in named:
            raise InputError(f"key {name!r} appears twice, with dashes and with underscores; keep one of them")
        named[name] = value
    return named
