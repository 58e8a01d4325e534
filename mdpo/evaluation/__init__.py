"""What a model answers, and how likely it finds the answers of others."""

from .generate import generate
from .score import row_logps, score

__all__ = ["generate", "row_logps", "score"]
