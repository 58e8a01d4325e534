"""What an H200 has to reach, as ratios of two rows of one group; `bench.render` prints each with its verdict."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bench.record import Record

DEVICE = "H200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """measure: "speed", the other's time over ours, at least `bound`; "memory", our peak over the other's, at most it.
    shape: what the group's shape has to say."""

    name: str
    op: str
    ours: str
    other: str
    bound: float
    measure: Literal["speed", "memory"] = "speed"
    shape: tuple[tuple[str, str], ...] = ()

    def ratio(self, ours: Record, other: Record) -> float | None:
        """None where one of them was not measured."""
        if self.measure == "speed":
            return None if ours.median_ms is None or other.median_ms is None else other.median_ms / ours.median_ms
        return None if ours.peak_bytes is None or not other.peak_bytes else ours.peak_bytes / other.peak_bytes

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.measure == "speed" else ratio <= self.bound


_CACHED, _EACH_STEP = "ours, reference cached", "ours, reference each step"
_TRL, _AUTHORS = "TRL DPOTrainer", "authors' way"

TARGETS = (
    Target(name="reference cached, against TRL's two branches at equal settings", op="train_step", ours=_CACHED,
           other=_TRL, bound=1.25),
    Target(name="reference each step, against TRL's two branches at equal settings", op="train_step", ours=_EACH_STEP,
           other=_TRL, bound=0.95),
    Target(name="reference each step, our checkpointing on, against the authors' shipped settings", op="train_step",
           ours=_EACH_STEP, other=_AUTHORS, bound=1.8, shape=(("checkpointing", "on"),)),
    Target(name="reference each step, without checkpointing, against the authors' shipped settings", op="train_step",
           ours=_EACH_STEP, other=_AUTHORS, bound=2.5, shape=(("checkpointing", "off"),)),
    Target(name="peak memory above the weights, reference cached, over TRL's at equal settings", op="train_step",
           ours=_CACHED, other=_TRL, bound=1.05, measure="memory"),
    Target(name="peak memory above the weights, reference each step, over TRL's at equal settings", op="train_step",
           ours=_EACH_STEP, other=_TRL, bound=1.05, measure="memory"),
)  # fmt: skip


class Line(NamedTuple):
    """One target at one shape. ratio is None where a row of it was not measured."""

    target: Target
    case: str
    device: str
    ratio: float | None


def lines(records: Iterable[Record]) -> Iterator[Line]:
    """The targets at every shape that the records have; both rows are of one run: equal device, versions and commit."""
    by_place = {(r.op, r.case, r.environment.get("device"), r.implementation): r for r in records}
    for target in TARGETS:
        for (op, case, device, name), ours in by_place.items():
            if op != target.op or name != target.ours or any(ours.shape.get(k) != v for k, v in target.shape):
                continue
            other = by_place.get((op, case, device, target.other))
            one_run = other is not None and other.environment == ours.environment
            yield Line(target, case, str(device), target.ratio(ours, other) if other is not None and one_run else None)
