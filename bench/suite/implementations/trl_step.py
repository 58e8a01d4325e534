"""TRL's two-branch DPO step: its trainer's own training_step, reference pass included, at its best settings.

The model is an instance (a path would be loaded in fp32), the adapter TRL's own to add: a model that comes with one is
taken for trained before, and a copy of the adapter becomes the reference.
"""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false

import tempfile
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]  (an optional peer)

from bench.inputs.models import adapter, build_base
from bench.inputs.processor import processor_for
from bench.suite import flops
from bench.suite.implementations.padded import pad
from bench.suite.implementations.train_problem import TrainProblem, TrainStep, common_settings, optimizer_step
from mdpo.models.layers import compile_layers
from mdpo.packing import PreferenceTokens


class CollatedDPOTrainer(DPOTrainer):
    """DPOTrainer on batches that are collated already."""

    batches: list[dict[str, Tensor]]

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


def trl_step(problem: TrainProblem) -> TrainStep:
    """One step of `train` prepares it: checkpointing, autocast, Liger's layers, optimizer."""
    batches = _batches(problem.examples, problem.batch, problem.device)
    model = build_base(problem.shape, problem.image_tokens, problem.device)
    model.set_attn_implementation({"text_config": "sdpa"})
    # What the trainer is built with and never trained on.
    row = {
        "images": [Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8))],
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # use_liger_kernel is on its way out
        trainer = CollatedDPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=folder,
                beta=0.1,
                max_length=None,
                max_steps=1,
                learning_rate=problem.learning_rate,
                per_device_train_batch_size=problem.batch,
                gradient_accumulation_steps=len(batches),
                dataloader_pin_memory=False,
                **common_settings(problem),
            ),
            train_dataset=Dataset.from_list([row]),
            processing_class=processor_for(model),
            peft_config=adapter(problem.lora_r),
        )
        if problem.layers == "compiled":
            compile_layers(trainer.model)
        trainer.batches = batches
        trainer.train()

    def take(batches: list[dict[str, Tensor]], examples: Sequence[PreferenceTokens]) -> TrainStep:
        def run() -> Tensor:
            losses = [trainer.training_step(trainer.model_wrapped, batch) for batch in batches]
            optimizer_step(trainer)
            return torch.stack(losses).sum()

        rows = flops.two_branch_rows(examples)
        images = flops.image_flops(trainer.model, 2 * rows.images)  # policy and reference each encode them
        work = flops.policy_flops(trainer.model, rows) + flops.reference_flops(trainer.model, rows) + images
        return TrainStep(
            model=trainer.model,
            run=run,
            examples=len(examples),
            tokens=rows.tokens,
            model_flops=work,
            micro_batches=len(batches),
            retake=retake,
        )

    def retake(examples: Sequence[PreferenceTokens]) -> TrainStep:
        return take(_batches(examples, len(examples), problem.device), examples)

    return take(batches, problem.examples)


def _batches(examples: Sequence[PreferenceTokens], size: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Chosen and rejected of `size` pairs at a time, as the trainer's collator lays them out."""
    padded = [pad(examples[start : start + size], (0, 1), device) for start in range(0, len(examples), size)]
    return [batch.inputs | {"completion_mask": (batch.labels >= 0).long()} for batch in padded]
