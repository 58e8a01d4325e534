"""Model and data → what takes memory, and the settings that fit a budget. Arithmetic alone: nothing is allocated."""

from .choose import Plan, choose, smallest
from .footprint import Footprint, Setup, footprint
from .lengths import Examples, from_lengths, log_normal
from .shapes import SHAPES, Adaptation, ModelShape, read_shape
from .size import parse_size
from .table import table

__all__ = [
    "SHAPES",
    "Adaptation",
    "Examples",
    "Footprint",
    "ModelShape",
    "Plan",
    "Setup",
    "choose",
    "footprint",
    "from_lengths",
    "log_normal",
    "parse_size",
    "read_shape",
    "smallest",
    "table",
]
