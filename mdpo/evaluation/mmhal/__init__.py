"""MMHal-Bench (Sun et al. 2023, arXiv 2309.14525), rated by a judge.

files.py     the official template and the responses, checked
ratings.py   the judge's prompt, its ratings, and the official sums
run.py       mdpo evaluate mmhal
"""

from .ratings import FIELDS, TYPES, messages, parse, read_template, summarize

__all__ = ["FIELDS", "TYPES", "messages", "parse", "read_template", "summarize"]
