"""Examples → micro-batches → one packed row."""

from .branches import MDPO_BRANCHES, branch_of
from .families import Family, family_of
from .layout import PackedBatch, pack
from .part import part
from .plan import plan
from .tokens import PreferenceTokens

__all__ = ["MDPO_BRANCHES", "Family", "PackedBatch", "PreferenceTokens", "branch_of", "family_of", "pack", "part", "plan"]
