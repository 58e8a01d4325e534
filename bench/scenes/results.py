"""What a report tells of the scenes, and how it reads their captions."""

import re
from collections.abc import Sequence

from bench.digits.results import Column, World
from bench.scenes.world import NAMES, mentioned

_NAME = re.compile(rf"\b({'|'.join(NAMES)})\b")

COLUMNS = (
    Column("CHAIR_s", "of the captions, those that name something not in the picture, %", lambda r: r.scores.chair_s),
    Column(
        "CHAIR_i", "of the things named, each once a caption, those not in the picture, %", lambda r: r.scores.chair_i
    ),
    Column("Cover", "of the things in the picture, those named, %", lambda r: r.scores.cover),
    Column("F1", "of both: naming less does not raise it, %", lambda r: r.scores.f1),
    Column("Length", "tokens per caption", lambda r: r.scores.length),
    Column(
        "Looking",
        "how much CHAIR_i grows where the caption of another picture of the same theme stands in: 0 for a model that "
        "does not look",
        lambda r: r.scores.looking,
    ),
    Column("log π/ρ", "of held-out chosen captions against the tuned model, mean", lambda r: r.log_ratio, "{:+.2f}"),
)


def marked(caption: str, shown: Sequence[str]) -> list[tuple[str, bool]]:
    """A caption cut at the things it names, each piece with whether it is one that the picture does not show."""
    return [(piece, bool(_NAME.fullmatch(piece)) and piece not in shown) for piece in _NAME.split(caption) if piece]


def in_short(caption: str, shown: Sequence[str]) -> list[tuple[str, bool]]:
    """The things alone that a caption names, each once, with commas between them."""
    pieces = []
    for name in dict.fromkeys(mentioned(caption)):
        pieces += [(", ", False)] if pieces else []
        pieces.append((name, name not in shown))
    return pieces


def missed(caption: str, shown: Sequence[str]) -> list[str]:
    """The things in the picture that a caption leaves out."""
    return [name for name in shown if name not in mentioned(caption)]


SCENES = World(
    title="mDPO in miniature",
    exhibits="Test pictures, in which each model errs as often as in all of them",
    legend="Things that are not in the picture are",
    columns=COLUMNS,
    summary=(
        "One small vision-language model, tuned to describe pictures by captions whose writer also named what such "
        "scenes usually have. It captioned other pictures several times, a noisy judge that likes long captions "
        "ranked these, and the model was trained on the best against the worst in two ways. Captions of unseen "
        "pictures that name something which is not there:"
    ),
    marked=marked,
    in_short=in_short,
    missed=missed,
)
