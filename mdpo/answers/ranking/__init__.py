"""Ways of scoring answers, and what all of them are held to."""

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
