"""The paper's tables and figures in the miniature world of `bench.digits`, with error bars: `python -m bench.study`.

items.py         what is asked: each table and figure as rows of settings
runs.py          one run, with questions.py's data
results.py       all runs, and what is read off them by statistics.py
report.py        STUDY.md, with charts.py
readme.py        the table of bench/README.md
size.py          how long all of it takes
own_answers.py   `mdpo loop` on a model's own answers, in the same world
results/         what is committed
"""
