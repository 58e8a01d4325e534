"""The ratios that this project states, each of two rows of one run, and what an H100 or an H200 has to reach.

`bench.render` prints them all: what no record holds is "not measured yet".
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bench.suite.cards import card_of
from bench.suite.record import Record, case_of

# The cards that the targets are set for; each has a column also before anything was measured on it.
TARGET_CARDS = ("H100", "H200")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """measure: "speed", the other's time over ours; "in turns", the same where ours was timed in turns with the other;
    "memory", our peak above the weights over the other's; or one of the records' rates by name, ours over the other's.
    shape: what the group's shape has to say; other_shape: what the other's differs in. target: at most for memory, at
    least for anything else.
    """

    name: str
    op: str
    ours: str
    other: str
    shape: tuple[tuple[str, str | int], ...]
    other_shape: tuple[tuple[str, str | int], ...] = ()
    measure: str = "speed"
    target: float | None = None

    def of(self, records: Iterable[Record]) -> dict[str, float]:
        """The ratio by model, among the records of one device; both rows have to be of one run: equal device, versions
        and commit."""
        found = [r for r in records if r.op == self.op]
        theirs = dict(self.shape) | dict(self.other_shape)
        others = {r.case: r for r in found if r.implementation == self.other and _has(r, theirs)}
        ratios = {}
        for ours in (r for r in found if r.implementation == self.ours and _has(r, dict(self.shape))):
            other = others.get(case_of(ours.shape | dict(self.other_shape)))
            if other is not None and other.environment == ours.environment:
                ratio = self._ratio(ours, other)
                if ratio is not None:
                    ratios[str(ours.shape["model"])] = ratio
        return ratios

    def _ratio(self, ours: Record, other: Record) -> float | None:
        if self.measure == "speed":
            return other.median_ms / ours.median_ms if ours.median_ms and other.median_ms else None
        if self.measure == "in turns":
            return 1 / ours.ratio_to_floor if ours.ratio_to_floor and ours.floor == self.other else None
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


def columns(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each GPU by its short name: the cards that have targets first, then whatever else was measured."""
    found: dict[str, list[Record]] = {card: [] for card in TARGET_CARDS}
    for record in records:
        if record.environment.get("device_type") == "cuda":
            found.setdefault(card_of(str(record.environment["device"])), []).append(record)
    return found


def _has(record: Record, shape: dict[str, str | int]) -> bool:
    return all(record.shape.get(name) == value for name, value in shape.items())


_CACHED, _EACH_STEP = "ours, reference cached", "ours, reference each step"
_PEFT_LORA = "ours, peft's LoRA layers"
_EPOCH = {
    _CACHED: "from the second epoch on (reference cached)",
    _EACH_STEP: "in the first epoch (reference each step)",
}
_ON, _OFF = ("checkpointing", "on"), ("checkpointing", "off")
_PLAIN, _COMPILED, _LIGER = ("layers", "transformers"), ("layers", "compiled"), ("layers", "liger")
_SETTINGS = (
    ("checkpointing on", (_ON, _PLAIN)),
    ("checkpointing off", (_OFF, _PLAIN)),
    ("checkpointing on, both compiled", (_ON, _COMPILED)),
    ("checkpointing off, both compiled", (_OFF, _COMPILED)),
    ("checkpointing on, both with Liger's layers", (_ON, _LIGER)),
    ("checkpointing off, both with Liger's layers", (_OFF, _LIGER)),
)
_AUTHORS = (("checkpointing on", 1.8), ("checkpointing off", 2.5))
_MICRO = (("P", 650), ("R", 100))

RATIOS = (
    *(
        Ratio(name=f"ours {_EPOCH[row]}: TRL with two branches, {setting}", op="train_step", ours=row,
              other="TRL DPOTrainer", shape=shape, target=target)
        for row, target in ((_CACHED, 1.4), (_EACH_STEP, 1.15)) for setting, shape in _SETTINGS
    ),
    Ratio(name=f"ours {_EPOCH[_CACHED]}, compiled, checkpointing off: ours not compiled, checkpointing on",
          op="train_step", ours=_CACHED, other=_CACHED, shape=(_OFF, _COMPILED), other_shape=(_ON, _PLAIN), target=2.0),
    *(
        Ratio(name=f"ours {_EPOCH[_CACHED]}, {setting}: ours with peft's LoRA layers", op="train_step", ours=_CACHED,
              other=_PEFT_LORA, shape=shape, target=target)
        for (setting, shape), target in zip(_SETTINGS[:4], (1.12, 1.12, None, None), strict=True)
    ),
    *(
        Ratio(name=f"ours {_EPOCH[row]}, {setting}: the authors' shipped settings", op="train_step", ours=row,
              other="authors' way", shape=dict(_SETTINGS)[setting],
              target=target if row == _CACHED else None)
        for row in (_CACHED, _EACH_STEP) for setting, target in _AUTHORS
    ),
    *(
        Ratio(name=f"peak memory above the weights, ours {_EPOCH[_EACH_STEP]}: TRL, {setting}", op="train_step",
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
    Ratio(name="its peak memory above the weights: three unpadded passes", op="step", ours="ours",
        other="three unpadded passes",
          shape=_MICRO, measure="memory"),
    Ratio(name="forward and backward of a packed pair, P=650, R=100: plain DPO's two padded branches", op="step",
        ours="ours",
          other="two-branch DPO", shape=_MICRO),
    *(
        Ratio(name=f"forward and backward of a packed {objective} pair, P=650, R=100: a pass for each branch",
            op="objective",
              ours="ours", other="separate passes", shape=(("objective", objective), *_MICRO), target=target)
        for objective, target in (("symmpo", 1.5), ("misp", 1.2))
    ),
    Ratio(name="forward and backward of a pair read separately (Gemma 3), P=160, R=24, in turns: "
          "three plain padded passes",
          op="separate", ours="ours, branches read separately", other="three plain padded passes",
          shape=(("P", 160), ("R", 24)), measure="in turns"),
)  # fmt: skip
