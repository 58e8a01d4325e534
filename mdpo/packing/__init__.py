"""Examples → micro-batches → one packed row."""

from .families import Family, family_of
from .layout import PackedBatch, pack
from .plan import plan
from .tokens import PreferenceTokens

__all__ = ["Family", "PackedBatch", "PreferenceTokens", "family_of", "pack", "plan"]
