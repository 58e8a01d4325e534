"""The ratios that this project states, each of two rows of one group, and what an H200 has to reach.

`bench.render` prints them all: what no record holds is "not measured yet".
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bench.record import Record

DEVICE = "H200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """measure: "speed", the other's time over ours; "memory", our peak above the weights over the other's; or one of the
    records' rates by name, ours over the other's. shape: what the group's shape has to say. target: on an H200, at most
    for memory, at least for anything else."""

    name: str
    op: str
    ours: str
    other: str
    shape: tuple[tuple[str, str | int], ...]
    measure: str = "speed"
    target: float | None = None

    def of(self, records: Iterable[Record]) -> dict[str, float]:
        """The ratio by model, among the records of one device; both rows have to be of one run: equal device, versions
        and commit."""
        found = [r for r in records if r.op == self.op and all(r.shape.get(k) == v for k, v in self.shape)]
        others = {r.case: r for r in found if r.implementation == self.other}
        ratios = {}
        for ours in (r for r in found if r.implementation == self.ours):
            other = others.get(ours.case)
            if other is not None and other.environment == ours.environment:
                ratio = self._ratio(ours, other)
                if ratio is not None:
                    ratios[str(ours.shape["model"])] = ratio
        return ratios

    def _ratio(self, ours: Record, other: Record) -> float | None:
        if self.measure == "speed":
            return other.median_ms / ours.median_ms if ours.median_ms and other.median_ms else None
        if self.measure != "memory":
            one, two = (record.rates.get(self.measure) for record in (ours, other))
            return one / two if one and two else None
        return ours.peak_bytes / other.peak_bytes if ours.peak_bytes and other.peak_bytes else None

    def met(self, ratio: float) -> bool | None:
        """None without a target."""
        if self.target is None:
            return None
        return ratio <= self.target if self.measure == "memory" else ratio >= self.target

    @property
    def target_text(self) -> str:
        return "" if self.target is None else f"{'≤' if self.measure == 'memory' else '≥'} {self.target:.2f}"


_CACHED, _EACH_STEP = "ours, reference cached", "ours, reference each step"
_SETTINGS = (
    ("checkpointing on", (("checkpointing", "on"), ("layers", "transformers"))),
    ("checkpointing off", (("checkpointing", "off"), ("layers", "transformers"))),
    ("checkpointing on, both with Liger's layers", (("checkpointing", "on"), ("layers", "liger"))),
    ("checkpointing off, both with Liger's layers", (("checkpointing", "off"), ("layers", "liger"))),
)
_AUTHORS = (("checkpointing on", 1.8), ("checkpointing off", 2.5))
_MICRO = (("P", 650), ("R", 100))

RATIOS = (
    *(
        Ratio(name=f"{row}: TRL with two branches, {setting}", op="train_step", ours=row,
              other="TRL DPOTrainer", shape=shape, target=target)
        for row, target in ((_CACHED, 1.25), (_EACH_STEP, 0.95)) for setting, shape in _SETTINGS
    ),
    *(
        Ratio(name=f"{row}, {setting}: the authors' shipped settings", op="train_step", ours=row,
              other="authors' way", shape=dict(_SETTINGS)[setting],
              target=target if row == _CACHED else None)
        for row in (_CACHED, _EACH_STEP) for setting, target in _AUTHORS
    ),
    *(
        Ratio(name=f"peak memory above the weights, {_EACH_STEP}: TRL, {setting}", op="train_step",
              ours=_EACH_STEP, other="TRL DPOTrainer", shape=shape, measure="memory", target=1.05)
        for setting, shape in _SETTINGS
    ),
    *(
        Ratio(name=f"pairs a second under {cap}, as mdpo plan sets it: TRL with two branches, {setting}", op="budget",
              ours="ours, as planned", other=f"TRL, {setting}", shape=(("cap", cap),), measure="examples/s", target=1.0)
        for cap in ("24GiB", "80GiB") for setting in ("checkpointing on", "checkpointing off")
    ),
    *(
        Ratio(name=f"pairs of the largest micro-batch under {cap}, checkpointing on: {other}", op="budget",
              ours="ours, checkpointing on", other=name, shape=(("cap", cap),), measure="pairs a micro-batch")
        for cap in ("24GiB", "80GiB")
        for name, other in (("TRL, checkpointing on", "TRL with two branches"), ("authors' way", "the authors' way"))
    ),
    Ratio(name="forward and backward of a packed pair, P=650, R=100: three unpadded passes", op="step", ours="ours",
          other="three unpadded passes", shape=_MICRO),
    Ratio(name="its peak memory above the weights: three unpadded passes", op="step", ours="ours", other="three unpadded passes",
          shape=_MICRO, measure="memory"),
    Ratio(name="forward and backward of a packed pair, P=650, R=100: plain DPO's two padded branches", op="step", ours="ours",
          other="two-branch DPO", shape=_MICRO),
)  # fmt: skip
