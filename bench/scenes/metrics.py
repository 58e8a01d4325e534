"""What captions of scenes say truly and falsely, and how much of it depends on the picture.

CHAIR and cover as in ``bench.digits.metrics``, with kinds of things for digits. A false kind is an error of the *prior*
if it belongs to the scene's theme, for the writer of the captions expected it there; the others are errors of sight.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.digits.metrics import Chair, chair, percent
from bench.scenes.world import THEME_OF, Scene, mentioned


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    chair_s: float
    """Of the captions, those that name something that the picture does not show, %."""
    chair_i: float
    """Of the kinds named, each once a caption, those that the picture does not show, %."""
    cover: float
    """Of the kinds shown, those named, %."""
    f1: float
    """The harmonic mean of cover and of 100 − chair_i: what naming less does not raise."""
    named: float
    """Kinds named per caption."""
    length: float
    """Tokens per caption."""
    prior: float
    """Of the kinds named, those not shown that are of the scene's theme, %."""
    sight: float
    """Of the kinds named, those not shown that are of another theme, %."""
    looking: float
    """How much chair_i grows with another scene of the same theme for the picture: 0 for who does not look, in points.
    """


def score(captions: Sequence[str], scenes: Sequence[Scene]) -> Scores:
    """Score one caption per scene.

    Deterministic answers are assumed: that to another picture is the other's caption.
    """
    named, shown = [mentioned(text) for text in captions], [scene.names for scene in scenes]
    counts = chair(named, shown)
    prior = sum(
        THEME_OF[name] == scene.theme
        for names, scene in zip(named, scenes, strict=True)
        for name in set(names) - set(scene.names)
    )
    return Scores(
        chair_s=counts.chair_s,
        chair_i=counts.chair_i,
        cover=counts.cover,
        f1=f1(counts),
        named=counts.named / counts.captions,
        length=sum(len(text.replace(".", " . ").split()) for text in captions) / counts.captions,
        prior=percent(prior, counts.named),
        sight=percent(counts.false - prior, counts.named),
        looking=_unseen(named, scenes).chair_i - counts.chair_i,
    )


def f1(counts: Chair) -> float:
    """Of the kinds named against those shown, %."""
    return percent(2 * counts.covered, counts.named + counts.shown)


def _unseen(named: Sequence[Sequence[str]], scenes: Sequence[Scene]) -> Chair:
    """The captions against what every other scene of the same theme shows."""
    themes: dict[str, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        themes[scene.theme].append(index)
    pairs = [(one, other) for alike in themes.values() for one in alike for other in alike if one != other]
    return chair([named[one] for one, _ in pairs], [scenes[other].names for _, other in pairs])


def cut(caption: str, most: int) -> str:
    """The caption's sentences before the one that names a further kind than the first ``most``."""
    kept: list[str] = []
    for sentence in caption.split(". "):
        if len(set(mentioned(". ".join([*kept, sentence])))) > most:
            break
        kept.append(sentence)
    return ". ".join(kept)


def cut_to_cover(captions: Sequence[str], scenes: Sequence[Scene], cover: float) -> tuple[float, float]:
    """CHAIR_s and CHAIR_i of the captions cut after so many kinds that they cover this much, %.

    Between two numbers of kinds a straight line is drawn. Where the whole captions cover less, they are it.
    """
    shown = [scene.names for scene in scenes]
    longest = max(len(set(mentioned(text))) for text in captions)
    curve = [chair([mentioned(cut(text, most)) for text in captions], shown) for most in range(1, longest + 1)]
    covers = [point.cover for point in curve]
    of_captions = float(np.interp(cover, covers, [point.chair_s for point in curve]))
    return of_captions, float(np.interp(cover, covers, [point.chair_i for point in curve]))
