"""Rows → examples → token ids and pixels."""

from .dataset import DataOptions, PreferenceDataset
from .negatives import NEGATIVES
from .rows import PreferenceRow, PromptRow, parse_rows, read_rows
from .sources import data_files
from .text_options import TextOptions

__all__ = [
    "DataOptions",
    "NEGATIVES",
    "PreferenceDataset",
    "PreferenceRow",
    "PromptRow",
    "TextOptions",
    "data_files",
    "parse_rows",
    "read_rows",
]
