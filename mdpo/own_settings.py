"""The settings of our own, with their types, defaults and help: declared apart from what reads and checks them.

``mdpo.config`` builds ``MDPOConfig`` and ``RunConfig`` of them. ``mdpo train --help`` and the table in mdpo/README.md
need no more than this file, and so neither PyTorch nor transformers.
"""

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any


def _setting(default: Any, help: str, says: str | None = None, **other: Any) -> Any:
    """A field. says: the default in words, where its value says too little."""
    metadata = {"help": help} if says is None else {"help": help, "default": says}
    return field(default=default, metadata=metadata, **other)


@dataclass
class OwnTrainerSettings:
    """Of ``MDPOConfig``: beside those of transformers' TrainingArguments, or with another default than there."""

    learning_rate: float = _setting(1e-5, "peak learning rate")
    num_train_epochs: float = _setting(3.0, "passes over the data")
    lr_scheduler_type: str = _setting("cosine", "learning rate schedule")
    warmup_steps: float = _setting(0.1, "warmup: a number of steps, or below 1 a share of all steps")
    logging_steps: float = _setting(10, "steps between two log lines")
    logging_nan_inf_filter: bool = _setting(False, "no effect: a loss that is not finite always ends the run")
    remove_unused_columns: bool = _setting(False, "no effect: rows are not passed to the model's forward")
    # None until MDPOConfig is built, so that a strategy the user has set can be told from the default.
    eval_strategy: Any = _setting(
        None, "when to evaluate: no, steps or epoch", "epoch if there are rows to evaluate on, otherwise no"
    )

    examples_per_step: int = _setting(32, "preference pairs per optimizer step, over all GPUs")
    token_budget: int = _setting(16384, "maximum number of packed tokens in a micro-batch")
    beta: float = _setting(0.1, "β of the DPO terms and of the rewards")
    objective: str | list[dict] = _setting("mdpo", "preset (listed below) or list of terms")
    conditional: bool = _setting(True, "image preference (CoPO) of mDPO")
    anchors: list[str] = field(
        default_factory=lambda: ["chosen"],
        metadata={"help": "anchored branches of mDPO: chosen, rejected, image_rejected"},
    )
    anchor: float | list[float] = _setting(
        0.0, "anchor δ of mDPO in units of reward: one number, or one for each entry of anchors"
    )
    negative: str = _setting("crop_0_20", "kind of rejected image, or a mixture such as crop_0_20:0.5+random_image:0.5")
    negative_per_epoch: bool = _setting(False, "new rejected images in every epoch")
    cache_reference: bool = _setting(True, "cache of the reference's log-probs on disk")
    reference_cache_dir: str | None = _setting(
        None, "folder of that cache; several runs may share one", "reference_cache in output_dir"
    )
    drop_images: bool = _setting(False, "training on the text alone (Figure 1 of the paper)")
    max_length: int | None = _setting(
        None, "maximum number of tokens of prompt and response; longer responses are cut", "no limit"
    )
    changed_weight: float | None = _setting(
        None, "weight of the words in which the two answers differ, such as 5 (dense DPO)", "the same as all words"
    )
    ignore_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "columns to leave out when rows are read; other unknown columns are an error"},
    )
    system_prompt: str | None = _setting(None, "system turn for rows that have none of their own")
    chat_template: str | None = _setting(None, "Jinja template, or path of a .jinja file", "the processor's")
    chat_template_kwargs: dict | None = _setting(
        None, "variables for the chat template, such as {enable_thinking: false}"
    )
    prompt_is_rendered: bool | None = _setting(
        None, "whether plain-text prompts already contain the template's turns", "recognised row by row"
    )

    reference: str = _setting("start", "reference model: start (the model as loaded) or base (without its adapter)")
    check_start: bool = _setting(
        True, "comparison of the first rows with the model's own forward, before the first step"
    )
    eval_skip_not_finite: bool = _setting(
        False, "evaluation without the rows whose loss is not finite; false: such a row ends the run"
    )
    sample_prompts: int = _setting(
        0, "number of rows whose answers are written to sample_answers.html at every evaluation"
    )
    disable_dropout: bool = _setting(True, "training with the dropout of model and adapter off")
    resume_from_checkpoint: str | bool | None = _setting(None, "folder of a checkpoint, or true for the newest one")

    overwrite_output_dir: bool = _setting(
        False, "removal of the run in output_dir right before the first step; not when resuming from it"
    )

    checkpoint_layers: int | None = _setting(
        None, "number of layers to recompute in the backward pass", "all or none, by gradient_checkpointing"
    )
    compile_layers: bool = _setting(
        False, "torch.compile of the repeated layers", "false; true on a GPU where layers can be compiled"
    )

    fused_lora: bool = _setting(
        True, "LoRA layers that add to their base's product in place; false: peft's own forward"
    )


@dataclass
class OwnRunSettings:
    """Of ``RunConfig``: what ``mdpo train`` needs beside the trainer's settings."""

    model_name_or_path: str = field(
        metadata={"help": "model with its processor: folder, or owner/name[@revision] on the hub"}
    )
    train_data: str | list[str] | dict[str, float] = field(
        metadata={
            "help": "preference rows: file, folder, pattern, list of files, or owner/name[@revision][:split] on the "
            "hub; or a mixture with shares: {a.jsonl: 0.7, owner/b: 0.3}"
        }
    )
    model_revision: str | None = _setting(None, "branch, tag or commit of the model on the hub", "the main branch")
    adapter_name_or_path: str | None = _setting(
        None, "adapter to continue from: folder, or name on the hub; it is also the reference (see reference)"
    )
    max_pixels: int | None = _setting(
        None, "maximum number of pixels of an image; larger images are made smaller", "the processor's"
    )
    min_pixels: int | None = _setting(
        None, "minimum number of pixels of an image; smaller images are made larger", "the processor's"
    )
    image_processor_kwargs: dict | None = _setting(
        None, "size of images by the image processor's own names, such as {max_patches: 6}", "the processor's"
    )
    image_dir: str | None = _setting(None, "folder of the images", "the data file's folder")
    allow_outside: bool = _setting(False, "permission for image paths and links to lead out of the image folder")
    eval_data: str | list[str] | None = _setting(None, "rows to evaluate on, in any form of train_data but a mixture")
    eval_fraction: float = _setting(0.0, "share of train_data held out for evaluation, instead of eval_data")
    dtype: str = _setting("auto", "dtype of the base model's weights: auto, bfloat16, float16 or float32")
    load_in_4bit: bool = _setting(False, "4-bit (NF4) weights for the language model's linear layers (QLoRA)")
    use_lora: bool = _setting(True, "LoRA; false: full fine-tuning against a frozen copy of the model")
    lora_r: int = _setting(64, "LoRA rank")
    lora_alpha: int = _setting(128, "LoRA scale")
    lora_dropout: float = _setting(
        0.0, "LoRA dropout; branches that share a prompt share its mask, and disable_dropout has to be false"
    )
    lora_target_modules: str | list[str] | None = _setting(
        None,
        "layers with LoRA: names in the language model, or one regular expression",
        "every linear layer of the language model",
    )
    plan_model_shape: str | None = _setting(
        None, "model for mdpo plan if it is not on this machine: llava-1.5-7b or bunny-v1.0-3b"
    )
    plan_prompt_tokens: int | None = _setting(
        None, "prompt length for mdpo plan if the data is not on this machine: tokens, image included"
    )
    plan_response_tokens_median: int | None = _setting(
        None, "median response length for mdpo plan if the data is not on this machine: tokens"
    )
    plan_response_tokens_max: int | None = _setting(
        None, "maximum response length for mdpo plan if the data is not on this machine: tokens"
    )
    freeze_vision_tower: bool = _setting(True, "frozen vision tower in full fine-tuning")
    freeze_multi_modal_projector: bool = _setting(True, "frozen projector in full fine-tuning")


OWN = (*fields(OwnRunSettings), *fields(OwnTrainerSettings))
"""Every setting of our own, those of the run first."""


def default_text(field: Field) -> str:
    """The default of a setting as the help shows it: in words, or its value as a YAML file would have it."""
    if "default" in field.metadata:
        return field.metadata["default"]
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return "required"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
