"""Make the models that the demo starts from: ``python -m bench.scenes.base`` writes ``bench/scenes/model/``.

A LLaVA of 0.7M parameters (CLIP + Llama, random at first). Its tower is pretrained on what pictures show
(``bench.scenes.tower``) and frozen; projector and language model are then tuned on captions by the writer who did not
always look. ``tuned`` is the result, ``early`` a checkpoint on the way, a worse model that adds variety to a pool of
answers. Stopped, the same command goes on.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from bench.digits.tune import build_model, build_processor
from bench.scenes.pictures import render
from bench.scenes.tower import pretrain
from bench.scenes.training import Course, inputs
from bench.scenes.world import PROMPT, SIZE, WORDS, Scene, Split, caption, make_scene
from mdpo.outputs import whole_file

MODEL = Path(__file__).parent / "model"
TUNED, EARLY = MODEL / "tuned", MODEL / "early"
PATCH = 18
TOWER_CLOSE_UPS, TUNING_CLOSE_UPS = 0.4, 0.3
BATCH = 64
BUCKET = 20
"""Batches that are sorted by length together, so that little of a batch is padding."""


def pictures(split: Split, count: int, close_up: float, folder: Path) -> tuple[np.ndarray, list[Scene]]:
    """Scenes and their pictures, (count, SIZE, SIZE, 3) uint8, kept under ``folder``."""
    scenes = [make_scene(split, 0, index, close_up=close_up) for index in range(count)]
    path = folder / f"{split}-{count}.npy"
    if not path.is_file():
        drawn = np.stack([np.asarray(render(scene)) for scene in scenes])
        with whole_file(path) as part, part.open("wb") as file:
            np.save(file, drawn)
    return np.load(path), scenes


class Captions:
    """Tuning examples: the model's prompt, and what the writer says of the picture, in several versions."""

    def __init__(self, processor: LlavaProcessor, scenes: Sequence[Scene], versions: int) -> None:
        tokenizer = processor.tokenizer
        question: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
        text = processor.apply_chat_template(question, add_generation_prompt=True)
        blank = np.zeros((SIZE, SIZE, 3), np.uint8)
        layout: dict[str, Any] = dict(return_tensors="pt")
        self.prompt: Tensor = processor(text=[text], images=[blank], **layout)["input_ids"][0]
        self.scenes = len(scenes)
        texts = [caption(scene, version) for version in range(versions) for scene in scenes]
        told = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self.responses = [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in told]
        self._padding = tokenizer.pad_token_id

    def batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        lengths = np.array([len(response) for response in self.responses])
        order = rng.permutation(len(lengths))
        buckets = [order[start : start + BATCH * BUCKET] for start in range(0, len(order), BATCH * BUCKET)]
        ordered = [bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets]
        found = [bucket[start : start + BATCH] for bucket in ordered for start in range(0, len(bucket), BATCH)]
        return [found[place] for place in rng.permutation(len(found))]

    def tokens(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """Prompts and responses, padded on the right, (B, S), and the responses' targets, (B, longest response)."""
        rows = [self.responses[index] for index in batch]
        responses = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._padding)
        targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        return torch.cat([self.prompt.expand(len(rows), -1), responses], 1), targets


def tune(model: LlavaForConditionalGeneration, features: Tensor, captions: Captions, course: Course, keep) -> None:
    """Tunes projector and language model. features: of the frozen tower, (pictures, patches, width) float16."""
    images = captions.prompt == model.config.image_token_id
    start = len(captions.prompt) - 1  # the hidden state that tells a response's first token

    def loss(batch: np.ndarray, rng: np.random.Generator) -> Tensor:
        tokens, targets = captions.tokens(batch)
        shown = model.model.multi_modal_projector(features[batch % captions.scenes].float())
        at = torch.cat([images, torch.zeros(tokens.shape[1] - len(images), dtype=torch.bool)])
        embedded = model.get_input_embeddings()(tokens)
        embedded = embedded.masked_scatter(at[None, :, None].expand_as(embedded), shown)
        hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, start:-1])
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    course.run(model, loss, captions.batches, keep=keep)


@torch.no_grad()
def tower_features(tower: torch.nn.Module, pixels: np.ndarray) -> Tensor:
    """What the tower makes of pictures, (pictures, patches, width) float16; kept in halves, the model reads floats."""
    parts = np.array_split(pixels, -(-len(pixels) // 250))
    return torch.cat([tower(inputs(part)).last_hidden_state[:, 1:].half() for part in parts])


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--work", type=Path, default=Path("build/scenes-base"), help="pictures and states of training")
    parser.add_argument("--tower-pictures", type=int, default=20_000)
    parser.add_argument("--tower-steps", type=int, default=3_600)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--captions", type=int, default=6, help="of each picture")
    parser.add_argument("--steps", type=int, default=1_200)
    parser.add_argument("--early", type=int, default=400, help="steps of the early checkpoint")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    processor = build_processor(WORDS, image_size=SIZE, patch=PATCH)
    torch.manual_seed(0)
    model = build_model(processor, text_layers=2)
    tower = model.model.vision_tower
    course = Course(name="tower", folder=options.work, steps=options.tower_steps)
    shown = pictures("tower", options.tower_pictures, TOWER_CLOSE_UPS, options.work)
    print(json.dumps(pretrain(tower, *shown, course)), flush=True)

    tower.requires_grad_(False)
    pixels, scenes = pictures("tune", options.pictures, TUNING_CLOSE_UPS, options.work)
    captions = Captions(processor, scenes, options.captions)

    def keep(done: int) -> None:
        if done == options.early:
            model.save_pretrained(options.out / "early")
            processor.save_pretrained(options.out / "early")

    course = Course(name="tune", folder=options.work, steps=options.steps)
    tune(model, tower_features(tower, pixels), captions, course, keep)
    model.save_pretrained(options.out / "tuned")
    processor.save_pretrained(options.out / "tuned")


if __name__ == "__main__":
    main()
