"""A plan as text."""

from collections.abc import Sequence

from .choose import Plan
from .lengths import Examples
from .size import gibibytes


def table(plans: Sequence[tuple[Plan, bool]], chosen: Plan | None, examples: Examples, memory_bytes: int) -> str:
    """Plans beside each other, as text.

    Args:
        plans: a column each, with whether it fits.
        chosen: the one that is taken; None where none fits.
        examples: that they were made for.
        memory_bytes: likewise.
    """
    columns = [plan for plan, _ in plans]
    kind = "padded" if examples.separate else "packed"
    names = list(dict.fromkeys(name for plan in columns for name in plan.footprint.parts))
    rows = [(name, [gibibytes(plan.footprint.parts[name]) for plan in columns]) for name in names]
    rows = [(name, cells) for name, cells in rows if any(cell != "0.00" for cell in cells)]
    rows += [
        ("= allocated at the peak", [gibibytes(plan.footprint.allocated) for plan in columns]),
        ("allocator slack", [gibibytes(plan.footprint.slack) for plan in columns]),
        ("driver and context", [gibibytes(plan.footprint.driver) for plan in columns]),
        ("= GiB in all", [gibibytes(plan.footprint.total) for plan in columns]),
        ("the peak is at", [plan.footprint.moment for plan in columns]),
        ("optim", [plan.optimizer for plan in columns]),
        ("checkpoint_layers", [str(plan.checkpoint_layers) for plan in columns]),
        ("token_budget", [str(plan.token_budget) for plan in columns]),
        (f"{kind} tokens a step", [f"{plan.tokens_per_step:.0f}" for plan in columns]),
        ("micro-batches a step", [f"{plan.micro_batches_per_step:.1f}" for plan in columns]),
        ("operations, all layers checkpointed = 1", [f"{plan.work / plan.work_checkpointed:.2f}" for plan in columns]),
    ]
    heads = [("4-bit" if plan.quantized else "bf16") + ("" if fits else " (too large)") for plan, fits in plans]
    rows.insert(0, (f"GiB, for {gibibytes(memory_bytes)}", heads))
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cells[index]) for _, cells in rows) for index in range(len(columns))]
    lines = [
        f"{name:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, cells in rows
    ]
    lines.append(f"{len(examples.packed)} examples, the longest of {examples.longest} {kind} tokens")
    lines.append("computed, not measured on this machine")
    if chosen is not None:
        lines.append("plan: " + " ".join(f"--{key} {str(value).lower()}" for key, value in chosen.settings.items()))
    return "\n".join(lines)
