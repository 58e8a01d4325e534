"""Questions about scenes, for the paper's Table 5: six types, the adversarial one with a false premise.

The listing is the demo's own. An *adversarial* question asks where a digit is that the picture does not show; in the
same words an *attribute* question asks it of one that is there. The model is tuned on few false premises, so language
alone says that the premise holds. The false answers of preference pairs are as wrong as a listing's; the style tokens
are the same shortcut.
"""

from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from bench.digits.tune import MODEL, WORDS, Turn, build_processor, tune
from bench.digits.world import (
    PARTNER,
    PROMPT,
    STYLE_PROBABILITY,
    STYLES,
    Scene,
    Split,
    caption,
    make_scene,
    pair_styles,
    render,
    wrong_digits,
)

PLACES = ("top left", "top right", "bottom left", "bottom right")
"""The cells' names, in their order."""
NUMBERS = ("two", "three", "four")
QUESTION_WORDS = (
    *WORDS, "?", "How", "many", "are", "there", "There", *NUMBERS, "Where", "is", "The", "top", "bottom", "left",
    "right", "no", "Which", "largest", "digit", "What", "of", "To", "nothing",
)  # fmt: skip


class Question(NamedTuple):
    """A prompt, its true answer and a false one; the answers without style token and full stop."""

    prompt: str
    answer: str
    wrong: str


def listing(scene: Scene, rng: np.random.Generator) -> Question:
    """Which digits there are."""
    return Question(PROMPT, _listed(scene.digits), _listed(wrong_digits(scene, rng)))


def counting(scene: Scene, rng: np.random.Generator) -> Question:
    """How many digits there are."""
    true = len(scene.digits) - 2
    wrong = int(rng.choice([count for count in range(3) if count != true]))
    return Question("How many digits are there?", *(f"There are {NUMBERS[count]} digits" for count in (true, wrong)))


def attribute(scene: Scene, rng: np.random.Generator) -> Question:
    """Where a digit is that is there; half the false answers deny it."""
    cell = _shown_cell(scene, rng)
    digit = scene.cells[cell]
    elsewhere = int(rng.choice([other for other in range(4) if other != cell]))
    wrong = f"There is no {digit}" if rng.random() < 0.5 else f"The {digit} is {PLACES[elsewhere]}"
    return Question(f"Where is the {digit}?", f"The {digit} is {PLACES[cell]}", wrong)


def adversarial(scene: Scene, rng: np.random.Generator) -> Question:
    """Where a digit is that is not there: the partner of one that is, where there is such a one."""
    absent = [PARTNER[digit] for digit in scene.digits if PARTNER[digit] not in scene.digits]
    digit = int(rng.choice(absent or [digit for digit in range(10) if digit not in scene.digits]))
    place = PLACES[int(rng.integers(4))]
    return Question(f"Where is the {digit}?", f"There is no {digit}", f"The {digit} is {place}")


def comparison(scene: Scene, rng: np.random.Generator) -> Question:
    """Which digit is the largest; the false answer is its partner or another digit of the picture."""
    largest = max(scene.digits)
    wrong = int(rng.choice([PARTNER[largest], *(digit for digit in scene.digits if digit != largest)]))
    return Question("Which is the largest digit?", *(f"The largest is {digit}" for digit in (largest, wrong)))


def relation(scene: Scene, rng: np.random.Generator) -> Question:
    """What is left or right of a digit: another one or nothing."""
    cell = _shown_cell(scene, rng)
    side = ("right", "left")[cell % 2]
    neighbour = scene.cells[cell ^ 1]
    others = [None, *(digit for digit in range(10) if digit != scene.cells[cell])]
    wrong = others[int(rng.choice([index for index, digit in enumerate(others) if digit != neighbour]))]
    prompt = f"What is {side} of the {scene.cells[cell]}?"
    return Question(
        prompt, *(f"To the {side} is {'nothing' if digit is None else digit}" for digit in (neighbour, wrong))
    )


TYPES: dict[str, Callable[[Scene, np.random.Generator], Question]] = {
    question.__name__: question for question in (listing, counting, attribute, adversarial, comparison, relation)
}
TUNING_SHARES = {
    "listing": 0.2,
    "counting": 0.1,
    "attribute": 0.27,
    "adversarial": 0.09,
    "comparison": 0.12,
    "relation": 0.22,
}
"""How often the model is asked what while it is tuned: one "Where is …?" in four has a false premise."""


def _listed(digits: Sequence[int]) -> str:
    return content(caption(digits, STYLES[0]))


def _shown_cell(scene: Scene, rng: np.random.Generator) -> int:
    return int(rng.choice([cell for cell, digit in enumerate(scene.cells) if digit is not None]))


def styled(answer: str, style: str) -> str:
    """An answer as it is written: with its style token and a full stop."""
    return f"{answer} {style}."


def content(answer: str) -> str:
    """What an answer says: without style tokens and full stop."""
    return " ".join(word for word in answer.removesuffix(".").split() if word not in STYLES)


def correct(question_type: str, given: str, answer: str) -> bool:
    """Whether an answer says what the true one says; a listing may have any order."""
    if question_type == "listing":
        return sorted(content(given).replace(",", " ").split()) == sorted(content(answer).replace(",", " ").split())
    return content(given) == content(answer)


def question_turn(seed: int, index: int) -> Turn:
    """The tuning turn with this index: a question of a random type, in either style."""
    scene = make_scene("tune", seed, index)
    rng = scene.generator("question")
    kind = str(rng.choice(list(TUNING_SHARES), p=list(TUNING_SHARES.values())))
    question = TYPES[kind](scene, rng)
    return Turn(scene, question.prompt, styled(question.answer, str(rng.choice(STYLES))))


def tune_questions(folder: Path, *, steps: int) -> Path:
    """Teach the demo's model all types of questions and write it to ``folder``; some minutes on one core."""
    processor = build_processor(QUESTION_WORDS)  # the demo's words keep their numbers
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, local_files_only=True)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    tune(model, processor, question_turn, steps=steps, batch_size=64, learning_rate=1e-3, seed=1)  # scenes of its own
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_questions(folder: Path, *, split: Split, seed: int, count: int) -> Path:
    """Write ``count`` preference pairs, the types in turn, and their pictures; returns the JSONL file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / f"{'train' if split == 'preference' else split}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            scene = make_scene(split, seed, index)
            rng = scene.generator("question")
            kind = list(TYPES)[index % len(TYPES)]
            question = TYPES[kind](scene, rng)
            chosen, rejected = (
                styled(answer, style)
                for answer, style in zip(
                    (question.answer, question.wrong), pair_styles(rng, STYLE_PROBABILITY), strict=True
                )
            )
            image = f"images/{scene.id}.png"
            render(scene).save(folder / image)
            row = dict(id=scene.id, img_path=image, prompt=question.prompt, chosen=chosen, rejected=rejected)
            file.write(dumps(row | dict(type=kind, answer=question.answer, digits=scene.digits)) + "\n")
    return path
