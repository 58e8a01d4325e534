"""What ``mdpo train`` chooses by itself on a GPU: the layers to checkpoint, the token budget, compiled layers.

The model that was asked for is trained: precision and optimizer are never touched. What the user has written stays.
A run that goes on from a checkpoint takes that run's choices where they fit, so that it goes on bit for bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from mdpo.config import MDPOConfig, RunConfig

from .choose import Constraints, Plan, choose, smallest
from .constraints import constraints_of, is_sharded, layers_by, precision_of, shape_of, unplanned
from .counted import Unplanned
from .layer import layer_bytes
from .lengths import Examples
from .shapes import ModelShape
from .size import Memory, gibibytes

_OTHERWISE = "to choose otherwise: --checkpoint_layers N --token_budget N --compile_layers false, or --memory 24GiB"


class Automatic(NamedTuple):
    """settings: the keys of the configuration that are set. line: what was chosen, why, and how to choose otherwise.
    plan: the arithmetic behind them, for these examples; None where it does not hold for the run."""

    settings: dict[str, Any]
    line: str
    plan: Plan | None = None
    examples: Examples | None = None


def automatic(
    run: RunConfig,
    args: MDPOConfig,
    examples_for: Callable[[ModelShape], tuple[ModelShape, Examples]],
    memory: Memory,
    lora_pattern: str,
    *,
    processes: int = 1,
    compiler_fault: str | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Automatic:
    """The settings of a run on the GPU.

    Args:
        examples_for: for the model's shape, the examples and the shape with its images as large as theirs.
        memory: that is free on the card, the fullest of the run's cards.
        lora_pattern: LoRA's targets where the run names none.
        processes: of the run, a card each.
        compiler_fault: why layers cannot be compiled on this machine, if so.
        recorded: the choices of the run that is gone on with.

    Raises InputError where a setting does not fit the model.
    """
    shape = _shape(run, args, lora_pattern)
    settings, layers = _layers(args, None if isinstance(shape, str) else shape, compiler_fault, recorded or {})
    if isinstance(shape, str):
        checkpointing, said = _checkpoint_everything(args)
        return Automatic(settings | checkpointing, f"no memory plan, because {shape}: {said}, {layers}; {_OTHERWISE}")
    shape, examples = examples_for(shape)
    if processes > 1:  # DDP keeps the gradients once more, in its buckets
        memory = memory._replace(bytes=memory.bytes - 4 * shape.trained)
    constraints = constraints_of(run, args, shape, cuda=True, exact=True, driver_bytes=memory.driver_bytes)
    constraints = replace(constraints, compiled=layers == "layers compiled")
    plan, remark = _plan(args, shape, examples, constraints, memory, recorded)
    settings |= _of_plan(args, plan)
    free = f"{gibibytes(memory.bytes)} GiB free" + (f" on each of {processes} cards" if processes > 1 else "")
    line = (
        f"{free}: checkpoint_layers {plan.checkpoint_layers} of {shape.layers}, token_budget {plan.token_budget} (some "
        f"{gibibytes(plan.footprint.total)} GiB, computed), {layers}{remark}; {_OTHERWISE}"
    )
    return Automatic(settings, line, plan, examples)


def _layers(
    args: MDPOConfig, shape: ModelShape | None, fault: str | None, recorded: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """The setting that says whether layers are compiled, and what they are, in words."""
    kind = layers_by(args, shape)
    if kind == "eager" and shape is not None and shape.eager is not None:
        return {}, f"layers eager ({shape.eager})"
    if "compile_layers" in args.given or kind != "compiled":
        why = " (they are sharded)" if is_sharded(args) and kind == "eager" else ""
        return {}, f"layers {kind}{why}"
    if fault is not None:
        return {"compile_layers": False}, f"layers eager (torch.compile fails here: {fault})"
    if recorded.get("layers", "compiled") != "compiled":
        return {"compile_layers": False}, "layers eager as in the checkpoint's run"
    return {"compile_layers": True}, "layers compiled"


def _shape(run: RunConfig, args: MDPOConfig, lora_pattern: str) -> ModelShape | str:
    """The model's shape, or why nothing is planned for it."""
    if is_sharded(args):
        return "FSDP and DeepSpeed shard what it counts"
    reason = unplanned(run, args)
    if reason is not None:
        return reason
    try:
        shape = shape_of(run, args, lora_pattern)
        layer_bytes(shape, precision_of(run, args, shape, cuda=True))
    except Unplanned as error:
        return str(error)
    return shape


def _checkpoint_everything(args: MDPOConfig) -> tuple[dict[str, Any], str]:
    if args.has_checkpointing:
        return {}, "checkpointing as written"
    name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    return {name: True}, "every layer checkpointed"


def _plan(
    args: MDPOConfig,
    shape: ModelShape,
    examples: Examples,
    constraints: Constraints,
    memory: Memory,
    recorded: Mapping[str, Any] | None,
) -> tuple[Plan, str]:
    """The plan, and what is to be said of it."""
    if recorded:
        plan = choose(shape, examples, _as_recorded(args, constraints, shape, recorded), memory.bytes)
        if plan is not None:
            return plan, ", as in the checkpoint's run"
    written = "token_budget" in args.given and args.token_budget >= examples.longest
    if written:
        plan = choose(shape, examples, replace(constraints, fixed_budget=True), memory.bytes)
        if plan is not None:
            return plan, ""
    plan = choose(shape, examples, constraints, memory.bytes)
    if plan is not None:
        return plan, f", because token_budget {args.token_budget} would not fit" if written else ""
    return smallest(shape, examples, constraints), (
        ", the smallest plan for this model, and still too large for the card by the arithmetic (--memory auto "
        "plans with weights in 4 bits and smaller optimizers)"
    )


def _as_recorded(
    args: MDPOConfig, constraints: Constraints, shape: ModelShape, recorded: Mapping[str, Any]
) -> Constraints:
    """What the user has left open, as the run that is gone on with had it."""
    if "token_budget" not in args.given:
        constraints = replace(constraints, token_budget=recorded["token_budget"])
    if constraints.checkpointed is None:
        count = recorded["checkpoint_layers"]
        constraints = replace(
            constraints, checkpointed=shape.layers * recorded["gradient_checkpointing"] if count is None else count
        )
    return replace(constraints, fixed_budget=True)


def _of_plan(args: MDPOConfig, plan: Plan) -> dict[str, Any]:
    """The settings of a plan that the user has not written."""
    settings: dict[str, Any] = {} if args.has_checkpointing else {"checkpoint_layers": plan.checkpoint_layers}
    if "token_budget" not in args.given or plan.token_budget < args.token_budget:
        settings["token_budget"] = plan.token_budget
    return settings
