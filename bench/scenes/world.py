"""A second miniature world: scenes of emoji on a theme, described by a writer who did not always look.

A scene has a theme (a street, a kitchen, …) and shows some of the theme's five kinds of things, now and then one of
another theme. Whoever wrote the captions for tuning names what is there, and also what such scenes usually have: each
absent kind of the theme with a probability of its own (``PRIOR``), mostly at the end of the caption. A model tuned on
them learns what a theme usually has besides what it sees, which is how vision-language models come to name things that
are not in the picture.

A *close-up* shows a part of a scene. Some of the pictures for tuning are close-ups, so a crop is nothing new to the
model; preference and test pictures are whole scenes. Tuning, preference and test scenes come from one distribution.

Everything follows from (split, seed, index): no global state, no order of calls.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np

from bench.digits.world import generator

Split = Literal["tower", "tune", "preference", "test", "development"]

THEMES: dict[str, dict[str, str]] = {
    "street": {"car": "🚗🚕", "tree": "🌳🌲", "bus": "🚌🚍", "bicycle": "🚲", "signal": "🚦🚥"},
    "kitchen": {"cup": "☕🍵", "knife": "🔪", "bread": "🍞🥖", "apple": "🍎🍏", "egg": "🥚🍳"},
    "beach": {"parasol": "⛱🏖", "boat": "⛵🚤", "ball": "🏐🏀", "crab": "🦀", "shell": "🐚"},
    "office": {"laptop": "💻", "phone": "☎📱", "book": "📕📗", "chair": "🪑", "pen": "🖊🖋"},
    "farm": {"cow": "🐄🐮", "dog": "🐕🐶", "tractor": "🚜", "hen": "🐔🐓", "pig": "🐖🐷"},
    "party": {"cake": "🎂🍰", "balloon": "🎈", "gift": "🎁", "guitar": "🎸", "drum": "🥁"},
}
"""Kinds of things by theme, in the order in which the writer expects them; to each kind, the emoji that show it."""

THEME_OF = {name: theme for theme, kinds in THEMES.items() for name in kinds}
NAMES = tuple(THEME_OF)
PRIOR = (0.55, 0.2, 0.1, 0.05, 0.02)
"""That the writer names an absent kind, by its place in the theme."""

PRESENT = 0.6
VISITOR = 0.25
"""That a scene shows one kind of another theme."""

SIZE = 72
SMALLEST, LARGEST = 17.0, 33.0
"""Sides of things in pixels, of 72."""
CROWDED = 20.0
"""The largest side where larger ones did not fit."""
TRIES = 60
CLOSE_UP_AREA = (0.05, 0.6)
"""Of a scene's area, what a close-up shows."""

NAMED = 0.93
"""That the writer names a thing that the picture shows."""
LATE = 0.8
"""That a thing which was not looked for comes after those that were seen."""
MOOD = 0.3
DETAIL = (0.1, 0.9)
"""Of a caption's things, how many are told with their place: a laconic writer and a thorough one."""
PLACES = ("left", "middle", "right")
MOODS = ("calm", "busy", "bright", "quiet")
NUMBERS = ("None", "One", "Two", "Three", "Four", "Five", "Six")
PROMPT = "Describe the picture."
WORDS = (
    "USER", "ASSISTANT", ":", "Describe", "the", "picture", ".", "A", "An", "scene", "at", "The", "mood", "is",
    *PLACES, *MOODS, *THEMES, *NAMES,
    "?", ",", "Is", "there", "a", "an", "Yes", "No", "Where", "There", "no", "At", "Which", "larger", "or", "How",
    "many", "things", *NUMBERS, "What", "place", "it",
)  # fmt: skip
"""All that is said: in captions, and in the questions of ``bench.scenes.questions`` and their answers."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the scene."""
WHOLE: Box = (0.0, 0.0, float(SIZE), float(SIZE))


class Thing(NamedTuple):
    """An emoji in a scene: its side, and where its middle is, in pixels."""

    name: str
    emoji: str
    side: float
    x: float
    y: float

    @property
    def box(self) -> Box:
        half = self.side / 2
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is, and the part of it that the picture shows."""

    split: Split
    seed: int
    index: int
    theme: str
    things: tuple[Thing, ...]
    view: Box

    @property
    def id(self) -> str:
        return f"{self.split}-{self.seed}-{self.index:05d}"

    @property
    def shown(self) -> list[Thing]:
        """The things of which the picture shows at least half, measured in the picture's own pixels."""
        left, top, right, _ = self.view
        zoom = SIZE / (right - left)
        return [
            Thing(thing.name, thing.emoji, thing.side * zoom, (thing.x - left) * zoom, (thing.y - top) * zoom)
            for thing in self.things
            if overlap(thing.box, self.view) >= thing.side**2 / 2
        ]

    @property
    def names(self) -> list[str]:
        """The kinds that the picture shows, the largest first."""
        return [thing.name for thing in sorted(self.shown, key=lambda thing: -thing.side)]

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """Random numbers that depend on the scene's id and on what they are for, and on nothing else."""
        return generator("scenes", self.split, self.seed, self.index, *purpose)


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def make_scene(split: Split, seed: int, index: int, *, close_up: float = 0.0) -> Scene:
    """The scene with this index. close_up: that its picture shows a part of it."""
    rng = generator("scenes", split, seed, index, "scene")
    theme = str(rng.choice(list(THEMES)))
    things: list[Thing] = []
    for name in rng.permutation(_kinds(theme, rng)):
        things.append(_placed(str(name), things, rng))
    view = WHOLE
    if rng.random() < close_up:
        side = SIZE * rng.uniform(*CLOSE_UP_AREA) ** 0.5
        left, top = rng.uniform(0, SIZE - side, 2)
        view = (float(left), float(top), float(left + side), float(top + side))
    return Scene(split, seed, index, theme, tuple(things), view)


def scene_of(id: str) -> Scene:
    """The whole scene with this id. Raises ValueError where it is no scene's id."""
    split, seed, index = id.split("-")
    return make_scene(cast(Split, split), int(seed), int(index))


def _kinds(theme: str, rng: np.random.Generator) -> list[str]:
    """Two to five kinds."""
    while True:
        kinds = [name for name in THEMES[theme] if rng.random() < PRESENT]
        if rng.random() < VISITOR:
            kinds.append(str(rng.choice([name for name in NAMES if THEME_OF[name] != theme])))
        if 2 <= len(kinds) <= 5:
            return kinds


def _placed(name: str, others: list[Thing], rng: np.random.Generator) -> Thing:
    """A thing somewhere, not much over others; where all tries fail, the last one stands."""
    emoji = str(rng.choice(list(THEMES[THEME_OF[name]][name])))
    side = x = y = 0.0
    for attempt in range(TRIES):
        largest = LARGEST if attempt < TRIES / 2 else CROWDED
        side = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(largest))))
        x, y = map(float, rng.uniform(0.45 * side, SIZE - 0.45 * side, 2))
        if all(max(abs(x - other.x), abs(y - other.y)) > 0.42 * (side + other.side) for other in others):
            break
    return Thing(name, emoji, side, x, y)


def caption(scene: Scene, version: int = 0) -> str:
    """What the writer says of the picture; other versions are other things said of the same one.

    What is prominent comes first, about, and most of what was not looked for comes last.
    """
    rng = scene.generator("caption", version)
    seen = sorted(scene.shown, key=lambda thing: -thing.side * np.exp(rng.normal(0, 0.25)))
    told = [(thing.name, place(thing)) for thing in seen if rng.random() < NAMED]
    shown = {thing.name for thing in seen}
    absent = [
        name
        for name, chance in zip(THEMES[scene.theme], PRIOR, strict=True)
        if name not in shown and rng.random() < chance
    ]
    for name in rng.permutation(absent):
        at = len(told) if rng.random() < LATE else int(rng.integers(len(told) + 1))
        told.insert(at, (str(name), str(rng.choice(PLACES))))
    detail = rng.choice(DETAIL)
    sentences = [f"{a(scene.theme)} scene."]
    sentences += [f"{a(name)} at {where}." if rng.random() < detail else f"{a(name)}." for name, where in told]
    if rng.random() < MOOD:
        sentences.append(f"The mood is {rng.choice(MOODS)}.")
    return " ".join(sentences)


def a(name: str) -> str:
    """The name after its article."""
    return f"{'An' if name[0] in 'aeio' else 'A'} {name}"


def place(thing: Thing) -> str:
    """The third of the picture that the thing's middle is in."""
    return PLACES[min(2, max(0, int(3 * thing.x / SIZE)))]


def mentioned(text: str) -> list[str]:
    """The kinds of things that a caption names, in order, with repetitions."""
    return [word for word in text.replace(".", " ").split() if word in THEME_OF]
