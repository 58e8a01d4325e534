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
    """The plan for ``memory_bytes``, or None where nothing fits."""
    for quantized, optimizer in itertools.product(constraints.quantized, constraints.optimizers):
        fitting = [
            plan
            for budget, micro_batches, tokens in _budgets(examples, constraints)
            if (
                plan := _fewest_checkpointed(
                    shape, examples, constraints, quantized, optimizer, budget, micro_batches, tokens, memory_bytes
                )
            )
        ]
        if fitting:
            return min(fitting, key=lambda plan: plan.work)
    return None


def smallest(shape: ModelShape, examples: Examples, constraints: Constraints) -> Plan:
    """The plan that takes the least, whatever it costs in time."""
    budget, micro_batches, tokens = next(_budgets(examples, constraints))
    plans = (
        _plan(shape, examples, constraints, quantized, optimizer, checkpointed, budget, micro_batches, tokens)
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


def _budgets(examples: Examples, constraints: Constraints) -> Iterator[tuple[int, float, float]]:
    """Token budgets with the micro-batches and tokens of a step under each. The first is the longest example."""
    highest = max(examples.longest, constraints.token_budget)
    budgets = {min(int(examples.longest * multiple), highest) for multiple in _MULTIPLES}
    if constraints.fixed_budget:
        budgets = {highest}
    lengths: Sequence[int] = examples.packed[: 16 * constraints.examples_per_step]  # enough steps for a mean
    tokens = fmean(lengths) * constraints.examples_per_step
    for budget in sorted(budgets):
        steps = plan_steps(lengths, budget, examples_per_step=constraints.examples_per_step, padded=examples.separate)
        whole = [step for step in steps if sum(map(len, step)) == constraints.examples_per_step]
        yield budget, fmean(map(len, whole or steps)), tokens


def _fewest_checkpointed(
    shape: ModelShape,
    examples: Examples,
    constraints: Constraints,
    quantized: bool,
    optimizer: str,
    budget: int,
    micro_batches: float,
    tokens: float,
    memory_bytes: int,
) -> Plan | None:
    for checkpointed in constraints.counts(shape.layers):
        plan = _plan(shape, examples, constraints, quantized, optimizer, checkpointed, budget, micro_batches, tokens)
        if plan.footprint.total <= memory_bytes:
            return plan
    return None


def _plan(
    shape: ModelShape,
    examples: Examples,
    constraints: Constraints,
    quantized: bool,
    optimizer: str,
    checkpointed: int,
    budget: int,
    micro_batches: float,
    tokens: float,
) -> Plan:
    setup = setup_of(
        examples, constraints, quantized=quantized, optimizer=optimizer, checkpointed=checkpointed, tokens=budget
    )
    cost = tokens / micro_batches + OVERHEAD_TOKENS[quantized]
    floor = _floor_tokens(shape, constraints)
    passes = 3 if shape.trained_base else 2  # the weights' own gradient is a third
    launches = 2  # a forward and a backward, whatever the backward computes

    def work(recomputed: float) -> float:
        return micro_batches * max(cost * (passes + recomputed), floor * (launches + recomputed))

    return Plan(
        quantized,
        optimizer,
        checkpointed,
        budget,
        constraints.compiled,
        footprint(shape, setup),
        tokens,
        micro_batches,
        work=work(checkpointed / shape.layers),
        work_checkpointed=work(1.0),
    )


def _floor_tokens(shape: ModelShape, constraints: Constraints) -> float:
    """Packed tokens whose forward through a layer takes a GPU as long as the host takes to launch it."""
    if not constraints.precision.cuda:
        return 0.0
    operations = 2 * shape.language_linear / shape.layers  # of a token
    return HOST_SECONDS[constraints.compiled] * LAYER_RATE[constraints.compiled] / operations
