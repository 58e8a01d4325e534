"""The part `memory`: what trains under a cap on memory, and how fast.

The largest micro-batch of each trainer under allocator caps of 8, 24 and 80 GiB, on rows with the lengths of real
preference data, and the step at that size; beside it ours by the settings that `mdpo plan` chooses for the cap. On a
CPU a small model under a small cap.
"""

from collections.abc import Callable

import torch

from bench.inputs.models import BUNNY_3B, CPU_60M, LLAVA_7B, TINY, Shape
from bench.suite.group import Bound, Group, Prepared
from bench.suite.implementations.budget import Budget, BudgetProblem, budget

GIB = 2**30


def groups(device: torch.device, tiny: bool = False) -> list[Group]:
    """Two real shapes by three caps on a GPU, each in a process of its own; one small one on a CPU."""
    if device.type != "cuda":
        shape = TINY if tiny else CPU_60M
        return [budget_group(shape, device, cap=GIB // 2, image_tokens=64, most=4, step_pairs=4, shrink=8)]
    return [
        budget_group(shape, device, cap=cap * GIB, image_tokens=image_tokens, most=128)
        for cap in (24, 80, 8)
        for shape, image_tokens in ((LLAVA_7B, 576), (BUNNY_3B, 729))
    ]


def budget_group(
    shape: Shape, device: torch.device, *, cap: int, image_tokens: int, most: int, step_pairs: int = 16, shrink: int = 1
) -> Group:
    """One cap, in bytes."""

    problem = BudgetProblem(
        shape=shape, image_tokens=image_tokens, cap=cap, device=device, most=most, step_pairs=step_pairs, shrink=shrink
    )

    def prepare() -> Prepared:
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), device)

        def bind(function: Callable[[BudgetProblem], Budget]) -> Bound:
            found = function(problem)
            step = found.step
            return Bound(
                run=lambda: (step.run(),),
                errors=lambda outputs: {},
                amounts={"examples": step.examples, "tokens": step.tokens},
                facts={"pairs a micro-batch": found.pairs},
                remark=found.remark,
            )

        return Prepared(floor=None, bind=bind)

    return Group(
        part="memory",
        op="budget",
        shape={"model": shape.name, "image": image_tokens, "cap": f"{cap / GIB:g}GiB"},
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        implementations=budget(problem),
        prepare=prepare,
        own_process=device.type == "cuda",  # a cap holds for a process
    )
