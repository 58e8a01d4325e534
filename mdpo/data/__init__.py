"""Rows → examples → token ids and pixels.

Reading
  sources.py           where rows come from: files, folders, saved datasets, the hub, memory
  json_lines.py        JSON, and JSON lines
  tables.py            Parquet and Hugging Face datasets
  columns.py           what the name of a column says: read, harmless, or an error
  formats.py           other people's columns → the canonical ones
  conversations.py     columns that hold prompt and answers together
  part_images.py       images inside the parts of a message
  messages.py          prompts and responses as chat messages
  image_sources.py     what a row gives as an image → where its bytes are
  limits.py            how much one row may hold
  problem.py           what is wrong with a row
  row.py               a checked row
  rows.py              records → checked rows
  read.py              read_rows and parse_rows
  mixture.py           several data sets in given shares
Keeping
  blob.py              bytes in memory or in a file
  row_store.py         rows outside of Python's objects
  row_files.py         rows in a folder
  cache.py             what is prepared once and kept beside the data
  seen.py              which texts came before
Images
  picture_files.py     the file, opened without following links
  picture_memory.py    what decoding takes, and a bound on it
  images.py            opening: RGB, upright, whole
  image_facts.py       every file decoded once
  picture_size.py      max_pixels and min_pixels
  image_tokens.py      what takes the place of an image's placeholder
  negatives.py         how a rejected image is made
  nearest.py           which images look alike
  rejected_images.py   the rejected images of all rows
Text
  text_options.py      settings that decide how rows become text
  template.py          conversations → text, by the chat template
  template_frames.py   what a template writes around the texts
  prompts.py           prompts as text
  rendered.py          prompts that contain a template's turns already
  special_tokens.py    text → token ids: one BOS, no EOS
  words.py             tokenising by words that came before
  spans.py             how much parts of an answer count
  token_weights.py     the same by token
  encode.py            messages → token ids
Together
  options.py           what of the rows is used, and how
  tokenise.py          the token ids of all rows
  workers.py           work shared among processes
  token_store.py       token ids in one flat file
  lengths.py           how many tokens each row takes
  too_long.py          rows that take more than they may
  dataset.py           PreferenceDataset, which the trainer reads
``mdpo data``
  commands.py          check, preview and sample
  check.py             a look at a whole file
  check_report.py      what the check shows
  canonical.py         rows written in the canonical format
  preview.py           a contact sheet
  sample.py            a seeded sample
  show.py              one row as the model sees it
"""

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
    "NEGATIVES",
    "DataOptions",
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
