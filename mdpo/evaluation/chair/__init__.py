"""CHAIR: which COCO objects a caption names that are not in the image; with a judge, RLHF-V's Object HalBench.

files.py     responses and COCO's files, checked
metrics.py   CHAIR by string matching, RLHF-V's variant and Rohrbach et al.'s
objects.py   the objects of a response as a judge names them
run.py       mdpo evaluate object-halbench
"""

from .metrics import VARIANTS, ChairResponse, ChairScore, Lemmas, Lexicon, ground_truth, score, score_objects

__all__ = [
    "VARIANTS",
    "ChairResponse",
    "ChairScore",
    "Lemmas",
    "Lexicon",
    "ground_truth",
    "score",
    "score_objects",
]
