"""A whole optimizer step of N pairs, as each trainer takes it: forward and backward of every micro-batch, clipping of
the gradient's norm, AdamW, zeroing.

What is left out on every side: reading images, tokenising, packing or collating, and the copy to the device; the
micro-batches lie there. Equal on every side: the model, LoRA, fp32 adapters, bf16 autocast on a GPU, fused AdamW, pairs
a micro-batch (on average for ours, whose planner evens tokens), and checkpointing, except where a row's note says
otherwise. Each builds a model of its own, since trainers change what they are given.
"""

# A trainer's attributes are Optional to a type checker.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from peft import get_peft_model
from torch import Tensor

from bench.inputs.models import adapter, build_base, build_nf4_base
from bench.inputs.preference_rows import TokenPairs
from bench.inputs.processor import processor_for
from bench.suite import flops
from bench.suite.group import Implementation
from bench.suite.implementations.padded import pad, padded_logps
from bench.suite.implementations.train_problem import (
    MAX_GRAD_NORM,
    TrainProblem,
    TrainStep,
    common_settings,
    optimizer_step,
)
from mdpo import MDPOConfig, MDPOTrainer
from mdpo.models import language_layers
from mdpo.models.reference import Reference
from mdpo.packing import PreferenceTokens, pack, plan
from mdpo.trainer.steps import Step
from mdpo_kernels import mdpo_loss

AUTHORS_BATCH = 4


class KnownWeights(MDPOTrainer):
    """Random weights of one seed are known without reading them, which takes longer than a step."""

    def weights_digest(self, reference: Reference) -> str:
        return "random weights of seed 0"


def token_budget(examples: Sequence[PreferenceTokens], micro_batches: int) -> int:
    """The smallest budget, in steps of 64 tokens, by which the planner makes so many micro-batches."""
    lengths = [example.packed_length for example in examples]
    budget = max(max(lengths), -(-sum(lengths) // micro_batches))
    while len(plan(lengths, budget, examples_per_step=len(lengths))[0]) > micro_batches:
        budget += 64
    return budget


def ours(problem: TrainProblem, *, cached: bool, fused_lora: bool = True) -> TrainStep:
    """MDPOTrainer's own training_step. One step of `train` prepares it, and fills the cache of the reference."""
    build = build_nf4_base if problem.quantized else build_base
    model = build(problem.shape, problem.image_tokens, problem.device)
    micro_batches = -(-len(problem.examples) // problem.batch)
    with tempfile.TemporaryDirectory() as folder:  # what the cache holds stays in memory too
        args = MDPOConfig(
            output_dir=folder,
            examples_per_step=len(problem.examples),
            max_steps=1,
            cache_reference=cached,
            token_budget=token_budget(problem.examples, micro_batches),
            learning_rate=problem.learning_rate,
            checkpoint_layers=problem.checkpoint_layers,
            compile_layers=problem.layers == "compiled",
            check_start=False,
            fused_lora=fused_lora,
            **common_settings(problem),
        )
        trainer = KnownWeights(
            model=model,
            args=args,
            train_dataset=TokenPairs(problem.examples),
            peft_config=adapter(problem.lora_r),
            processing_class=processor_for(model),
        )
        trainer.train()
    if problem.layers == "compiled" and any(layer._compiled_call_impl is None for layer in language_layers(model)):
        raise RuntimeError("the trainer did not compile the layers; torch.compile does not work here")
    (prepared,) = trainer.get_train_dataloader()

    def take(step: Step, examples: Sequence[PreferenceTokens]) -> TrainStep:
        def run() -> Tensor:
            loss = trainer.training_step(trainer.model_wrapped, step)
            optimizer_step(trainer)
            return loss

        rows = flops.packed_rows(examples)
        work = flops.policy_flops(trainer.model, rows) + flops.image_flops(trainer.model, rows.images)
        if not cached:
            work += flops.reference_flops(trainer.model, rows)
        return TrainStep(
            model=trainer.model,
            run=run,
            examples=len(examples),
            tokens=rows.tokens,
            model_flops=work,
            micro_batches=len(step.micro_batches),
            retake=retake,
        )

    def retake(examples: Sequence[PreferenceTokens]) -> TrainStep:
        return take(Step([pack(examples, trainer.family).to(problem.device)], len(examples), [1.0]), examples)

    moved = [packed.to(problem.device) for packed in prepared.micro_batches]
    return take(replace(prepared, micro_batches=moved), problem.examples)


def authors(problem: TrainProblem, batch: int = AUTHORS_BATCH) -> TrainStep:
    """The published code's step: three padded passes a batch, policy and reference, each encoding its images, fp32
    logits of all positions, checkpointing."""
    base = build_base(problem.shape, problem.image_tokens, problem.device)
    torch.manual_seed(0)  # the adapter that a trainer of seed 0 adds
    model = get_peft_model(base, adapter(problem.lora_r)).train()
    base.set_attn_implementation({"text_config": "sdpa"})
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=problem.learning_rate, weight_decay=0.0, fused=True)

    def retake(examples: Sequence[PreferenceTokens], batch: int | None = None) -> TrainStep:
        pairs, batch = len(examples), batch or len(examples)
        batches = [
            [pad(examples[start : start + batch], (branch,), problem.device) for branch in range(3)]
            for start in range(0, pairs, batch)
        ]

        def run() -> Tensor:
            losses = []
            for branches in batches:
                with torch.autocast("cuda", torch.bfloat16) if problem.autocast else nullcontext():
                    with torch.no_grad(), model.disable_adapter():
                        reference = torch.stack([padded_logps(model, batch, full_logits=True) for batch in branches])
                    policy = torch.stack([padded_logps(model, batch, full_logits=True) for batch in branches])
                    loss = mdpo_loss(policy, reference, num_examples=pairs).loss
                loss.backward()
                losses.append(loss.detach())
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            return torch.stack(losses).sum()

        rows = flops.three_branch_rows(examples)
        images = flops.image_flops(model, 2 * rows.images)
        work = flops.policy_flops(model, rows) + flops.reference_flops(model, rows) + images
        return TrainStep(
            model=model,
            run=run,
            examples=pairs,
            tokens=rows.tokens,
            model_flops=work,
            micro_batches=len(batches),
            retake=retake,
        )

    return retake(problem.examples, batch)


def _load_trl() -> Callable[[TrainProblem], TrainStep]:
    from bench.suite.implementations.trl_step import trl_step

    return trl_step


def _load_liger(load: Callable[[], Callable[[TrainProblem], TrainStep]]) -> Callable[[TrainProblem], TrainStep]:
    import liger_kernel.transformers  # noqa: F401  # pyright: ignore[reportMissingImports]  (an optional peer)

    return load()


_OURS_NOTE = (
    "MDPOTrainer.training_step; three branches on a packed row, two image encodings a pair, varlen attention, peft's "
    "cast of layer inputs to fp32 off"
)
_TRL_NOTE = (
    "DPOTrainer.training_step; two branches padded, no third, the reference each step (it refuses to cache it with "
    "images), four image encodings a pair, sdpa, entropy and token accuracy computed too"
)
_LIGER_NOTE = "with Liger's norm, rotary and SwiGLU kernels"

_COMPILED_NOTE = "each decoder layer through torch.compile, with dynamic shapes"

TRAIN_STEP = (
    Implementation(
        name="ours, reference cached",
        role="ours",
        load=lambda: partial(ours, cached=True),
        comparable=False,
        note=f"{_OURS_NOTE}; epochs after the first",
    ),
    Implementation(
        name="ours, reference each step",
        role="ours",
        load=lambda: partial(ours, cached=False),
        comparable=False,
        note=f"{_OURS_NOTE}; the first epoch",
    ),
    Implementation(name="TRL DPOTrainer", role="peer", load=_load_trl, comparable=False, note=_TRL_NOTE),
    Implementation(
        name="authors' way",
        role="torch",
        load=lambda: authors,
        comparable=False,
        note="as shipped: batches of four, padded, fp32 logits of all positions, checkpointing always on, three "
        "branches, the reference each step, six image encodings a pair; written anew here, with bf16 weights and sdpa "
        "(theirs: fp32)",
    ),
)

PEFT_LORA = Implementation(
    name="ours, peft's LoRA layers",
    role="ours",
    load=lambda: partial(ours, cached=True, fused_lora=False),
    comparable=False,
    note="as ours, reference cached, with fused_lora off",
)

# The authors ship neither.
TRAIN_STEP_COMPILED = tuple(replace(i, note=f"{i.note}; {_COMPILED_NOTE}") for i in (*TRAIN_STEP[:3], PEFT_LORA))
TRAIN_STEP_LIGER = tuple(
    replace(i, load=partial(_load_liger, i.load), devices=("cuda",), note=f"{i.note}; {_LIGER_NOTE}")
    for i in TRAIN_STEP[:3]
)
