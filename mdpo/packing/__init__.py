"""Examples → micro-batches → one packed row, or sequences of their own."""

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
