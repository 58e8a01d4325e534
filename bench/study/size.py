"""How much of everything a study takes: the whole of it, or a quick look."""

from dataclasses import dataclass, replace

from bench.study.items import Item
from bench.study.runs import Run, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """seeds: at most so many an item. shrink: what the numbers of pairs are divided by. tuning_steps: of the
    questions' model."""

    seeds: int = 10
    scenes: int = 1000
    shrink: int = 1
    tuning_steps: int = 2000

    @classmethod
    def quick(cls) -> "Size":
        return cls(seeds=3, scenes=300, shrink=5, tuning_steps=500)

    def setting(self, setting: Setting) -> Setting:
        return replace(setting, pairs=setting.pairs // self.shrink)

    def item(self, item: Item) -> Item:
        rows = tuple(row._replace(setting=self.setting(row.setting)) for row in item.rows)
        return replace(item, rows=rows, seeds=self.of(item.seeds))

    def of(self, seeds: range) -> range:
        """As many of these seeds as the study takes."""
        return seeds[: self.seeds]

    def run(self, setting: Setting, seed: int) -> Run:
        """Of a setting that is of this size already."""
        return Run(setting=setting, seed=seed, scenes=self.scenes, tuning_steps=self.tuning_steps)
