"""What a part is made of: one operation at one shape, its floor, and the implementations compared at it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.suite.record import Role, case_of

Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """One way to do an operation. Nothing is imported before `load`, so that a peer that is missing costs only its
    own rows."""

    name: str
    role: Role
    load: Callable[[], Callable[..., Any]]
    """Imports and returns the function; raises ImportError with the reason if it cannot."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """The device types it runs on."""
    note: str = ""
    """What the reader of its row has to know: how it differs from ours."""
    comparable: bool = True
    """Whether it computes the same thing, so that its errors mean something."""
    compiles: bool = False
    """Whether its first call at a new shape compiles for seconds: then it is measured at the typical size only."""
    countable: bool = True
    """Whether its allocations go through PyTorch's dispatcher, so that they can be counted on a CPU."""
    patches: bool = False
    """Whether running it changes other packages for the rest of the process: it is the last of its group, and the group
    has a process of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """An implementation with its inputs: ready to be timed."""

    run: Callable[[], Outputs]
    """Once through, forward and backward: everything in here is timed and counted."""
    errors: Callable[[Outputs], dict[str, float]]
    """Errors of what `run` returned against float64, by name; empty where it computes something else."""
    amounts: dict[str, float] = field(default_factory=dict)
    """What one run gets through, by name ("examples", …): a record states each a second. "model flops" are stated as
    the share of the device's peak instead, where that is known."""
    facts: dict[str, float] = field(default_factory=dict)
    """Numbers beside the rates that stand in the record as they are, such as the most pairs that fit."""
    remark: str = ""
    """What the reader has to know and only this binding knows, such as how many micro-batches a planner made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """What bounds the time from below, measured in the same run: `factor` times the time of `run`."""

    name: str
    run: Callable[[], object]
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A group's inputs on the device."""

    floor: Floor | None
    bind: Callable[[Callable[..., Any]], Bound]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One operation at one shape."""

    part: str
    op: str
    shape: dict[str, int | str]
    """In the order in which a table shows it."""
    dtype: torch.dtype
    implementations: tuple[Implementation, ...]
    prepare: Callable[[], Prepared]
    flops: float = 0.0
    """Floating-point operations that the result needs (recomputation not counted), for the achieved rate."""
    bytes: float = 0.0
    """Bytes that have to be read and written at least, for the achieved rate."""
    extra: dict[str, float] = field(default_factory=dict)
    """More that a table needs about the group, such as a promised ratio."""

    own_process: bool = False
    """Whether an implementation changes modules for the rest of the process, as Liger does transformers'."""

    @property
    def case(self) -> str:
        """The shape as one word: head=llava-1.5-7b,N=4096."""
        return case_of(self.shape)
