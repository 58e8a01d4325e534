"""The blocks of the pages that a script writes, between ``<!-- NAME: … -->`` and ``<!-- /NAME -->``."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mdpo.outputs import write_text

ROOT = Path(__file__).parents[1]


def fill(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with other lines in its block of that name.

    Raises ValueError where the page does not have exactly one such block.
    """
    block = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- /{name} -->)"
    text = "\n".join(lines) + "\n"
    filled, count = re.subn(block, lambda found: found[1] + text + found[2], page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} blocks <!-- {name}: … --> … <!-- /{name} -->; expected one")
    return filled


def rewrite(page: str, updated: Callable[[str], str]) -> Path:
    """Brings a page up to date and returns its path. page: below the repository. updated: makes its text anew."""
    path = ROOT / page
    write_text(path, updated(path.read_text(encoding="utf-8")))
    return path
