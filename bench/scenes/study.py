"""The paper's rows in the world of scenes, over seeds: ``python -m bench.scenes.study [--seeds N …] [--out FOLDER]``

Runs what is not there yet and writes ``results.json`` and ``SCENES.md`` to FOLDER, of all seeds that are complete
there. A seed has its own pairs, order, rejected images and test scenes. A study that is stopped goes on with the same
command; two commands with different seeds may share a folder.
"""

import json
import os
import platform
import shutil
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

from bench.digits.demo import answers, train
from bench.digits.world import read_jsonl
from bench.scenes.demo import BASE, CONFIG, Size, held_logps
from bench.scenes.metrics import cut_to_cover, score
from bench.scenes.page import write_page
from bench.scenes.pairs import LONGEST_CAPTION, Pairs, make_pairs, write_questions
from bench.scenes.world import scene_of
from mdpo.outputs import write_text

SEEDS = tuple(range(1, 9))
"""None of them had a part in choosing a setting; seed 0 had."""
Rows = Mapping[str, tuple[str, ...] | None]
ROWS: Rows = {
    "tuned": None,
    "DPO": ("--objective", "dpo"),
    "DPO, no image": ("--objective", "dpo", "--drop_images", "true"),
    "mDPO": (),
    "mDPO - conditional": ("--conditional", "false"),
    "mDPO - anchor": ("--anchors", "[]"),
    "mDPO, random image": ("--negative", "random_image"),
}
"""What each row changes in configs/scenes.yaml; None: the tuned model as it is."""
RESULTS = "results.json"


class Seed:
    """The data of a seed, and its rows as they are done, in a folder of its own."""

    def __init__(self, seed: int, out: Path, size: Size, rows: Rows = ROWS) -> None:
        self.seed, self.size, self.rows = seed, size, rows
        self._folder = out / "seeds" / str(seed)

    def complete(self) -> dict[str, Any]:
        """Runs the rows that are not there yet; returns every row's record."""
        if any(self.read(row) is None for row in self.rows):
            pairs, test = self._data()
            for row in self.rows:
                if self.read(row) is None:
                    self._run(row, pairs, test)
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        return self.records()

    def records(self) -> dict[str, Any]:
        """Every row's record, None where it is not there yet."""
        return {row: self.read(row) for row in self.rows}

    def read(self, row: str) -> dict[str, Any] | None:
        """The row's record, unless it was run with other settings."""
        path = self._path(row)
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return record if record and record["settings"] == self._settings(row) else None

    def _path(self, row: str) -> Path:
        return self._folder / f"{row.replace(', ', '-').replace(' ', '')}.json"

    def _settings(self, row: str) -> dict[str, Any]:
        size = {name: value for name, value in asdict(self.size).items() if name != "overrides"}
        overrides = None if (own := self.rows[row]) is None else [*own, *self.size.overrides]
        return {"overrides": overrides, "config": CONFIG.read_text(encoding="utf-8")} | size

    def _data(self) -> tuple[Pairs, Path]:
        folder, size = self._folder / "data", self.size
        done = folder / "test.jsonl"  # written last
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            make_pairs(folder, base=BASE, seed=self.seed, train=size.pairs, held=size.held)
            write_questions(folder, "test", seed=self.seed, count=size.scenes)
        return Pairs.below(folder), done

    def _run(self, row: str, pairs: Pairs, test: Path) -> None:
        started = perf_counter()
        overrides, model = self.rows[row], self._folder / "model"
        if overrides is not None:
            own = ["--train_data", str(pairs.train), "--seed", str(self.seed), "--disable_tqdm", "true"]
            train(model, [*own, *overrides, *self.size.overrides], CONFIG)
        trained = BASE.tuned if overrides is None else model
        captions = answers(trained, test, LONGEST_CAPTION)
        scenes = [scene_of(line["id"]) for line in read_jsonl(test)]
        record: dict[str, Any] = {"settings": self._settings(row), "scores": asdict(score(captions, scenes))}
        logps = held_logps(trained, pairs.held)
        if overrides is None:
            record |= {"captions": captions, "logps": logps.tolist()}
        elif (tuned := self.read("tuned")) is not None:
            ratios = (logps - torch.tensor(tuned["logps"])).mean(1).tolist()
            record["scores"] |= dict(zip(("log_ratio", "log_ratio_rejected", "log_ratio_crop"), ratios, strict=True))
            cut = cut_to_cover(tuned["captions"], scenes, record["scores"]["cover"])
            record["scores"] |= dict(zip(("cut_chair_s", "cut_chair_i"), cut, strict=True))
        record["seconds"] = perf_counter() - started
        write_text(self._path(row), json.dumps(record) + "\n")
        shutil.rmtree(model, ignore_errors=True)


def study(seeds: tuple[int, ...], out: Path, size: Size) -> Path:
    """Completes the seeds, and writes results and page of all that are complete. Returns the page."""
    for seed in seeds:
        print(f"seed {seed}", flush=True)
        Seed(seed, out, size).complete()
    found = sorted(int(path.name) for path in (out / "seeds").iterdir() if path.name.isdigit())
    records = {seed: Seed(seed, out, size).records() for seed in found}
    whole = {seed: rows for seed, rows in records.items() if None not in rows.values()}
    write_text(out / RESULTS, json.dumps(collected(whole, size), indent=1) + "\n")
    return write_page(out / RESULTS)


def collected(records: Mapping[int, Mapping[str, Any]], size: Size) -> dict[str, Any]:
    """What is committed: every score by seed and row, and what was run."""
    seconds = sum(record["seconds"] for rows in records.values() for record in rows.values())
    return {
        "pairs": size.pairs,
        "scenes": size.scenes,
        "held": size.held,
        "rows": {row: " ".join(overrides or ()) for row, overrides in ROWS.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "cores": os.cpu_count(),
        "minutes": round(seconds / 60, 1),
        "seeds": {seed: {row: rows[row]["scores"] for row in ROWS} for seed, rows in records.items()},
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("build/scenes-study"))
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(study(tuple(options.seeds), options.out, Size()))


if __name__ == "__main__":
    main()
