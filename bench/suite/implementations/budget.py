"""The most pairs a micro-batch that train under a cap on memory, by each trainer, and the step at that size.

A step is whole: forward, backward and optimizer of one micro-batch. On a GPU it fits if the allocator, capped, does not
run out; on a CPU if the weights, the optimizer's moments and the tensors that are alive during a step stay within the
cap, counted at PyTorch's dispatcher.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.inputs.lengths import LONGEST, RESPONSE_MEDIAN, TEXT_TOKENS
from bench.inputs.models import Shape, config_of
from bench.inputs.preference_rows import preference_rows
from bench.suite.group import Implementation
from bench.suite.implementations.train_problem import TrainProblem, TrainStep
from bench.suite.implementations.train_step import authors, ours
from mdpo.memory import Adaptation, Plan, choose, log_normal, read_shape
from mdpo.memory.choose import Constraints
from mdpo.memory.live import LiveMemory
from mdpo.memory.precision import Precision
from mdpo.models import LANGUAGE_LINEAR
from mdpo.packing import PreferenceTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetProblem:
    """cap: bytes, weights included. most: pairs beyond which nobody looks. step_pairs: of the step that the plan is
    made for. shrink: of the rows, for a CPU."""

    shape: Shape
    image_tokens: int
    cap: int
    device: torch.device
    most: int
    step_pairs: int = 16
    shrink: int = 1

    def step(self, pairs: int, *, checkpointing: bool) -> TrainProblem:
        """One micro-batch of so many pairs."""
        return TrainProblem(
            shape=self.shape,
            image_tokens=self.image_tokens,
            batch=pairs,
            checkpointing=checkpointing,
            device=self.device,
            examples=preference_rows(self.shape, pairs, image_tokens=self.image_tokens, shrink=self.shrink),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A step of so many pairs, that fits. remark: how it was come by."""

    step: TrainStep
    pairs: int
    remark: str


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The most in 1 … ``most`` that fit, 0 if not even one does; what fits is taken to fit when it is smaller."""
    good, bad = 0, most + 1
    probe = 1
    while good < bad - 1:
        if fits(probe):
            good = probe
        else:
            bad = probe
        probe = min(2 * good, most) if bad == most + 1 and good else (good + bad) // 2
    return good


def searched(make: Callable[[TrainProblem], TrainStep], problem: BudgetProblem, *, checkpointing: bool) -> Budget:
    """One trainer for all probes, since building one takes longer than a step. Raises torch.OutOfMemoryError where one
    pair does not fit."""
    trainer = make(problem.step(1, checkpointing=checkpointing))
    examples = problem.step(problem.most, checkpointing=checkpointing).examples
    pairs = largest(lambda pairs: _fits(trainer, examples[:pairs], problem), problem.most)
    if not pairs:
        raise torch.OutOfMemoryError(f"one pair does not fit under {problem.cap / 2**30:.3g} GiB")
    more = ", the most that was tried" if pairs == problem.most else ""
    remark = f"the largest micro-batch: {pairs} pairs{more}"
    return Budget(step=trainer.retake(examples[:pairs]), pairs=pairs, remark=remark)


def _fits(trainer: TrainStep, examples: Sequence[PreferenceTokens], problem: BudgetProblem) -> bool:
    try:
        step = trainer.retake(examples)
        if problem.device.type == "cpu":
            with LiveMemory() as memory:
                step.run()
            return memory.peak + _standing_bytes(step) <= problem.cap
        step.run()
        torch.cuda.synchronize(problem.device)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        step = None
        trainer.model.zero_grad(set_to_none=True)  # of a backward that broke off
        gc.collect()
        if problem.device.type == "cuda":
            torch.cuda.empty_cache()


def _standing_bytes(step: TrainStep) -> int:
    """Weights, and AdamW's two moments of what is trained."""
    parameters = list(step.model.parameters())
    moments = sum(8 * parameter.numel() for parameter in parameters if parameter.requires_grad)
    return moments + sum(parameter.nbytes for parameter in parameters)


def plan_of(problem: BudgetProblem) -> Plan | None:
    """What ``mdpo plan`` chooses for the cap: 4-bit weights or not, layers to checkpoint, tokens a micro-batch."""
    prompt = problem.image_tokens + TEXT_TOKENS // problem.shrink
    lengths = log_normal(
        prompt_tokens=prompt,
        response_tokens_median=RESPONSE_MEDIAN // problem.shrink,
        response_tokens_max=LONGEST // problem.shrink,
        image_tokens=problem.image_tokens,
    )
    on_gpu = problem.device.type == "cuda"
    constraints = Constraints(
        precision=Precision(weight_bytes=2 if on_gpu else 4, autocast=on_gpu),
        driver_bytes=0,
        quantized=(False, True) if on_gpu else (False,),
        optimizers=("adamw_torch_fused",),
        token_budget=2 * problem.most * prompt,
        examples_per_step=problem.step_pairs,
    )
    config = config_of(problem.shape, problem.image_tokens)
    return choose(read_shape(config, Adaptation(rank=64, pattern=LANGUAGE_LINEAR)), lengths, constraints, problem.cap)


def planned(problem: BudgetProblem) -> Budget:
    """The settings of ``plan_of``."""
    plan = plan_of(problem)
    if plan is None:
        raise torch.OutOfMemoryError(f"the plan has nothing for {problem.cap / 2**30:.3g} GiB")
    batch = max(1, round(problem.step_pairs / plan.micro_batches_per_step))
    step = ours(
        replace(
            problem.step(problem.step_pairs, checkpointing=plan.checkpoint_layers > 0),
            batch=batch,
            checkpoint_layers=plan.checkpoint_layers,
            quantized=plan.quantized,
        ),
        cached=True,
    )
    weights = "4-bit weights" if plan.quantized else "weights not quantised"
    remark = (
        f"by the plan: {weights}, {plan.checkpoint_layers} layers checkpointed, some {batch} pairs a micro-batch, "
        f"{plan.footprint.allocated / 2**30:.3g} GiB planned"
    )
    return Budget(step=step, pairs=batch, remark=remark)


def _load_planned(problem: BudgetProblem) -> Callable[[BudgetProblem], Budget]:
    plan = plan_of(problem)
    if plan is not None and plan.quantized:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]  (an optional package)
    return planned


def _trl(checkpointing: bool) -> Callable[[BudgetProblem], Budget]:
    from bench.suite.implementations.trl_step import trl_step

    return partial(searched, trl_step, checkpointing=checkpointing)


def _authors(problem: TrainProblem) -> TrainStep:
    return authors(problem, problem.batch)


def budget(problem: BudgetProblem) -> tuple[Implementation, ...]:
    """Ours as planned, and each trainer's largest micro-batch."""
    return (
        Implementation(
            name="ours, as planned",
            role="ours",
            load=lambda: _load_planned(problem),
            comparable=False,
            note="reference cached, three branches on a packed row; a step of several micro-batches",
        ),
        *_SEARCHED,
    )


_SEARCHED = (
    Implementation(
        name="ours, checkpointing on", role="ours", comparable=False,
        load=lambda: partial(searched, partial(ours, cached=True), checkpointing=True),
        note="reference cached, three branches on a packed row",
    ),
    Implementation(
        name="TRL, checkpointing on", role="peer", load=lambda: _trl(True), comparable=False,
        note="DPOTrainer: two branches, the reference each step",
    ),
    Implementation(
        name="TRL, checkpointing off", role="peer", load=lambda: _trl(False), comparable=False,
        note="DPOTrainer: two branches, the reference each step",
    ),
    Implementation(
        name="authors' way", role="torch", comparable=False,
        load=lambda: partial(searched, _authors, checkpointing=True),
        note="three padded branches, fp32 logits of all positions, checkpointing, the reference each step",
    ),
)  # fmt: skip
