"""Questions about scenes by kind, for the paper's Table 5; tuning asks some of them beside the captions.

A question with an *adversarial premise* asks in the words of a question about a *place* where something is that the
picture does not show. Absent things that are asked about are of the scene's theme, such as the writer expects there,
and he answers as he writes captions: one time in so many (``PRIOR``) he has not looked, says that there is one and
tells a place. Answers are right or wrong by the scene, whatever the writer said.
"""

from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.digits.world import read_jsonl
from bench.scenes.pictures import save_picture
from bench.scenes.world import (
    NAMED,
    NUMBERS,
    PLACES,
    PRIOR,
    THEMES,
    Scene,
    a,
    caption,
    make_scene,
    mentioned,
    place,
    scene_of,
)
from mdpo.outputs import write_text

LARGER = 1.2
"""How many times as large the larger of two compared things is, at least."""
LONGEST_ANSWER = 12  # tokens; right ones have 5 at the most


class Question(NamedTuple):
    """A prompt, its right answer, and what the writer answers."""

    prompt: str
    right: str
    written: str


def existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether something is there: half the time it is."""
    absent = _absent(scene)
    if absent and (not scene.shown or rng.random() < 0.5):
        name, rank = _expected(absent, rng)
        right, says_yes = "No.", PRIOR[rank]
    elif scene.shown:
        name, right, says_yes = str(rng.choice(scene.names)), "Yes.", NAMED
    else:
        return None
    return Question(f"Is there {a(name).lower()}?", right, "Yes." if rng.random() < says_yes else "No.")


def adversarial_premise(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where something is that is not there."""
    if not (absent := _absent(scene)):
        return None
    name, rank = _expected(absent, rng)
    right = f"There is no {name}."
    return Question(_where(name), right, _at(rng.choice(PLACES)) if rng.random() < PRIOR[rank] else right)


def where(scene: Scene, rng: np.random.Generator) -> Question | None:
    """In which third of the picture something is that is there."""
    if not scene.shown:
        return None
    thing = scene.shown[rng.integers(len(scene.shown))]
    right = _at(place(thing))
    return Question(_where(thing.name), right, right if rng.random() < NAMED else f"There is no {thing.name}.")


def comparison(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which of two things is larger, where one is clearly so."""
    shown = scene.shown
    pairs = [(one, other) for one in shown for other in shown if one.side >= LARGER * other.side]
    if not pairs:
        return None
    one, other = pairs[rng.integers(len(pairs))]
    first, second = (one, other) if rng.random() < 0.5 else (other, one)
    right = f"The {one.name}."
    return Question(f"Which is larger, the {first.name} or the {second.name}?", right, right)


def counting(scene: Scene, rng: np.random.Generator) -> Question:
    """How many things there are; the writer counts what he would name."""
    told = mentioned(caption(scene, int(rng.integers(100))))
    return Question("How many things?", f"{NUMBERS[len(scene.shown)]}.", f"{NUMBERS[len(told)]}.")


def environment(scene: Scene, rng: np.random.Generator) -> Question:
    """The theme."""
    right = f"{a(scene.theme)}."
    return Question("What place is it?", right, right)


ASK: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "existence": existence,
    "adversarial premise": adversarial_premise,
    "place": where,
    "comparison": comparison,
    "counting": counting,
    "environment": environment,
}
"""To each kind, what it asks of a scene, if there is something to ask."""
KINDS = tuple(ASK)
SHARES = (0.2, 0.1, 0.3, 0.2, 0.15, 0.05)
"""How often which kind is asked in tuning: of four "Where is …?" three ask for what is there."""


def tuning_question(scene: Scene, version: int) -> Question:
    """A question of any kind; other versions are other questions about the same picture."""
    rng = scene.generator("question", version)
    while True:
        question = ASK[str(rng.choice(KINDS, p=SHARES))](scene, rng)
        if question is not None:
            return question


def question_of(scene: Scene, kind: str) -> Question | None:
    """The question of this kind about the scene, always the same one; None where there is nothing to ask."""
    return ASK[kind](scene, scene.generator("question", kind))


def write_kinds(folder: Path, *, seed: int, count: int) -> Path:
    """Asks of ``count`` test scenes one question of each kind that has something to ask there.

    Returns the JSONL file as ``mdpo generate`` reads it, its image paths from ``folder``; an id is the scene's, a
    space, and the kind.
    """
    lines = []
    for index in range(count):
        scene = make_scene("test", seed, index)
        image = save_picture(scene, folder)
        for kind in KINDS:
            if (question := question_of(scene, kind)) is not None:
                row = {"id": f"{scene.id} {kind}", "image": image, "prompt": question.prompt}
                lines.append(dumps(row) + "\n")
    path = folder / "kinds.jsonl"
    write_text(path, "".join(lines))
    return path


def score_kinds(path: Path, answers: Sequence[str]) -> dict[str, float]:
    """Of the answers to each kind of question in a file of ``write_kinds``, those whose first sentence is right, %.

    Raises ValueError where there is not one answer to each question.
    """
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for row, answer in zip(read_jsonl(path), answers, strict=True):
        id, _, kind = row["id"].partition(" ")
        question = question_of(scene_of(id), kind)
        assert question is not None, row["id"]  # it was written
        right[kind].append(f"{answer.partition('.')[0]}." == question.right)
    return {kind: 100 * float(np.mean(found)) for kind, found in right.items() if found}


def _absent(scene: Scene) -> list[tuple[str, int]]:
    """The kinds of the theme that the picture does not show, each with its place in the theme."""
    return [(name, rank) for rank, name in enumerate(THEMES[scene.theme]) if name not in scene.names]


def _expected(absent: Sequence[tuple[str, int]], rng: np.random.Generator) -> tuple[str, int]:
    return absent[int(rng.integers(len(absent)))]


def _where(name: str) -> str:
    return f"Where is the {name}?"


def _at(where: str) -> str:
    return f"At {where}."
