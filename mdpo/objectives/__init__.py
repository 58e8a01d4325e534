"""Preference objectives: which branches each compares, its terms over their rewards, and what they cost.

objective.py   an objective, and what follows from its branches
presets.py     the published ones by name, each with its equation and source
spelled.py     the setting `objective`: a name, or terms spelled out
table.py       the presets' packed tokens and what they ask of a row, as a table
"""

from .objective import Objective
from .presets import PRESETS, mdpo
from .spelled import objective_of, read_objective
from .table import rows

__all__ = ["PRESETS", "Objective", "mdpo", "objective_of", "read_objective", "rows"]
