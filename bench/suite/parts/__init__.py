"""The parts of the suite. A part is a module here with

    def groups(device: torch.device, tiny: bool = False) -> list[Group]

that lists what it measures, the most telling first, without allocating anything (tiny: on a CPU, at sizes that only
show that the part runs), and a line in `PARTS`, which is all there is to say of it elsewhere.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only asks for the parts' names has no need of it, and it takes seconds
    import torch

    from bench.suite.group import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """name: its module's. cpu_minutes: its time box on a CPU, where all parts together take ten minutes of two quiet
    cores; a part may outlast its box by one measurement."""

    name: str
    cpu_minutes: float

    def groups(self, device: "torch.device", tiny: bool = False) -> list["Group"]:
        """The module's; imported here, so that one part's requirements are not another's."""
        return import_module(f"{__name__}.{self.name}").groups(device, tiny)


PARTS = {
    part.name: part
    for part in (
        Part(name="kernels", cpu_minutes=2.0),
        Part(name="attention", cpu_minutes=0.75),
        Part(name="step", cpu_minutes=5.0),
        Part(name="memory", cpu_minutes=1.25),
        Part(name="scaling", cpu_minutes=1.0),
    )
}
