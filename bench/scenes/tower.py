"""The vision tower's pretraining: which kinds of things each patch and each picture shows, from the truth, at all
zooms.

It stands for what CLIP has learned before a vision-language model is made of it. From here on the tower is frozen.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedModel

from bench.scenes.training import Course, inputs
from bench.scenes.world import NAMES, SIZE, THEMES, Scene, overlap

COVERED = 0.25
"""The share of a patch that a thing has to cover to be looked for there."""
BATCH = 64


class Recognizer(nn.Module):
    """The tower, and what is read off it during pretraining: kinds per patch, and the theme of the picture."""

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.kinds, self.theme = nn.Linear(width, len(NAMES)), nn.Linear(width, len(THEMES))
        nn.init.constant_(self.kinds.bias, -4.0)  # most kinds are absent: the loss starts low

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the kinds, (pictures, patches, kinds), and of the theme, (pictures, themes)."""
        patches = self.tower(pixels).last_hidden_state[:, 1:]
        return self.kinds(patches), self.theme(patches.mean(1))


def patch_truth(scene: Scene, patch: int) -> np.ndarray:
    """Which kinds each patch of the picture shows: (rows, columns, kinds) bool."""
    across = SIZE // patch
    truth = np.zeros((across, across, len(NAMES)), bool)
    for thing in scene.shown:
        for row, column in np.ndindex(across, across):
            left, top, right, bottom = patch * column, patch * row, patch * (column + 1), patch * (row + 1)
            middle = left <= thing.x < right and top <= thing.y < bottom
            covered = overlap(thing.box, (left, top, right, bottom)) >= COVERED * patch**2
            truth[row, column, NAMES.index(thing.name)] |= middle or covered
    return truth


def pretrain(tower: PreTrainedModel, pixels: np.ndarray, scenes: Sequence[Scene], course: Course) -> dict[str, float]:
    """Trains the tower on all but the last twentieth of the pictures. Returns what it recognises in those.

    pixels: (pictures, SIZE, SIZE, 3) uint8, of the scenes.
    """
    patches = np.stack([patch_truth(scene, tower.config.patch_size) for scene in scenes])
    kinds = np.array([[name in scene.names for name in NAMES] for scene in scenes])
    themes = np.array([list(THEMES).index(scene.theme) for scene in scenes])
    train = len(scenes) - len(scenes) // 20
    torch.manual_seed(course.seed)
    model = Recognizer(tower)

    def loss(batch: np.ndarray, rng: np.random.Generator) -> Tensor:
        shown, wanted = pixels[batch], patches[batch]
        if rng.random() < 0.5:
            shown, wanted = shown[:, :, ::-1], wanted[:, :, ::-1]
        found, theme = model(inputs(shown))
        per_patch = _binary(found, wanted.reshape(found.shape))
        per_picture = _binary(found.amax(1), kinds[batch])
        return 10 * (per_patch + per_picture) + 0.3 * cross_entropy(theme, torch.from_numpy(themes[batch]))

    def batches(rng: np.random.Generator) -> list[np.ndarray]:
        return np.split(rng.permutation(train)[: train - train % BATCH], train // BATCH)

    course.run(model, loss, batches)
    return _recognised(model, pixels[train:], kinds[train:], themes[train:])


def _binary(logits: Tensor, wanted: np.ndarray) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.from_numpy(wanted.astype(np.float32)))


@torch.no_grad()
def _recognised(model: Recognizer, pixels: np.ndarray, kinds: np.ndarray, themes: np.ndarray) -> dict[str, float]:
    found, theme = model(inputs(pixels))
    seen = (found.amax(1) > 0).numpy()
    return {
        "precision": float((seen & kinds).sum() / max(1, seen.sum())),
        "recall": float((seen & kinds).sum() / kinds.sum()),
        "theme": float((theme.argmax(-1).numpy() == themes).mean()),
    }
