"""The parts of the suite. Each is a module with

    def groups(device: torch.device) -> list[Group]

that lists what it measures, the most telling first, without allocating anything. A new part is a module here and a
line in `PARTS`.
"""

from collections.abc import Callable
from importlib import import_module

import torch

from bench.group import Group

PARTS = {
    "kernels": "bench.parts.kernels",
    "attention": "bench.parts.attention",
    "step": "bench.parts.step",
    "memory": "bench.parts.memory",
    "scaling": "bench.parts.scaling",
}


def load_part(name: str) -> Callable[[torch.device], list[Group]]:
    """The part's `groups`; imported here, so that one part's requirements are not another's."""
    return import_module(PARTS[name]).groups
