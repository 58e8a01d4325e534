"""The demo: plain DPO and mDPO on the same pairs of a model's own captions, and what became of them.

``python -m bench.scenes.demo --seed 0 --out build/demo`` makes the pairs by ``mdpo sample``, ``rank`` and ``pairs``,
trains by ``mdpo train configs/scenes.yaml``, and counts what the captions of unseen pictures make up.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image

from bench.digits import demo
from bench.digits.charts import Exhibit
from bench.digits.results import Result
from bench.scenes.base import BASES
from bench.scenes.metrics import score
from bench.scenes.page import over_seeds
from bench.scenes.pairs import LONGEST_CAPTION, make_pairs, write_questions
from bench.scenes.results import SCENES
from bench.scenes.world import mentioned, scene_of
from mdpo.data import DataOptions

CONFIG = Path(__file__).parents[2] / "configs" / "scenes.yaml"
BASE = BASES["sharp"]
"""What configs/scenes.yaml starts from."""
OVERRIDES = {"DPO": ["--objective", "dpo"], "mDPO": []}
"""What each model's training changes in the config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size(demo.Size):
    """held: pairs whose log-probabilities are compared, of scenes that are not trained on."""

    pairs: int = 640
    scenes: int = 400
    held: int = 100


def run(seed: int, folder: Path, size: Size) -> list[Result]:
    """Make the pairs, train both models, evaluate all three and write the report. Returns the tuned model first."""
    started = perf_counter()
    print(f"seed {seed}: captions of {size.pairs + size.held} scenes, from which pairs are made")
    pairs = make_pairs(folder, base=BASE, seed=seed, train=size.pairs, held=size.held)
    test = write_questions(folder, "test", seed=seed, count=size.scenes)

    tuned_logps = held_logps(BASE.tuned, pairs.held)
    results = [evaluate("tuned", BASE.tuned, test, pairs.held, tuned_logps)]
    for name, overrides in OVERRIDES.items():
        model = folder / name.lower()
        arguments = ["--train_data", str(pairs.train), "--seed", str(seed), *overrides, *size.overrides]
        demo.train(model, arguments, CONFIG)
        results.append(evaluate(name, model, test, pairs.held, tuned_logps))

    note = f"{size.note(seed, perf_counter() - started)} {over_seeds([result.name for result in results])}"
    demo.report(folder, results, exhibits(test, results), config=CONFIG, note=note, world=SCENES)
    return results


def evaluate(name: str, model: Path, test: Path, held: Path, tuned_logps: torch.Tensor) -> Result:
    """Caption the test scenes greedily and count; the training's log is read where there was one."""
    captions = demo.answers(model, test, LONGEST_CAPTION)
    history = demo.training_log(model)
    return Result(
        name=name,
        scores=score(captions, [scene_of(row["id"]) for row in demo.read_jsonl(test)]),
        captions=captions,
        log_ratio=(held_logps(model, held) - tuned_logps)[0].mean().item() if history else None,
        history=history,
    )


def held_logps(model: Path, held: Path) -> torch.Tensor:
    """Log-probability of the chosen and the rejected caption, and of the chosen one on a crop, (3, pairs)."""
    return demo.branch_logps(model, held, DataOptions(seed=0))


def exhibits(test: Path, results: Sequence[Result]) -> list[Exhibit]:
    """Test pictures in proportion: each way in which the models err on a picture or not is as frequent as in the whole.

    Of those in which they err alike, the first in which they do not all name the same things.
    """
    rows = demo.read_jsonl(test)
    shown = [scene_of(row["id"]).names for row in rows]
    named = [[frozenset(mentioned(caption)) for caption in result.captions] for result in results]
    ways = [
        tuple(bool(names - set(there)) for names in sets)
        for sets, there in zip(zip(*named, strict=True), shown, strict=True)
    ]
    alike = [len(set(sets)) == 1 for sets in zip(*named, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: alike[index])
    found = [
        index
        for way, count in apportioned(Counter(ways), min(demo.EXHIBITS, len(rows))).items()
        for index in [index for index in order if ways[index] == way][:count]
    ]
    return [
        Exhibit(index=index, image=Image.open(test.parent / rows[index]["image"]), shown=tuple(shown[index]))
        for index in sorted(found)
    ]


def apportioned(counts: Mapping[Hashable, int], places: int) -> dict[Hashable, int]:
    """Places for each kind in proportion to its count, by the largest remainder."""
    total = sum(counts.values())
    exact = {kind: places * count / total for kind, count in counts.items()}
    whole = {kind: int(share) for kind, share in exact.items()}
    largest = sorted(exact, key=lambda kind: whole[kind] - exact[kind])
    for kind in largest[: places - sum(whole.values())]:
        whole[kind] += 1
    return whole


if __name__ == "__main__":
    demo.main(run, Size, __doc__)
