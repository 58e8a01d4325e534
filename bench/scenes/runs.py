"""Rows of the study as they are run: trained by ``mdpo train`` or ``mdpo loop``, scored, and kept on disk one by one.

A *trial* is a seed on a base: it has its own pairs, order, rejected images and test scenes, and a folder of its own. A
row's record holds the settings it was run with, so that what is there and was run with these is not run again, and a
study that was stopped goes on.
"""

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import transformers
import yaml

from bench.digits.demo import answers, command
from bench.digits.world import generator, read_jsonl
from bench.scenes import demo
from bench.scenes.base import BASES
from bench.scenes.demo import CONFIG, held_logps
from bench.scenes.metrics import cut_to_cover, score
from bench.scenes.pairs import LONGEST_CAPTION, Pairs, make_pairs, write_questions
from bench.scenes.questions import LONGEST_ANSWER, score_kinds, write_kinds
from bench.scenes.rows import Row, find
from bench.scenes.world import scene_of
from mdpo import cli
from mdpo.commands import check_words
from mdpo.config import load_config, parse_overrides
from mdpo.data import DataOptions, PreferenceDataset, read_rows
from mdpo.loop.config import read_loop
from mdpo.loop.run import run_loop
from mdpo.models import load_processor
from mdpo.objectives import objective_of
from mdpo.outputs import write_text
from mdpo.settings.yaml_text import plain

SAMPLES = 5
"""Captions a picture in a round of the loop, as many as the pairs of all other rows are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size(demo.Size):
    """asked: test scenes that questions by kind are asked of."""

    asked: int = 200

    @classmethod
    def quick(cls) -> "Size":
        return cls(pairs=160, scenes=100, held=20, asked=30)


class Sources(NamedTuple):
    """A trial's data, as JSONL beside the pictures.

    partners: the pairs to train on, each with a picture of the same theme and the caption chosen for that one.
    """

    pairs: Pairs
    partners: Path
    test: Path
    kinds: Path


class Trial:
    """A seed on a base."""

    def __init__(self, seed: int, base: str, out: Path, size: Size) -> None:
        self.seed, self.base, self.size = seed, BASES[base], size
        self.folder = out / "trials" / f"{seed}-{base}"

    def read(self, row: Row) -> dict[str, Any] | None:
        """The row's record, unless it was run with other settings."""
        path = self.path(row)
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return record if record and record["settings"] == self._settings(row) else None

    def run(self, row: Row) -> None:
        """Trains and scores the row, and keeps its record; what is printed goes to a log beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.path(row).with_suffix(".log")
        started = perf_counter()
        with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            record = {"settings": self._settings(row)} | self._result(row, self._sources())
        record["seconds"] = round(perf_counter() - started, 1)
        write_text(self.path(row), json.dumps(record) + "\n")

    def clear(self) -> None:
        """Removes what can be made again."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def path(self, row: Row) -> Path:
        """Where the row's record is kept."""
        return self.folder / f"{row.file}.json"

    def _settings(self, row: Row) -> dict[str, Any]:
        own = row._asdict()
        del own["name"], own["against"]
        own["overrides"] = None if row.overrides is None else [*row.overrides, *self.size.overrides]
        return own | self._setting()

    def _setting(self) -> dict[str, Any]:
        """What all rows have in common."""
        size = {name: value for name, value in asdict(self.size).items() if name != "overrides"}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        weights = [_digest(folder) for folder in (self.base.tuned, self.base.early)]
        return {"size": size, "config": CONFIG.read_text(encoding="utf-8"), "weights": weights, "versions": versions}

    def _sources(self) -> Sources:
        """Makes the data, unless it is there from an earlier row."""
        folder, size = self.folder / "data", self.size
        sources = Sources(Pairs.below(folder), folder / "partners.jsonl", folder / "test.jsonl", folder / "kinds.jsonl")
        made, setting = folder / "made.json", json.dumps(self._setting())
        if not made.is_file() or made.read_text(encoding="utf-8") != setting:
            shutil.rmtree(folder, ignore_errors=True)
            make_pairs(folder, base=self.base, seed=self.seed, train=size.pairs, held=size.held)
            write_partners(sources.pairs.train, sources.partners, seed=self.seed)
            write_questions(folder, "test", seed=self.seed, count=size.scenes)
            write_kinds(folder, seed=self.seed, count=size.asked)
            write_text(made, setting)
        return sources

    def _result(self, row: Row, sources: Sources) -> dict[str, Any]:
        model = self.base.tuned if row.overrides is None else self._trained(row, sources)
        captions = answers(model, sources.test, LONGEST_CAPTION)
        scenes = [scene_of(line["id"]) for line in read_jsonl(sources.test)]
        scores = asdict(score(captions, scenes))
        logps = held_logps(model, sources.pairs.held)
        if row.asked:
            by_kind = score_kinds(sources.kinds, answers(model, sources.kinds, LONGEST_ANSWER))
            scores |= {f"right: {kind}": share for kind, share in by_kind.items()}
        if row.overrides is None:
            return {"scores": scores, "captions": captions, "logps": logps.tolist()}
        tuned = self._tuned(row.base)
        ratios = (logps - torch.tensor(tuned["logps"])).mean(1).tolist()
        scores |= dict(zip(("log_ratio", "log_ratio_rejected", "log_ratio_crop"), ratios, strict=True))
        cut = cut_to_cover(tuned["captions"], scenes, scores["cover"])
        scores |= dict(zip(("cut_chair_s", "cut_chair_i"), cut, strict=True))
        if not row.rounds:
            scores["tokens"] = self._tokens(row, sources)
        return {"scores": scores}

    def _tuned(self, base: str) -> dict[str, Any]:
        """The record of the base as it is, which all other rows are measured by."""
        row = find(base, "tuned")
        if (record := self.read(row)) is None:
            self.run(row)
            record = self.read(row)
        assert record is not None
        return record

    def _trained(self, row: Row, sources: Sources) -> Path:
        """The folder of the row's whole model."""
        if row.rounds:
            return self._looped(row, sources)
        folder = self.folder / "data" / "model"
        shutil.rmtree(folder, ignore_errors=True)
        words = ["train", str(CONFIG), "--output_dir", str(folder / "run"), *self._overrides(row, sources)]
        command([*words, "--disable_tqdm", "true"], folder.with_suffix(".log"))
        if (folder / "run" / "config.json").is_file():
            return folder / "run"
        command(["merge", str(folder / "run"), str(folder / "merged")], folder.with_suffix(".log"))
        return folder / "merged"

    def _overrides(self, row: Row, sources: Sources) -> list[str]:
        data = sources.partners if row.partners else sources.pairs.train
        if row.share < 1:
            lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
            data = data.with_name("part.jsonl")
            write_text(data, "".join(lines[: round(row.share * len(lines))]))
        start = ["--model_name_or_path", str(self.base.tuned), "--train_data", str(data), "--seed", str(self.seed)]
        return [*start, *(row.overrides or ()), *self.size.overrides]

    def _tokens(self, row: Row, sources: Sources) -> float:
        """Tokens computed per pair, as the planner counts them that deals pairs to micro-batches."""
        words = [*self._overrides(row, sources), "--output_dir", str(self.folder)]
        run, settings = load_config(CONFIG, parse_overrides(words))
        options = DataOptions.of(settings, objective_of(settings))
        rows, processor = read_rows(str(run.train_data)), load_processor(run.model_name_or_path)
        return float(PreferenceDataset(rows, processor, options).lengths.mean())

    def _looped(self, row: Row, sources: Sources) -> Path:
        """The model after the row's rounds; those that an earlier row has done are not done again."""
        folder = self.folder / "data"
        config = folder / "loop.yaml"
        write_text(config, yaml.safe_dump(self._loop(row, folder), sort_keys=False))
        # In this process: loading PyTorch for each of the small stages would take most of the time.
        code = run_loop(read_loop(config, rounds=row.rounds), check_words, lambda words, journal: cli.main(words))
        if code:
            raise SystemExit(code)
        return folder / "loop" / f"round-{row.rounds}" / "model"

    def _loop(self, row: Row, folder: Path) -> dict[str, Any]:
        asked = (folder / "preference.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        prompts = folder / "prompts.jsonl"
        write_text(prompts, "".join(asked[: self.size.pairs]))
        training = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        del training["train_data"], training["output_dir"]  # the loop's
        own = plain(parse_overrides([*(row.overrides or ()), *self.size.overrides]))
        start = {"model_name_or_path": str(self.base.tuned), "seed": self.seed, "disable_tqdm": True}
        sample = {"n": SAMPLES, "temperature": 1.0, "max_new_tokens": LONGEST_CAPTION, "batch_size": 250}
        return {
            "prompts": str(prompts),
            "output_dir": str(folder / "loop"),
            "seed": self.seed,
            "sample": sample,
            "rank": {"by": "function", "function": "bench.scenes.judge:score"},
            "train": {**training, **start, **own},
        }


def write_partners(pairs: Path, to: Path, *, seed: int) -> None:
    """Gives each pair another one of the same theme, drawn at random: its picture, to be rejected, and its caption.

    A pair whose theme has no other keeps a picture of any. pairs, to: JSONL, the second as ``mdpo train`` reads rows
    that bring their own rejected image and the answer that is right for it.
    """
    rows = read_jsonl(pairs)
    themes = [scene_of(row["id"]).theme for row in rows]
    lines = []
    for index, row in enumerate(rows):
        others = [place for place in range(len(rows)) if place != index]
        alike = [place for place in others if themes[place] == themes[index]]
        partner = rows[generator("scenes", "partner", seed, row["id"]).choice(alike or others)]
        beside = {"rejected_images": partner["images"], "contrast": partner["chosen"]}
        lines.append(json.dumps(row | beside) + "\n")
    write_text(to, "".join(lines))


@cache
def _digest(model: Path) -> str:
    return blake2b((model / "model.safetensors").read_bytes(), digest_size=8).hexdigest()
