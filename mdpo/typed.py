"""What somebody typed, before it is looked for: text that files and logs can hold, and paths."""

import re
from pathlib import Path

from mdpo.shown import shown_text


def is_text(text: str) -> bool:
    """Whether a file, a path and a log can all contain it: no NUL, and no half of a character (bytes that are not
    UTF-8).
    """
    return re.search(r"[\x00\ud800-\udfff]", text) is None


def path_problem(text: str) -> str | None:
    """What is wrong with a path before anybody looks for it, and what to do; None if nothing is. An empty one, such as
    an unset variable of a shell leaves, would be the working directory.
    """
    if not text.strip():
        return "the path is empty; give one"
    try:
        Path(text).expanduser()
    except RuntimeError:
        start = shown_text(repr(text), 80)
        return f"the home directory that {start} begins with is not known here; write the path out"
    return None
