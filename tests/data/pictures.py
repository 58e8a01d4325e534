"""Pictures as bytes, and rows that name them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from mdpo.data import parse_rows


def noise(height: int = 40, width: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def rows(folder: Path, *names: str) -> list:
    return parse_rows([{"img_path": n, "prompt": "q?", "chosen": "a", "rejected": "b"} for n in names], folder)
