"""What a model answers, and how likely it finds the answers of others."""

from .generate import generate
from .score import score

__all__ = ["generate", "score"]
