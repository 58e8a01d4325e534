"""What a whole training step is taken of, and what each trainer makes of it; equal for ours and TRL's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor
from torch.profiler import record_function

from bench.inputs.models import Shape
from bench.suite.components import OPTIMIZER
from mdpo.packing import PreferenceTokens

Layers = Literal["transformers", "compiled", "liger"]
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProblem:
    """One optimizer step on `examples`, `batch` pairs a micro-batch. checkpoint_layers: ours alone; None for all or
    none by `checkpointing`. quantized: the language model's linear layers in NF4, ours alone. layers: the decoder's as
    transformers has them, each through torch.compile, or with Liger's kernels."""

    shape: Shape
    image_tokens: int
    examples: Sequence[PreferenceTokens]
    batch: int
    checkpointing: bool
    device: torch.device
    checkpoint_layers: int | None = None
    quantized: bool = False
    layers: Layers = "transformers"
    lora_r: int = 64
    learning_rate: float = 1e-5

    @property
    def autocast(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """run: one optimizer step; returns its loss, (). model: what it trains. examples: pairs of the step. tokens:
    through the policy's language model, without padding. model_flops: see bench.suite.flops. micro_batches: of the
    step. retake: the same trainer's step on other examples, in one micro-batch."""

    model: PeftModel
    run: Callable[[], Tensor]
    examples: int
    tokens: int
    model_flops: float
    micro_batches: int
    retake: Callable[[Sequence[PreferenceTokens]], "TrainStep"]


def common_settings(problem: TrainProblem) -> dict:
    """Of transformers.TrainingArguments, equal for ours and TRL."""
    return {
        "bf16": problem.autocast,
        "use_cpu": not problem.autocast,
        "gradient_checkpointing": problem.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch_fused",
        "use_liger_kernel": problem.layers == "liger",
        "seed": 0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def optimizer_step(trainer) -> None:
    """As transformers.Trainer does after a step's last micro-batch."""
    with record_function(OPTIMIZER):
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.model.zero_grad()
