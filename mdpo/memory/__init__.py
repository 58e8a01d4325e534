"""Model and data → what takes memory, and the settings that fit a budget. Arithmetic alone: nothing is allocated.

size.py          bytes as people write them, and as a card has them free
precision.py     in which numbers a model computes
shapes.py        what of a model decides its memory
pictures.py      how large a picture is when the model sees it
lengths.py       how long the examples are
layer.py         what a language layer keeps for its backward, by an equation
counted.py       the same, counted on any model
live.py          live bytes where no allocator keeps statistics
footprint.py     what a step takes at its fullest, part by part
constraints.py   what a configuration asks for, and leaves open
choose.py        the settings that fit: the most exact, then the fastest
automatic.py     what mdpo train chooses by itself on a GPU
allocator.py     how PyTorch's allocator cuts a GPU's memory
table.py         a plan as text
commands.py      mdpo plan, and mdpo train --memory
"""

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
