"""Ways of scoring answers, and what all of them are held to.

way.py         what every way has in common
rubric.py      what a judge rates by
pictures.py    images as a judge gets them
judge.py       a judge, by a rubric
objects.py     objects named, against those annotated
function.py    a Python function of the user's own
claims.py      what an answer says, asked back one by one
confirm.py     how sure a model is of yes
agreement.py   what an answer has in common with the others
rank.py        answers → scores, whichever way
length.py      whether scores reward length
summary.py     what a ranking comes to, for the terminal
files.py       scored answers as they are written
"""

from .agreement import Agreement
from .claims import Claims
from .confirm import confirm
from .files import write_scored
from .function import Function
from .judge import USUAL_TOKENS, Judged
from .length import LengthBias, length_bias, without_length
from .objects import Objects
from .rank import rank
from .rubric import SILKIE, Rubric
from .summary import counts, table
from .way import Way

__all__ = [
    "SILKIE",
    "USUAL_TOKENS",
    "Agreement",
    "Claims",
    "Function",
    "Judged",
    "LengthBias",
    "Objects",
    "Rubric",
    "Way",
    "confirm",
    "counts",
    "length_bias",
    "rank",
    "table",
    "without_length",
    "write_scored",
]
