"""Model and data → what takes memory, and the settings that fit a budget. Arithmetic alone: nothing is allocated."""

from .choose import Plan, choose, smallest
from .footprint import Footprint, Setup, footprint
from .lengths import Examples, from_lengths, log_normal
from .shapes import SHAPES, Adaptation, ModelShape, read_shape
from .size import AUTO, Memory, free_memory, memory_of, parse_size
from .table import table

__all__ = [
    "AUTO",
    "SHAPES",
    "Adaptation",
    "Examples",
    "Footprint",
    "Memory",
    "ModelShape",
    "Plan",
    "Setup",
    "choose",
    "footprint",
    "free_memory",
    "from_lengths",
    "log_normal",
    "memory_of",
    "parse_size",
    "read_shape",
    "smallest",
    "table",
]
