"""Pairwise evaluation by human raters, blind.

page.py    the page that raters see
sheet.py   the sheet with its key, and the tally of the answers
run.py     mdpo evaluate human sheet | tally
"""

from .sheet import ANSWER_SCHEMA, key_path, make_sheet, tally, write_sheet

__all__ = ["ANSWER_SCHEMA", "key_path", "make_sheet", "tally", "write_sheet"]
