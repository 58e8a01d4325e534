"""The parts of the suite. Each is a module with

    def groups(device: torch.device, tiny: bool = False) -> list[Group]

that lists what it measures, the most telling first, without allocating anything; tiny: on a CPU, at sizes that only
show that the part runs. A new part is a module here and a
line in `PARTS`.
"""

from collections.abc import Callable
from importlib import import_module

from bench.suite.group import Group

PARTS = {
    "kernels": "bench.suite.parts.kernels",
    "attention": "bench.suite.parts.attention",
    "step": "bench.suite.parts.step",
    "memory": "bench.suite.parts.memory",
    "scaling": "bench.suite.parts.scaling",
}


def load_part(name: str) -> Callable[..., list[Group]]:
    """The part's `groups`; imported here, so that one part's requirements are not another's."""
    return import_module(PARTS[name]).groups
