"""Preference pairs from a model's own answers: drawn, ranked, paired."""

from .draw import sample
from .ranking import rank
from .records import Answer, Scored, read_answers, read_scored

__all__ = ["Answer", "Scored", "rank", "read_answers", "read_scored", "sample"]
