"""Every setting of a run: ``MDPOConfig`` for the trainer, ``RunConfig`` for what the command line adds around it."""

# eval_strategy may be None until __post_init__, which transformers' own may not.
# pyright: reportIncompatibleVariableOverride=false

import functools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from mdpo.errors import InputError
from mdpo.hub import with_revision
from mdpo.objectives import objective_of, read_objective
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
    default_of,
    dtype_name,
    given,
    is_flag,
    is_list,
    path_problem,
    plain,
    read_argument,
    read_types,
    read_yaml,
    shortened,
    shown,
    unknown_key,
)

if TYPE_CHECKING:
    import torch


@dataclass
class MDPOConfig(TrainingArguments):
    """The trainer's settings: those of ``transformers.TrainingArguments``, with the paper's defaults, and these.

    An optimizer step is ``examples_per_step`` preference pairs, in as many packed micro-batches as ``token_budget``
    asks for. ``per_device_train_batch_size`` and ``gradient_accumulation_steps`` are therefore refused; so are other
    arguments that would not do what they say (``mdpo/settings/arguments.py`` lists them).

    Raises InputError, "KEY: what is wrong; what to do", for a value that cannot be used.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warmup; below 1, a share of all steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off: a NaN loss has to be seen."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Off: rows are not model inputs."})
    # None until __post_init__, so that a strategy the user has set is told from the default.
    eval_strategy: IntervalStrategy | str | None = field(
        default=None, metadata={"help": "no, steps or epoch; None: once an epoch where there are rows to evaluate on."}
    )

    examples_per_step: int = field(default=32, metadata={"help": "Preference pairs of an optimizer step, all ranks."})
    token_budget: int = field(default=16384, metadata={"help": "Packed tokens of a micro-batch at the most."})
    beta: float = field(default=0.1, metadata={"help": "β of the DPO terms and the rewards."})
    objective: str | list[dict] = field(
        default="mdpo", metadata={"help": "What is compared: a preset's name (below) or a list of terms."}
    )
    conditional: bool = field(default=True, metadata={"help": "mdpo's: with the image preference (CoPO)."})
    anchors: list[str] = field(
        default_factory=lambda: ["chosen"],
        metadata={"help": "mdpo's anchored branches: chosen, rejected, image_rejected."},
    )
    anchor: float | list[float] = field(
        default=0.0, metadata={"help": "mdpo's anchor δ in reward units, one number or one per entry of anchors."}
    )
    negative: str = field(default="crop_0_20", metadata={"help": "How the rejected image is made."})
    negative_per_epoch: bool = field(default=False, metadata={"help": "A fresh negative in every epoch."})
    cache_reference: bool = field(default=True, metadata={"help": "Keep the reference log-probs on disk."})
    reference_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the cache, shared by runs; None: below output_dir."}
    )
    drop_images: bool = field(default=False, metadata={"help": "Train on the text alone (the paper's Figure 1)."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of prompt and response; None: no limit."})
    changed_weight: float | None = field(
        default=None,
        metadata={
            "help": "How much the words count in which the two answers differ, such as 5 (dense DPO); None: as all."
        },
    )
    ignore_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns to read the rows without; other unknown ones are an error."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System turn for rows that have none of their own."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Jinja template, or the path of a .jinja file; None: the processor's."}
    )
    chat_template_kwargs: dict | None = field(
        default=None, metadata={"help": "Variables for the chat template, such as {enable_thinking: false}."}
    )
    prompt_is_rendered: bool | None = field(
        default=None,
        metadata={
            "help": "Whether plain-text prompts already contain the template's turns; None: recognised row by row."
        },
    )

    reference: str = field(
        default="start", metadata={"help": "Measured against: start, the model as it is given; base, without adapter."}
    )
    check_start: bool = field(
        default=True,
        metadata={"help": "Compare with the model's own forward before the first step, on the first rows."},
    )
    eval_skip_not_finite: bool = field(
        default=False, metadata={"help": "Evaluate without rows whose loss is not finite; false: they end the run."}
    )
    sample_prompts: int = field(
        default=0,
        metadata={"help": "Rows whose answers are written to sample_answers.html at every evaluation; 0: none."},
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Dropout of model and adapter off while training."})
    resume_from_checkpoint: str | bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, metadata={"help": "A checkpoint's folder, or true for the newest in output_dir."}
    )

    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Remove the run that output_dir holds, right before the first step; not when resuming from it."
        },
    )

    checkpoint_layers: int | None = field(
        default=None,
        metadata={"help": "Layers to recompute in the backward; None: all or none by gradient_checkpointing."},
    )
    compile_layers: bool = field(
        default=False,
        metadata={"help": "torch.compile of the repeated layers; mdpo train on a GPU does unless this is set."},
    )

    fused_lora: bool = field(
        default=True, metadata={"help": "LoRA layers add to their base's product in place; false: peft's own forward."}
    )

    def __post_init__(self) -> None:
        self.objective = read_objective(self.objective)
        read_types(self, MDPOConfig.__annotations__)
        # What was given in a file or on the command line replaces it (build_config).
        self.given = given(self, MDPOConfig.__annotations__)
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
class RunConfig:
    """What ``mdpo train`` needs beside the trainer's settings."""

    model_name_or_path: str = field(
        metadata={"help": "Model and its processor: folder, or owner/name[@revision] on the hub."}
    )
    train_data: str | list[str] | dict[str, float] = field(
        metadata={
            "help": (
                "Preference rows: file, folder, pattern, list of files, or owner/name[@revision][:split] on the "
                "hub; or several of these with their shares: {a.jsonl: 0.7, owner/b: 0.3}."
            )
        }
    )
    model_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of model_name_or_path on the hub; as owner/name@revision."},
    )
    adapter_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Adapter to go on from, folder or name on the hub; it is the reference too, see reference."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Of a picture, larger ones are made smaller; None: as the model's processor has it."},
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Of a picture, smaller ones are made larger; as max_pixels."}
    )
    image_processor_kwargs: dict | None = field(
        default=None, metadata={"help": "The same by the image processor's own names, such as {max_patches: 6}."}
    )
    image_dir: str | None = field(default=None, metadata={"help": "Folder of the images; None: the data file's."})
    allow_outside: bool = field(
        default=False, metadata={"help": "Image paths and links may lead out of the image folder."}
    )
    eval_data: str | list[str] | None = field(default=None, metadata={"help": "Rows to evaluate on, as train_data."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Share of train_data held out, without eval_data."})
    dtype: str = field(default="auto", metadata={"help": "Weights of the base model: auto, bfloat16, float32."})
    load_in_4bit: bool = field(default=False, metadata={"help": "The language model's linear layers in NF4 (QLoRA)."})
    use_lora: bool = field(default=True, metadata={"help": "False: full fine-tuning against a frozen copy."})
    lora_r: int = field(default=64, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=128, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Above 0, branches that share a prompt share its mask."})
    lora_target_modules: str | list[str] | None = field(
        default=None,
        metadata={"help": "Layers of the language model by name, or one regular expression; None: every linear one."},
    )
    plan_model_shape: str | None = field(
        default=None, metadata={"help": "mdpo plan: llava-1.5-7b or bunny-v1.0-3b, where the model is not here."}
    )
    plan_prompt_tokens: int | None = field(
        default=None, metadata={"help": "mdpo plan: of a prompt with its image, where the data is not here."}
    )
    plan_response_tokens_median: int | None = field(
        default=None, metadata={"help": "mdpo plan: as plan_prompt_tokens."}
    )
    plan_response_tokens_max: int | None = field(default=None, metadata={"help": "mdpo plan: as plan_prompt_tokens."})
    freeze_vision_tower: bool = field(default=True, metadata={"help": "In full fine-tuning."})
    freeze_multi_modal_projector: bool = field(default=True, metadata={"help": "In full fine-tuning."})

    def __post_init__(self) -> None:
        read_types(self, RunConfig.__annotations__)
        self.given = given(self, RunConfig.__annotations__)
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
                "adapter_name_or_path: an adapter goes on as an adapter; leave use_lora out, or merge it first"
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
    if not path.is_file():
        raise InputError(f"config {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a YAML file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} cannot be read as UTF-8 text: {error}") from error
    values = read_yaml(text, f"config {path}")
    values = {} if plain(values) is None else values
    if not isinstance(values, dict):
        raise InputError(f"config {path}: expected keys and values, found a {type(plain(values)).__name__}")
    return build_config({**_named(values), **(overrides or {})}, source=str(path))


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


def settings_help() -> str:
    """A line for each setting of our own: name, default and what it is."""
    lines = ["settings, in the YAML file or as --key value:"]
    for kind in (RunConfig, MDPOConfig):
        own = kind.__annotations__
        lines += [f"  {f.name:<29} {_default(f):<12} {f.metadata['help']}" for f in fields(kind) if f.name in own]
    lines.append("and those of transformers.TrainingArguments; one that would not do what it says is refused by name")
    return "\n".join(lines)


def _default(field: Field) -> str:
    value = default_of(field)
    if value is MISSING:
        return "required"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


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
            raise InputError(f"key {name!r} stands twice, with dashes and with underscores; keep one of them")
        named[name] = value
    return named
