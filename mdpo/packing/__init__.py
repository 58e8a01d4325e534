"""Examples → micro-batches → one packed row, or sequences of their own.

tokens.py      an example: token ids and processed images
branches.py    what a branch is called: response@picture
readings.py    what a model reads of an example
plan.py        which examples make a step, and which of them share a micro-batch
families/      how each model family is read
checks.py      what is wrong with an example, however it is laid out
digests.py     names for what a branch shows the model
batch.py       what a micro-batch is to all that computes with it
blocks.py      which tokens stand where on a packed row
forks.py       where it forks, for layers that carry a state
layout.py      pack: examples on one row, prefixes shared
separate.py    each branch a sequence of its own
part.py        some of a micro-batch as one of its own
"""

from .batch import Batch
from .branches import MDPO_BRANCHES, branch_of, cost_of
from .families import Family, Separate, family_of, family_of_config
from .forks import Forks
from .layout import PackedBatch, pack
from .part import part
from .plan import plan
from .separate import SeparateBatch
from .tokens import PreferenceTokens

__all__ = [
    "MDPO_BRANCHES",
    "Batch",
    "Family",
    "Forks",
    "PackedBatch",
    "PreferenceTokens",
    "Separate",
    "SeparateBatch",
    "branch_of",
    "cost_of",
    "family_of",
    "family_of_config",
    "pack",
    "part",
    "plan",
]
