"""Make the models that demo and study start from: ``python -m bench.scenes.base`` writes ``bench/scenes/model/``.

A base is a LLaVA (CLIP + Llama, random at first). Its tower is pretrained on what pictures show
(``bench.scenes.tower``) and frozen; projector and language model are then tuned on captions by the writer who did not
always look, and on his answers to questions. ``tuned`` is the result, ``early`` a checkpoint on the way, a worse model
that adds variety to a pool of captions. Stopped, the same command goes on.

There are two of them, so that nothing said of mDPO hangs on one: ``sharp`` sees well and errs where it expects;
``small`` has a poorer tower, sees less and depends less on what it sees. What else was tried is in ``bench/LOG.md``;
all of it was judged on scenes of the split "development", before any preference run.
"""

import json
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from bench.digits.tune import build_model, build_processor
from bench.scenes.pictures import render
from bench.scenes.questions import tuning_question
from bench.scenes.tower import pretrain
from bench.scenes.training import Course, inputs
from bench.scenes.world import PROMPT, SIZE, WORDS, Scene, Split, caption, make_scene
from mdpo.outputs import whole_file

MODEL = Path(__file__).parent / "model"
TOWER_PICTURES, PICTURES = 20_000, 12_000
TOWER_CLOSE_UPS, CLOSE_UPS = 0.4, 0.3
CAPTIONS, ROUNDS, QUESTIONS = 6, 2, 6
"""Of each picture for tuning: captions, and rounds of so many questions one after another."""
ANSWER_WEIGHT = 2.0
"""What a token of an answer counts where one of a caption counts 1: there are fewer of them."""
BATCH = 64
BUCKET = 20
"""Batches that are sorted by length together, so that little of a batch is padding."""


class Base(NamedTuple):
    """A tuned model and its early checkpoint: folders as ``from_pretrained`` reads them."""

    name: str
    tuned: Path
    early: Path

    @classmethod
    def below(cls, folder: Path, name: str) -> "Base":
        """As ``make`` leaves it."""
        return cls(name, folder / name / "tuned", folder / name / "early")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The sizes of a base, and the steps of its making. patch: side in pixels; early: steps of the early checkpoint."""

    patch: int = 18
    tower_layers: int
    tower_width: int
    tower_steps: int
    text_layers: int = 2
    text_width: int
    steps: int
    early: int


RECIPES = {
    "sharp": Recipe(tower_layers=3, tower_width=96, tower_steps=3_600, text_width=128, steps=2_800, early=900),
    "small": Recipe(tower_layers=2, tower_width=64, tower_steps=600, text_width=128, steps=1_800, early=700),
}
BASES = {name: Base.below(MODEL, name) for name in RECIPES}


def pictures(split: Split, count: int, close_up: float, folder: Path) -> tuple[np.ndarray, list[Scene]]:
    """Scenes and their pictures, (count, SIZE, SIZE, 3) uint8, kept under ``folder``."""
    scenes = [make_scene(split, 0, index, close_up=close_up) for index in range(count)]
    path = folder / f"{split}-{count}.npy"
    if not path.is_file():
        drawn = np.stack([np.asarray(render(scene)) for scene in scenes])
        with whole_file(path) as part, part.open("wb") as file:
            np.save(file, drawn)
    return np.load(path), scenes


class Examples:
    """What tuning reads: of every picture, captions by themselves, and questions one after another, all with
    answers.
    """

    def __init__(self, processor: LlavaProcessor, scenes: Sequence[Scene], *, captions: int, rounds: int) -> None:
        tokenizer = processor.tokenizer
        self.image_token = tokenizer.convert_tokens_to_ids(processor.image_token)
        self._padding = tokenizer.pad_token_id
        talks = [[(PROMPT, caption(scene, version))] for version in range(captions) for scene in scenes]
        talks += [asked(scene, number) for number in range(rounds) for scene in scenes]
        self.pictures = np.arange(len(talks)) % len(scenes)
        self.weights = torch.ones(len(talks))
        self.weights[captions * len(scenes) :] = ANSWER_WEIGHT
        first = {prompt: prompt_ids(processor, prompt) for prompt in {talk[0][0] for talk in talks}}
        later = {
            prompt: later_ids(processor, prompt) for prompt in {prompt for talk in talks for prompt, _ in talk[1:]}
        }
        told = iter(tokenizer([answer for talk in talks for _, answer in talk], add_special_tokens=False)["input_ids"])
        self.rows, self.targets = [], []
        for talk in talks:
            row, target = [], []
            for prompt, _ in talk:
                said = later[prompt] if row else first[prompt]
                answer = [*next(told), tokenizer.eos_token_id]
                row += [*said, *answer]
                target += [*[-100] * len(said), *answer]
            self.rows.append(torch.tensor(row))
            self.targets.append(torch.tensor(target))

    def batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        lengths = np.array([len(row) for row in self.rows])
        order = rng.permutation(len(lengths))
        buckets = [order[start : start + BATCH * BUCKET] for start in range(0, len(order), BATCH * BUCKET)]
        ordered = [bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets]
        found = [bucket[start : start + BATCH] for bucket in ordered for start in range(0, len(bucket), BATCH)]
        return [found[place] for place in rng.permutation(len(found))]

    def tokens(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """The rows, padded on the right, and the same with −100 for all but what is answered; both (B, S) int64."""
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad([self.rows[index] for index in batch], batch_first=True, padding_value=self._padding)
        return tokens, pad([self.targets[index] for index in batch], batch_first=True, padding_value=-100)


def asked(scene: Scene, number: int) -> list[tuple[str, str]]:
    """The questions of a round about the scene, and what the writer answers."""
    versions = range(number * QUESTIONS, (number + 1) * QUESTIONS)
    questions = [tuning_question(scene, version) for version in versions]
    return [(question.prompt, question.written) for question in questions]


def prompt_ids(processor: LlavaProcessor, prompt: str) -> list[int]:
    """The tokens of a question about one picture, with the picture's own, up to where the answer starts."""
    question: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(question, add_generation_prompt=True)
    return processor(text=[text], images=[np.zeros((SIZE, SIZE, 3), np.uint8)])["input_ids"][0]


def later_ids(processor: LlavaProcessor, prompt: str) -> list[int]:
    """The tokens of a further question about the same picture, up to where the answer starts."""
    question: Any = [{"role": "user", "content": prompt}]
    text = processor.apply_chat_template(question, add_generation_prompt=True)
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def tune(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    examples: Examples,
    course: Course,
    keep: Callable[[int], None],
) -> None:
    """Tunes projector and language model. features: of the frozen tower, (pictures, patches, width) float16."""

    def loss(batch: np.ndarray, rng: np.random.Generator) -> Tensor:
        tokens, targets = examples.tokens(batch)
        shown = model.model.multi_modal_projector(features[examples.pictures[batch]].float())
        embedded = model.get_input_embeddings()(tokens)
        embedded = embedded.masked_scatter((tokens == examples.image_token)[..., None].expand_as(embedded), shown)
        hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1])
        losses = cross_entropy(logits.transpose(1, 2), targets[:, 1:], ignore_index=-100, reduction="none")
        weights = examples.weights[batch, None] * (targets[:, 1:] != -100)
        return (weights * losses).sum() / weights.sum()

    course.run(model, loss, examples.batches, keep=keep)


@torch.no_grad()
def tower_features(tower: torch.nn.Module, pixels: np.ndarray) -> Tensor:
    """What the tower makes of pictures, (pictures, patches, width) float16; kept in halves, the model reads floats."""
    parts = np.array_split(pixels, -(-len(pixels) // 250))
    return torch.cat([tower(inputs(part)).last_hidden_state[:, 1:].half() for part in parts])


def make(name: str, recipe: Recipe, out: Path, work: Path) -> None:
    """Trains the base's tower and tunes it.

    work: where pictures, which all bases share, and states of training are kept.
    """
    (work / name).mkdir(parents=True, exist_ok=True)
    processor = build_processor(WORDS, image_size=SIZE, patch=recipe.patch)
    torch.manual_seed(0)
    model = build_model(
        processor,
        text_layers=recipe.text_layers,
        text_width=recipe.text_width,
        tower_layers=recipe.tower_layers,
        tower_width=recipe.tower_width,
    )
    tower = model.model.vision_tower
    course = Course(name="tower", folder=work / name, steps=recipe.tower_steps)
    shown = pictures("tower", TOWER_PICTURES, TOWER_CLOSE_UPS, work)
    print(json.dumps(pretrain(tower, *shown, course)), flush=True)

    tower.requires_grad_(False)
    pixels, scenes = pictures("tune", PICTURES, CLOSE_UPS, work)
    examples = Examples(processor, scenes, captions=CAPTIONS, rounds=ROUNDS)
    base = Base.below(out, name)

    def keep(done: int) -> None:
        if done == recipe.early:
            save(model, processor, base.early)

    course = Course(name="tune", folder=work / name, steps=recipe.steps)
    tune(model, tower_features(tower, pixels), examples, course, keep)
    save(model, processor, base.tuned)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Weights in float16, to be small; the config says float32, which they are loaded as."""
    halves = {name: weights.half() for name, weights in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=halves)
    processor.save_pretrained(folder)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--work", type=Path, default=Path("build/scenes-base"), help="pictures and states of training")
    options = parser.parse_args()
    for name in options.base:
        make(name, RECIPES[name], options.out, options.work)


if __name__ == "__main__":
    main()
