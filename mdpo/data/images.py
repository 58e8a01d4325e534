"""Opening images: RGB, upright, and whole, or an error that names the row."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageOps
from tqdm.auto import tqdm

from mdpo.errors import InputError

from .rows import PreferenceRow


def open_image(source: Path | Image.Image, where: str) -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says. Raises InputError where it is missing or damaged."""
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"{where}: image {source} does not exist; check the row and image_dir")
    try:
        image = Image.open(source) if isinstance(source, Path) else source
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = source if isinstance(source, Path) else "in memory"
        raise InputError(f"{where}: image {name} does not decode: {error}; replace it or drop the row") from error


def check_images(rows: Sequence[PreferenceRow]) -> dict[Path, tuple[int, int]]:
    """Decodes every distinct image file once, so that a damaged one is found before training.

    Returns (height, width) by path. Raises InputError for the first row, in order, whose image is bad.
    """
    first_use = {}
    for row in rows:
        for image in row.images:
            if isinstance(image, Path):
                first_use.setdefault(image, row.where)

    def size(item: tuple[Path, str]) -> tuple[int, int]:
        image = open_image(*item)
        return image.height, image.width

    # Threads are enough: Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        sizes = tqdm(pool.map(size, first_use.items()), "checking images", len(first_use), leave=False, disable=None)
        return dict(zip(first_use, sizes, strict=True))
