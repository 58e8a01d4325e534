"""Rows → examples → token ids and pixels."""

from .dataset import DataOptions, PreferenceDataset
from .negatives import NEGATIVES
from .rows import PreferenceRow, PromptRow, parse_rows, read_rows
from .sources import data_files

__all__ = [
    "DataOptions", "NEGATIVES", "PreferenceDataset", "PreferenceRow", "PromptRow", "data_files", "parse_rows", "read_rows",
]  # fmt: skip
