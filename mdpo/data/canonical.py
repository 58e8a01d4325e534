"""Rows written in the canonical format, and the pictures that go with them."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.outputs import make_folder, remove_empty, whole_file

from .images import ImageSource, StoredImage
from .messages import text_columns
from .picture_files import open_picture
from .problem import clipped
from .row import PreferenceRow, PromptRow

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


def prompt_columns(row: PromptRow, place: Callable[[ImageSource], str]) -> dict[str, Any]:
    """The columns that read back as the question. place: the path that is written for an image."""
    columns: dict[str, Any] = {"id": row.id, "images": [place(image) for image in row.images]}
    return columns | text_columns(row.prompt, row.plain, row.tools, row.template_kwargs)


def preference_columns(row: PreferenceRow, place: Callable[[ImageSource], str]) -> dict[str, Any]:
    """The columns that read back as the row. place: as for ``prompt_columns``."""
    columns = prompt_columns(row, place) | {"chosen": row.chosen, "rejected": row.rejected}
    if row.rejected_images:
        columns["rejected_images"] = [place(image) for image in row.rejected_images]
    beside = {name: getattr(row, name) for name in ("contrast", "chosen_weights", "rejected_weights")}
    return columns | {name: value for name, value in beside.items() if value}


class Pictures:
    """The pictures of rows that are written to a file in ``folder``: below it, so that the folder can be moved.

    Those that lie elsewhere are put into ``folder``/images, under names that follow from their content; as hard links
    where the file system has them, so that they take no room.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._resolved = folder.resolve()
        self._placed: dict[Path, str] = {}
        self._written: list[Path] = []
        self._made: list[Path] = []

    def place(self, image: ImageSource) -> str:
        """The path, below the folder, under which the image is found from now on.

        Raises InputError where its file cannot be read, OutputError where it cannot be written.
        """
        if isinstance(image, StoredImage):
            return self.write(image.read())
        assert isinstance(image, Path), "a file's rows hold paths or stored images"
        if image.is_relative_to(self._resolved):
            return str(image.relative_to(self._resolved))
        if image not in self._placed:
            try:
                with open_picture(image) as file:
                    data = file.read()
            except OSError as error:
                problem = f"cannot be read: {error.strerror or error}"
                raise InputError(f"image {clipped(str(image))} {problem}; restore it, or drop its rows") from error
            self._placed[image] = self.write(data, image)
        return self._placed[image]

    def write(self, data: bytes, source: Path | None = None) -> str:
        """Puts a file's bytes into the folder. source: the file, to link to. Returns and raises as ``place``."""
        suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".image")
        target = self.folder / "images" / (hashlib.blake2b(data, digest_size=12).hexdigest() + suffix)
        if not target.exists():
            self._made += make_folder(target.parent)
            if source is None or not _linked(source, target):
                with whole_file(target) as part:
                    part.write_bytes(data)
            self._written.append(target)
        return str(target.relative_to(self.folder))

    def remove(self) -> None:
        """Takes back what was written for rows that came to nothing."""
        for path in self._written:
            path.unlink(missing_ok=True)
        remove_empty(self._made)


def _linked(source: Path, target: Path) -> bool:
    with suppress(OSError, NotImplementedError):  # another file system, or one without links
        os.link(source, target, follow_symlinks=False)
        return True
    return False
