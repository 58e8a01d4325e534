"""Writes the tables of settings and objectives into mdpo/README.md: ``python -m bench.render.settings_table``."""

from dataclasses import fields

from bench.blocks import fill, rewrite
from mdpo.objectives import rows
from mdpo.own_settings import OwnRunSettings, OwnTrainerSettings, default_text

PAGE = "mdpo/README.md"


def updated(text: str) -> str:
    """The page's text with its tables made anew from what the program itself reads."""
    return fill(fill(text, "settings", settings()), "objectives", objectives())


def settings() -> list[str]:
    """A row for each setting of our own: name, default, help."""
    own = [field for kind in (OwnRunSettings, OwnTrainerSettings) for field in fields(kind)]
    lines = [f"| `{f.name}` | {default_text(f)} | {f.metadata['help']} |" for f in own]
    return ["| setting | default | |", "|---|---|---|", *lines]


def objectives() -> list[str]:
    """A row for each preset: its branches, what they cost and what they need."""
    lines = [f"| `{r.name}` | {', '.join(r.branches)} | {r.packed:,} | {r.unshared:,} | {r.brings} |" for r in rows()]
    return ["| objective | branches | packed | unshared | a row needs |", "|---|---|---|---|---|", *lines]


if __name__ == "__main__":
    rewrite(PAGE, updated)
