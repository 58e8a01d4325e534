"""``mdpo merge`` and ``mdpo convert``: a model folder in, another out."""

import argparse

from mdpo.errors import InputError
from mdpo.shown import say

from .bunny import convert_bunny
from .llava import convert_llava
from .merge import merge


def run_merge(options: argparse.Namespace) -> None:
    """``mdpo merge``."""
    say(f"wrote {merge(options.adapter, options.destination, options.base)}")


def run_convert(options: argparse.Namespace) -> None:
    if options.layout == "bunny":
        if options.vision_tower is not None:
            raise InputError("--vision-tower: a Bunny checkpoint brings its own; leave it out")
        folder = convert_bunny(options.source, options.destination)
    else:
        folder = convert_llava(options.source, options.destination, vision_tower=options.vision_tower)
    say(f"wrote {folder}")
