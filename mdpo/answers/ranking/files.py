"""Scored answers as they are written, and the file beside them that says how the scores came about."""

import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.data.canonical import Pictures
from mdpo.evaluation.answering import settings_path
from mdpo.evaluation.files import as_json
from mdpo.outputs import whole_files, write_part

from ..records import Scored, scored_columns

_PACKAGES = ("multimodal-dpo", "torch", "transformers", "peft", "openai")


def write_scored(output: Path, scored: Sequence[Scored], about: Mapping[str, Any]) -> None:
    """Writes the answers to ``output``, a line each, and ``about`` with the versions of packages to
    ``output``.settings.json: both or neither. Pictures that lie elsewhere are put beside them.

    Raises OutputError where the disk is full or refuses.
    """
    pictures = Pictures(output.parent)
    try:
        text = "".join(json.dumps(scored_columns(each, pictures), ensure_ascii=False) + "\n" for each in scored)
        with whole_files(output, settings_path(output)) as (lines, sidecar):
            write_part(lines, text)
            write_part(sidecar, as_json({**about, "environment": dict(_versions())}))
    except BaseException:
        pictures.remove()
        raise


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # an extra, or a checkout that is not installed
            continue
