"""All runs of a study, and what is read off them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.study.items import CANDIDATES, SEARCH_SEEDS, Item
from bench.study.runs import Setting
from bench.study.size import Size
from bench.study.statistics import Interval, difference, interval

NAME = "results.json"


@dataclass(frozen=True)
class Results:
    """runs: as ``bench.study.runs`` keeps them. A setting asked for is of the study's size."""

    size: Size
    versions: Mapping[str, str]
    cores: int
    runs: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Results":
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(size=Size(**fields.pop("size")), **fields)

    def to_json(self) -> str:
        """One run a line: a difference between two studies can be read."""
        head = {"size": asdict(self.size), "versions": self.versions, "cores": self.cores}
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        return json.dumps(head)[:-1] + f', "runs": [\n{lines}\n]}}\n'

    @cached_property
    def _by_key(self) -> dict[str, Mapping[str, Any]]:
        return {_key(run["setting"], run["seed"]): run for run in self.runs}

    def find(self, setting: Setting, seed: int) -> Mapping[str, Any] | None:
        return self._by_key.get(_key(asdict(setting), seed))

    def has(self, item: Item) -> bool:
        """Whether every run of the item is there."""
        return all(self.find(row.setting, seed) for row in item.rows for seed in item.seeds)

    def values(self, setting: Setting, score: str, seeds: Sequence[int]) -> list[float]:
        """The score by seed; empty where the setting has none, as the tuned model has no log-ratio."""
        runs = [self._by_key[_key(asdict(setting), seed)] for seed in seeds]
        return [run["scores"][score] for run in runs if score in run["scores"]]

    def interval(self, setting: Setting, score: str, seeds: Sequence[int]) -> Interval | None:
        values = self.values(setting, score, seeds)
        return interval(values) if values else None

    def difference(self, setting: Setting, other: Setting, score: str, seeds: Sequence[int]) -> Interval:
        return difference(self.values(setting, score, seeds), self.values(other, score, seeds))


def _key(setting: Mapping[str, Any], seed: int) -> str:
    return json.dumps([setting, seed], sort_keys=True)


def tuned(setting: Setting) -> Setting:
    """The tuned model that the setting's runs start from."""
    return Setting(overrides=None, pairs=0, world=setting.world)


def best_candidate(results: Results) -> str:
    """The candidate whose mDPO improves most on the tuned model's CHAIR_s, by the search's seeds alone."""
    seeds = results.size.of(SEARCH_SEEDS)

    def gain(name: str) -> float:
        setting = results.size.setting(CANDIDATES[name])
        return results.difference(setting, tuned(setting), "chair_s", seeds).mean

    return min(CANDIDATES, key=gain)


def order(item: Item, results: Results) -> list[tuple[str, str]]:
    """For each two rows that the paper's numbers order: "better > worse" and how it stands here."""
    verdicts = []
    rows = [row for row in item.rows if row.paper is not None]
    for index, one in enumerate(rows):
        for other in rows[index + 1 :]:
            if one.paper == other.paper:
                continue
            better, worse = sorted((one, other), key=lambda row: row.paper or 0.0, reverse=item.higher_is_better)
            gap = results.difference(better.setting, worse.setting, item.main_score, item.seeds)  # less is better here
            beyond = "beyond the 95% interval" if gap.excludes_zero else "in the mean only"
            verdicts.append((f"{better.label} > {worse.label}", f"{'agrees' if gap.mean < 0 else 'reversed'} {beyond}"))
    return verdicts
