"""A judge of captions as they come: mostly right about what a picture shows, noisy, and fond of length.

``mdpo rank --by function --function bench.scenes.judge:score`` scores answers by it.
"""

from collections.abc import Sequence

from PIL import Image

from bench.digits.world import generator
from bench.scenes.world import mentioned, scene_of

FALSE, TRUE, TOKEN, NOISE = -1.0, 0.7, 0.04, 1.0
"""What a kind costs that the picture does not show, what one brings that it shows, what each token brings, and the
standard deviation of what the judge adds by chance."""


def score(*, question: str, answer: str, images: Sequence[Image.Image], id: str) -> float:
    """The judge's score of an answer to the question with this id, a scene's. The noise follows from id and answer."""
    scene, named = scene_of(id), set(mentioned(answer))
    right = named & set(scene.names)
    tokens = len(answer.replace(".", " . ").split())
    chance = generator("scenes", "judge", id, answer).normal()
    return FALSE * len(named - right) + TRUE * len(right) + TOKEN * tokens + NOISE * chance
