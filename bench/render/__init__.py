"""From the records to what is read. No number here is typed.

__main__.py   `python -m bench.render`
report.py     RESULTS.md
targets.py    the ratios that are stated, and what has to be reached
plots.py      a picture an operation
readme.py     the table of the first page
against.py    two commits side by side
"""
