"""Rows → examples → token ids and pixels."""

from .dataset import PreferenceDataset
from .mixture import mix, rows_of_run
from .negatives import NEGATIVES
from .options import DataOptions
from .picture_size import PictureSize, size_pictures
from .read import parse_rows, read_rows
from .row import PreferenceRow, PromptRow
from .row_store import Rows
from .sources import data_files
from .text_options import TextOptions

__all__ = [
    "DataOptions",
    "NEGATIVES",
    "PictureSize",
    "PreferenceDataset",
    "PreferenceRow",
    "PromptRow",
    "Rows",
    "TextOptions",
    "data_files",
    "mix",
    "parse_rows",
    "read_rows",
    "rows_of_run",
    "size_pictures",
]
