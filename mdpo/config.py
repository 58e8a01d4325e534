"""Every setting of a run: ``MDPOConfig`` for the trainer, ``RunConfig`` for what the command line adds around it."""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from mdpo.errors import InputError


@dataclass
class MDPOConfig(TrainingArguments):
    """The trainer's settings: those of ``transformers.TrainingArguments``, with the paper's defaults, and these.

    An optimizer step is ``examples_per_step`` preference pairs, in as many packed micro-batches as ``token_budget``
    asks for. ``per_device_train_batch_size`` and ``gradient_accumulation_steps`` therefore have no say.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warmup; below 1, a share of all steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off: a NaN loss has to be seen."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Off: rows are not model inputs."})

    examples_per_step: int = field(default=32, metadata={"help": "Preference pairs of an optimizer step, all ranks."})
    token_budget: int = field(default=16384, metadata={"help": "Packed tokens of a micro-batch at the most."})
    beta: float = field(default=0.1, metadata={"help": "β of the DPO terms and the rewards."})
    conditional: bool = field(default=True, metadata={"help": "With the image preference (CoPO)."})
    anchors: list[str] = field(
        default_factory=lambda: ["chosen"], metadata={"help": "Anchored branches: chosen, rejected, image_rejected."}
    )
    anchor: float | list[float] = field(
        default=0.0, metadata={"help": "Anchor δ in reward units, one number or one per entry of anchors."}
    )
    negative: str = field(default="crop_0_20", metadata={"help": "How the rejected image is made."})
    negative_per_epoch: bool = field(default=False, metadata={"help": "A fresh negative in every epoch."})
    cache_reference: bool = field(default=True, metadata={"help": "Keep the reference log-probs on disk."})
    reference_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the cache, shared by runs; None: below output_dir."}
    )
    drop_images: bool = field(default=False, metadata={"help": "Train on the text alone (the paper's Figure 1)."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of prompt and response; None: no limit."})
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
        metadata={"help": "Whether plain-text prompts already contain the template's turns; None: recognised row by row."},
    )

    reference: str = field(
        default="start", metadata={"help": "Measured against: start, the model as it is given; base, without adapter."}
    )
    check_start: bool = field(
        default=True, metadata={"help": "Compare with the model's own forward before the first step, on the first rows."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Dropout of model and adapter off while training."})
    resume_from_checkpoint: str | bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, metadata={"help": "A checkpoint's folder, or true for the newest in output_dir."}
    )

    checkpoint_layers: int | None = field(
        default=None, metadata={"help": "Layers to recompute in the backward; None: all or none by gradient_checkpointing."}
    )
    compile_layers: bool = field(default=False, metadata={"help": "torch.compile of the repeated layers."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_layers is not None:
            if self.checkpoint_layers < 0:
                raise InputError(f"checkpoint_layers: expected a number of layers or none, got {self.checkpoint_layers}")
            # transformers has renamed the setting and still has both; the first has been there always.
            self.gradient_checkpointing = self.checkpoint_layers > 0
            if hasattr(self, "activation_checkpointing"):
                self.activation_checkpointing = self.gradient_checkpointing
        if self.gradient_accumulation_steps != 1:
            raise InputError(
                "gradient_accumulation_steps: a step is planned whole, so that its gradient is a mean over its examples "
                "however they are packed; set examples_per_step and token_budget instead"
            )
        if self.per_device_train_batch_size != 8:
            raise InputError("per_device_train_batch_size: micro-batches are counted in tokens; set token_budget instead")
        for name in ("examples_per_step", "token_budget", "beta"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length: expected a number above 0 or none, got {self.max_length}")
        unknown = [name for name in self.anchors if name not in ("chosen", "rejected", "image_rejected")]
        if unknown:
            raise InputError(f"anchors: {unknown[0]!r} is no branch; choose from chosen, rejected, image_rejected")
        if isinstance(self.anchor, Sequence) and len(self.anchor) != len(self.anchors):
            raise InputError(f"anchor: {len(self.anchor)} values for {len(self.anchors)} anchors; give one per entry")

    @property
    def uses_image_rejected(self) -> bool:
        """Whether any term reads the third branch; where none does, it is not computed."""
        return self.conditional or "image_rejected" in self.anchors


@dataclass
class RunConfig:
    """What ``mdpo train`` needs beside the trainer's settings."""

    model_name_or_path: str = field(metadata={"help": "Folder of the model and its processor."})
    train_data: str = field(metadata={"help": "Preference rows: file, folder or hub dataset."})
    adapter_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of an adapter to go on from; it is the reference too, see reference."}
    )
    image_dir: str | None = field(default=None, metadata={"help": "Folder of the images; None: the data file's."})
    allow_outside: bool = field(
        default=False, metadata={"help": "Image paths and links may lead out of the image folder."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "Rows to evaluate on."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Share of train_data held out, without eval_data."})
    dtype: str = field(default="auto", metadata={"help": "Weights of the base model: auto, bfloat16, float32."})
    load_in_4bit: bool = field(default=False, metadata={"help": "The language model's linear layers in NF4 (QLoRA)."})
    use_lora: bool = field(default=True, metadata={"help": "False: full fine-tuning against a frozen copy."})
    lora_r: int = field(default=64, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=128, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Above 0, branches that share a prompt share its mask."})
    lora_target_modules: str | None = field(
        default=None, metadata={"help": "Regular expression; None: every linear layer of the language model."}
    )
    plan_model_shape: str | None = field(
        default=None, metadata={"help": "mdpo plan: llava-1.5-7b or bunny-v1.0-3b, where the model is not here."}
    )
    plan_prompt_tokens: int | None = field(
        default=None, metadata={"help": "mdpo plan: of a prompt with its image, where the data is not here."}
    )
    plan_response_tokens_median: int | None = field(default=None, metadata={"help": "mdpo plan: as plan_prompt_tokens."})
    plan_response_tokens_max: int | None = field(default=None, metadata={"help": "mdpo plan: as plan_prompt_tokens."})
    freeze_vision_tower: bool = field(default=True, metadata={"help": "In full fine-tuning."})
    freeze_multi_modal_projector: bool = field(default=True, metadata={"help": "In full fine-tuning."})

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise InputError(f"eval_fraction: expected a share from 0 up to 1, got {self.eval_fraction}")
        if self.eval_data is not None and self.eval_fraction:
            raise InputError("eval_fraction: eval_data is given too; keep one of them")
        if self.load_in_4bit and not self.use_lora:
            raise InputError("load_in_4bit: weights in 4 bits do not train; set use_lora, or leave load_in_4bit out")


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[RunConfig, MDPOConfig]:
    """Reads a YAML file; ``overrides`` win over it. Relative paths are taken from the working directory.

    Raises InputError for a file that is not YAML, an unknown key (with the nearest valid one), a missing key, or a
    value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"config {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"config {path}: expected keys and values, found a {type(values).__name__}")
    return build_config({**values, **(overrides or {})}, source=str(path))


def build_config(values: Mapping[str, Any], *, source: str) -> tuple[RunConfig, MDPOConfig]:
    """The two configs from one flat mapping. Raises InputError as ``load_config``."""
    known = {f.name: f for kind in (RunConfig, MDPOConfig) for f in fields(kind) if f.init}
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(f"{source}: unknown key {key!r}; the nearest valid key is {nearest!r}")
    parts = []
    for kind in (RunConfig, MDPOConfig):
        hints = typing.get_type_hints(kind)
        chosen = {
            f.name: _coerce(values[f.name], hints[f.name], f"{source}: {f.name}") for f in fields(kind) if f.name in values
        }
        for f in fields(kind):
            required = f.default is f.default_factory  # both MISSING
            if required and f.init and f.name not in chosen:
                raise InputError(f"{source}: key {f.name!r} is missing; {f.metadata['help']}")
        try:
            parts.append(kind(**chosen))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        except (ValueError, TypeError) as error:  # what TrainingArguments makes of its own values
            raise InputError(f"{source}: {error}") from error
    return parts[0], parts[1]


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value`` and ``--key-with-dashes value`` pairs; values are YAML."""
    overrides, rest = {}, list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--"):
            raise InputError(f"unexpected argument {name!r}; overrides are written --key value")
        name, equals, value = name[2:].partition("=")
        if not equals:
            if not rest:
                raise InputError(f"--{name} has no value; overrides are written --key value")
            value = rest.pop(0)
        try:
            overrides[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--{name}: {value!r} is not a YAML value") from error
    return overrides


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Holds a YAML value to a field's type."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        try:
            return _convert(value, option)
        except (TypeError, ValueError):
            continue
    names = (
        "nothing" if o is type(None) else str(o) if typing.get_origin(o) else getattr(o, "__name__", str(o)) for o in options
    )
    raise InputError(f"{where}: expected {' or '.join(names)}, got {value!r}")


def _convert(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, or TypeError or ValueError. YAML 1.1 reads 1e-5 as text: here it is the number it means."""
    if typing.get_origin(kind) is list:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return [_convert(entry, typing.get_args(kind)[0]) for entry in value]
    if kind in (int, float):
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
        if kind is int and number != int(number):
            raise ValueError
        return kind(number)
    if kind in (bool, str, type(None)) and not isinstance(value, kind):
        raise TypeError
    return value  # enums, dicts and JSON text are TrainingArguments' own to check
