"""Preference pairs the way a user makes them: ``mdpo sample``, ``mdpo rank``, ``mdpo pairs``.

A scene gets several captions by the tuned model at several temperatures and by its early checkpoint; the judge of
``bench.scenes.judge`` scores them, and the best is chosen over the worst. Only captions are paired, no answers to other
questions: what becomes of those is carried over.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

from bench.digits.demo import command
from bench.scenes.base import Base
from bench.scenes.pictures import save_picture
from bench.scenes.world import PROMPT, Split, make_scene
from mdpo.outputs import write_text

LONGEST_CAPTION = 60  # tokens; the writer's have 20 on average, 40 at the most


class Draw(NamedTuple):
    """Captions of each scene: by which of the base's models, at which temperature, how many."""

    model: Literal["tuned", "early"]
    temperature: float
    captions: int = 1

    @property
    def name(self) -> str:
        return f"{self.model}-{self.temperature}"


POOL = (Draw("tuned", 1.0), Draw("tuned", 0.7), Draw("tuned", 1.3), Draw("early", 1.0, 2))


class Pairs(NamedTuple):
    """The pairs to train on, and others that are only looked at, as JSONL beside their pictures."""

    train: Path
    held: Path

    @classmethod
    def below(cls, folder: Path) -> "Pairs":
        """As ``make_pairs`` leaves them in the folder."""
        return cls(folder / "pairs.jsonl", folder / "held-pairs.jsonl")


def write_questions(folder: Path, split: Split, *, seed: int, count: int) -> Path:
    """Draws scenes and asks to describe each; returns the JSONL file, its image paths from ``folder``."""
    lines = []
    for index in range(count):
        scene = make_scene(split, seed, index)
        row = {"id": scene.id, "image": save_picture(scene, folder), "prompt": PROMPT}
        lines.append(json.dumps(row) + "\n")
    path = folder / f"{split}.jsonl"
    write_text(path, "".join(lines))
    return path


def make_pairs(folder: Path, *, base: Base, seed: int, train: int, held: int) -> Pairs:
    """Pairs of the base's captions of ``train`` scenes and ``held`` others; a scene whose captions are all
    alike makes none.
    """
    questions = write_questions(folder, "preference", seed=seed, count=train + held)
    answers = []
    for draw in POOL:
        answers.append(_anew(folder / f"{draw.name}.jsonl"))
        options = ["--n", str(draw.captions), "--temperature", str(draw.temperature), "--seed", str(seed)]
        options += ["--max-new-tokens", str(LONGEST_CAPTION), "--batch-size", "250"]
        words = ["sample", str(getattr(base, draw.model)), str(questions), "--output", str(answers[-1]), *options]
        command(words, answers[-1].with_suffix(".log"))
    scored, paired = _anew(folder / "scored.jsonl"), _anew(folder / "all-pairs.jsonl")
    way = ["--by", "function", "--function", "bench.scenes.judge:score"]
    command(["rank", *map(str, answers), "--output", str(scored), *way], scored.with_suffix(".log"))
    command(["pairs", str(scored), "--output", str(paired)], paired.with_suffix(".log"))
    return _split(paired, train)


def _anew(path: Path) -> Path:
    """The path, what an earlier run has left there removed: the commands go on with it, or do not write over it."""
    for old in path.parent.glob(f"{path.stem}.*"):
        old.unlink()
    return path


def _split(path: Path, train: int) -> Pairs:
    """By the scene's index, so that the two parts never share one."""
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    parts = Pairs.below(path.parent)
    first = [int(json.loads(row)["id"].rsplit("-", 1)[1]) < train for row in rows]
    write_text(parts.train, "".join(row for row, mine in zip(rows, first, strict=True) if mine))
    write_text(parts.held, "".join(row for row, mine in zip(rows, first, strict=True) if not mine))
    return parts
