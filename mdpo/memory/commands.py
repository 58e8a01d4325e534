"""``mdpo plan`` and ``mdpo train --memory``: from a configuration to a plan."""

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mdpo.config import MDPOConfig, RunConfig
from mdpo.errors import InputError
from mdpo.models import LANGUAGE_LINEAR
from mdpo.models.compiler import compiler_fault
from mdpo.run_source import RunSource

from .automatic import automatic
from .choose import Constraints, Plan, choose, smallest
from .constraints import constraints_of, examples_of, shape_of, unplanned
from .lengths import Examples
from .shapes import ModelShape
from .size import AUTO, Memory, free_memory, gibibytes, memory_of
from .table import table


def run_plan(options: argparse.Namespace) -> None:
    """Prints the table and the plan. Raises InputError where nothing fits."""
    # A plan is made where there is no GPU yet; a configuration with bf16 would be refused there.
    here = {} if torch.cuda.is_available() else {"use_cpu": True}
    run, args = RunSource.of(options).load(here)
    memory = memory_of(AUTO if options.memory is None else options.memory, lambda: free_memory(args.device))
    if options.memory is None:
        _print_automatic(run, args, memory, LANGUAGE_LINEAR)
    else:
        plan_run(run, args, memory, LANGUAGE_LINEAR, cuda=True)


def _print_automatic(run: RunConfig, args: MDPOConfig, memory: Memory, lora_pattern: str) -> None:
    """What ``mdpo train`` would choose on this machine."""
    read = partial(examples_of, run, args)
    chosen = automatic(run, args, read, memory, lora_pattern, compiler_fault=compiler_fault(args.device))
    if chosen.plan is not None and chosen.examples is not None:
        fits = chosen.plan.footprint.total <= memory.bytes
        print(table([(chosen.plan, fits)], chosen.plan, chosen.examples, memory.bytes))
    print(chosen.line)


def planned_settings(
    run: RunConfig, args: MDPOConfig, memory: Memory, lora_pattern: str, *, cuda: bool
) -> dict[str, Any]:
    """The keys that ``mdpo train --memory`` sets: those of the plan that the user has not written. token_budget is the
    most there is, so the plan may go below it. Raises InputError as ``plan_run``."""
    settings = plan_run(run, args, memory, lora_pattern, cuda=cuda).settings
    written = {*run.given, *args.given} - {"token_budget"}
    if args.has_checkpointing:
        written.add("checkpoint_layers")
    return {name: value for name, value in settings.items() if name not in written}


def plan_run(run: RunConfig, args: MDPOConfig, memory: Memory, lora_pattern: str, *, cuda: bool) -> Plan:
    """The plan of a run for the memory of one device, printed. lora_pattern: LoRA's targets where the run names none.

    Raises InputError where nothing fits, with the smallest that would, or where a key is missing that stands for what
    is not on this machine.
    """
    reason = unplanned(run, args)
    if reason is not None:
        raise InputError(reason)
    shape = shape_of(run, args, lora_pattern)
    shape, examples = examples_of(run, args, shape)
    constraints = constraints_of(run, args, shape, cuda=cuda, driver_bytes=memory.driver_bytes)
    chosen = choose(shape, examples, constraints, memory.bytes)
    if chosen is None:
        raise InputError(_nothing_fits(run, args, shape, examples, constraints, memory.bytes))
    columns = []
    for quantized in constraints.quantized:
        only = replace(constraints, quantized=(quantized,))
        plan = choose(shape, examples, only, memory.bytes)
        columns.append((plan or smallest(shape, examples, only), plan is not None))
    print(table(columns, chosen, examples, memory.bytes))
    return chosen


def _nothing_fits(
    run: RunConfig, args: MDPOConfig, shape: ModelShape, examples: Examples, constraints: Constraints, memory_bytes: int
) -> str:
    """The smallest that would fit, and what each remedy would bring."""
    least = smallest(shape, examples, constraints)
    parts = least.footprint.parts
    tokens = sum(
        parts[name] for name in ("boundaries", "kept layers", "recomputed layer", "in flight", "head", "inputs")
    )
    weights = "in 4 bits" if least.quantized else "not quantised"
    pictures = "" if args.drop_images else " (as does max_pixels, where the processor's pictures can be sized)"
    remedies = [
        f"max_length{pictures} shortens the longest example, whose {examples.longest} packed tokens take "
        f"{gibibytes(tokens)} GiB"
    ]
    if run.use_lora:
        adapter = sum(parts[name] for name in ("adapter", "gradients", "optimizer", "casts"))
        remedies.append(f"lora_r {max(run.lora_r // 2, 1)} halves the {gibibytes(adapter)} GiB of the adapter")
    else:
        remedies.append("use_lora trains an adapter instead of the weights")
    return (
        f"nothing fits in {gibibytes(memory_bytes)} GiB: the smallest needs {gibibytes(least.footprint.total)} GiB "
        f"(weights {weights}, {least.optimizer}, {least.checkpoint_layers} of {shape.layers} layers checkpointed, "
        f"token_budget {least.token_budget}). To change: {'; '.join(remedies)}"
    )
