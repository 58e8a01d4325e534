"""What can be typed after ``mdpo``: every command with its options and their help. Nothing here imports PyTorch.

later.py      a function by its name, imported when it is called
parser.py     argparse in one line and without a terminal's control characters; the whole program's parser
choices.py    the words that options may be set to
rows.py       options of commands that read rows, text and images
train.py      train, plan, merge, convert
data.py       data check, preview, sample
answers.py    generate, score, sample, rank, pairs, and the judge's options
evaluate.py   evaluate amber, object-halbench, mmhal, human
loop.py       loop, report
"""

from .parser import check_words, parse, program

__all__ = ["check_words", "parse", "program"]
