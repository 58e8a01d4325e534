"""The settings that fit a budget: the most exact that do, and of those the fastest.

Exactness first, because memory is no reason to train another model than the one asked for while a slower way to train
that one is there: bf16 before 4 bits, and within each AdamW in 32 bits before 8 before paged. Then time, which is
estimated from operations alone: with a frozen base a packed token costs a forward and a backward of equal size, one
more forward in each checkpointed layer, and a micro-batch costs its weights' way through memory. On a GPU a micro-batch
also has a floor: the host has to launch each layer's kernels, and where that takes longer than the kernels do, the GPU
waits.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from mdpo.packing import plan as plan_steps

from .footprint import ADAM_BYTES, DRIVER_BYTES, Footprint, Setup, footprint
from .lengths import Examples
from .precision import Precision
from .shapes import ModelShape

OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit")
# Packed tokens whose products take as long as reading the weights once: 790 TFLOP/s over 4.3 TB/s, two bytes and two
# operations a weight. In 4 bits they are also written and read as bf16. Estimated from the device's floors.
OVERHEAD_TOKENS = {False: 184, True: 414}
# Seconds in which a host launches one layer's forward, by whether the layers are compiled; its backward takes about as
# long. Eager: half of the 2.5 ms that a Llama layer with LoRA took on a slow core. Estimated, as are the operations a
# second that a layer's products amount to with everything around them: 700 TFLOP/s in the products and about as long
# again in the rest, which compiling shortens by half.
HOST_SECONDS = {False: 1.3e-3, True: 0.5e-3}
LAYER_RATE = {False: 390e12, True: 500e12}
# Token budgets to try, as multiples of the longest example.
_MULTIPLES = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the configuration leaves open. quantized: the answers allowed, in order of preference; optimizers likewise.
    token_budget: the most, or the only one where it is fixed. checkpointed: the only number of layers, None where that
    is open. compiled: whether the layers are. driver_bytes: what the device keeps for itself."""

    precision: Precision
    quantized: tuple[bool, ...]
    optimizers: tuple[str, ...]
    token_budget: int
    examples_per_step: int
    fixed_budget: bool = False
    checkpointed: int | None = None
    compiled: bool = False
    driver_bytes: int = DRIVER_BYTES

    def counts(self, layers: int) -> Sequence[int]:
        """The numbers of checkpointed layers to try, of a model with ``layers``."""
        return range(layers + 1) if self.checkpointed is None else [self.checkpointed]


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings, and what they come to. compiled: whether the layers are. work: of a step, in tokens' forwards;
    work_checkpointed: of the same step with every layer checkpointed."""

    quantized: bool
    optimizer: str
    checkpoint_layers: int
    token_budget: int
    compiled: bool
    footprint: Footprint
    tokens_per_step: float
    micro_batches_per_step: float
    work: float
    work_checkpointed: float

    @property
    def settings(self) -> dict[str, bool | int | str]:
        """The keys of the configuration that the plan sets."""
        return {
            "load_in_4bit": self.quantized,
            "optim": self.optimizer,
            "checkpoint_layers": self.checkpoint_layers,
            "token_budget": self.token_budget,
            "compile_layers": self.compiled,
        }


def wished_optimizers(configured: str) -> tuple[str, ...]:
    """The configured optimizer, then those that take less."""
    lighter = (name for name in OPTIMIZERS if ADAM_BYTES[name] < ADAM_BYTES[configured])
    return (configured, *lighter)


def choose(shape: ModelShape, examples: Examples, constraints: Constraints, memory_bytes: int) -> Plan | None:
    """The plan of a run on one card: the most exact that fits, and of those the fastest.

    Args:
        shape: of the model, as ``read_shape`` gives it.
        examples: of the data.
        constraints: what the configuration leaves open.
        memory_bytes: that the run may take of the card.

    Returns:
        None where nothing fits.
    """
    search = _Search(shape, examples, constraints)
    for quantized, optimizer in itertools.product(constraints.quantized, constraints.optimizers):
        fewest = (search.fewest_checkpointed(quantized, optimizer, step, memory_bytes) for step in search.steps())
        fitting = [plan for plan in fewest if plan is not None]
        if fitting:
            return min(fitting, key=lambda plan: plan.work)
    return None


def smallest(shape: ModelShape, examples: Examples, constraints: Constraints) -> Plan:
    """The plan that takes the least, whatever it costs in time.

    Args:
        shape, examples, constraints: as for ``choose``.
    """
    search = _Search(shape, examples, constraints)
    step = next(search.steps())
    plans = (
        search.plan(_Candidate(quantized, optimizer, checkpointed, step))
        for quantized, optimizer in itertools.product(constraints.quantized, constraints.optimizers)
        for checkpointed in constraints.counts(shape.layers)
    )
    return min(plans, key=lambda plan: plan.footprint.total)


def setup_of(
    examples: Examples, constraints: Constraints, *, quantized: bool, optimizer: str, checkpointed: int, tokens: int
) -> Setup:
    """A micro-batch of ``tokens`` at its worst: as many images and scored rows as the examples can bring."""
    return Setup(
        precision=constraints.precision,
        quantized=quantized,
        optimizer=optimizer,
        checkpointed=checkpointed,
        tokens=tokens,
        scored=int(tokens * examples.scored_share),
        images=examples.images * max(1, tokens // min(examples.packed)),
        longest=examples.longest_sequence,
        driver_bytes=constraints.driver_bytes,
    )


class _Step(NamedTuple):
    """An optimizer step under a token budget: its micro-batches and its packed tokens, both on average."""

    budget: int
    micro_batches: float
    tokens: float


class _Candidate(NamedTuple):
    """What a plan is made of. checkpointed: the number of layers."""

    quantized: bool
    optimizer: str
    checkpointed: int
    step: _Step


@dataclass(frozen=True, slots=True)
class _Search:
    """The plans of a model for these examples, as far as the configuration leaves them open."""

    shape: ModelShape
    examples: Examples
    constraints: Constraints

    def steps(self) -> Iterator[_Step]:
        """A step for each token budget to try. The first has that of the longest example."""
        examples, constraints = self.examples, self.constraints
        highest = max(examples.longest, constraints.token_budget)
        budgets = {min(int(examples.longest * multiple), highest) for multiple in _MULTIPLES}
        if constraints.fixed_budget:
            budgets = {highest}
        count = constraints.examples_per_step
        lengths: Sequence[int] = examples.packed[: 16 * count]  # enough steps for a mean
        tokens = fmean(lengths) * count
        for budget in sorted(budgets):
            steps = plan_steps(lengths, budget, examples_per_step=count, padded=examples.separate)
            whole = [step for step in steps if sum(map(len, step)) == count]
            yield _Step(budget, fmean(map(len, whole or steps)), tokens)

    def fewest_checkpointed(self, quantized: bool, optimizer: str, step: _Step, memory_bytes: int) -> Plan | None:
        """The first plan that fits, of more and more checkpointed layers."""
        for checkpointed in self.constraints.counts(self.shape.layers):
            plan = self.plan(_Candidate(quantized, optimizer, checkpointed, step))
            if plan.footprint.total <= memory_bytes:
                return plan
        return None

    def plan(self, candidate: _Candidate) -> Plan:
        quantized, optimizer, checkpointed, step = candidate
        setup = setup_of(
            self.examples,
            self.constraints,
            quantized=quantized,
            optimizer=optimizer,
            checkpointed=checkpointed,
            tokens=step.budget,
        )
        return Plan(
            quantized,
            optimizer,
            checkpointed,
            step.budget,
            self.constraints.compiled,
            footprint(self.shape, setup),
            step.tokens,
            step.micro_batches,
            work=self._work(candidate, checkpointed / self.shape.layers),
            work_checkpointed=self._work(candidate, 1.0),
        )

    def _work(self, candidate: _Candidate, recomputed: float) -> float:
        """Of a step, in tokens' forwards. recomputed: the share of the layers that are computed once more."""
        step = candidate.step
        cost = step.tokens / step.micro_batches + OVERHEAD_TOKENS[candidate.quantized]
        passes = 3 if self.shape.trained_base else 2  # the weights' own gradient is a third
        launches = 2  # a forward and a backward, whatever the backward computes
        floor = self._floor_tokens() * (launches + recomputed)
        return step.micro_batches * max(cost * (passes + recomputed), floor)

    def _floor_tokens(self) -> float:
        """Packed tokens whose forward through a layer takes a GPU as long as the host takes to launch it."""
        compiled = self.constraints.compiled
        if not self.constraints.precision.cuda:
            return 0.0
        operations = 2 * self.shape.language_linear / self.shape.layers  # of a token
        return HOST_SECONDS[compiled] * LAYER_RATE[compiled] / operations
