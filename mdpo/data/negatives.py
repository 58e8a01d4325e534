"""Rejected images: what stands in for the image where the chosen answer should become unlikely.

A negative is a function of the image, a random generator seeded by (seed, example id[, epoch]) and a source of other
images, so that policy and reference see the same one and a cache stays valid. Made from the PIL image, before the
processor, at the image's own size, so that grids and padding come out the same. To add one, put it into NEGATIVES.
"""

import hashlib
import math
import random
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Negative = Callable[[Image.Image, random.Random, Callable[[int], Image.Image]], Image.Image]

_ATTEMPTS = 10


def generator(seed: int, example_id: str, epoch: int | None) -> random.Random:
    """The example's random generator: the same in every process and run. epoch None: one negative for all epochs."""
    key = f"{seed}\0{example_id}\0{'' if epoch is None else epoch}".encode()
    return random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big"))


def random_resized_crop(image: Image.Image, rng: random.Random, scale: tuple[float, float]) -> Image.Image:
    """Keeps a random ``scale`` share of the area, aspect 3/4 to 4/3, resized back to the image's size.

    The distribution is that of torchvision's RandomResizedCrop. A crop of one flat colour (padding) is drawn again.
    """
    crop = image
    for _ in range(_ATTEMPTS):
        crop = image.crop(_crop_box(image.width, image.height, rng, scale))
        if any(low != high for low, high in crop.getextrema()):
            break
    return crop.resize(image.size, Image.Resampling.BILINEAR)


def _crop_box(width: int, height: int, rng: random.Random, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    # A very flat or tall image: the central crop of the nearest aspect that fits.
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _crop_0_20(image: Image.Image, rng: random.Random, other: Callable[[int], Image.Image]) -> Image.Image:
    return random_resized_crop(image, rng, (0.01, 0.2))


def _crop_20_50(image: Image.Image, rng: random.Random, other: Callable[[int], Image.Image]) -> Image.Image:
    return random_resized_crop(image, rng, (0.2, 0.5))


def _random_image(image: Image.Image, rng: random.Random, other: Callable[[int], Image.Image]) -> Image.Image:
    """Another row's image."""
    return other(rng.getrandbits(63)).resize(image.size, Image.Resampling.BILINEAR)


def _moco_v2(image: Image.Image, rng: random.Random, other: Callable[[int], Image.Image]) -> Image.Image:
    """MoCo v2's augmentation (arXiv 2003.04297): crop 20–100%, colour jitter, grey, blur, flip."""
    image = random_resized_crop(image, rng, (0.2, 1.0))
    if rng.random() < 0.8:
        jitter = [_enhance(ImageEnhance.Brightness), _enhance(ImageEnhance.Contrast), _enhance(ImageEnhance.Color), _hue]
        rng.shuffle(jitter)
        for change in jitter:
            image = change(image, rng)
    if rng.random() < 0.2:
        image = ImageOps.grayscale(image).convert("RGB")
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _enhance(kind) -> Callable[[Image.Image, random.Random], Image.Image]:
    return lambda image, rng: kind(image).enhance(rng.uniform(0.6, 1.4))


def _hue(image: Image.Image, rng: random.Random) -> Image.Image:
    shift = round(rng.uniform(-0.1, 0.1) * 255)
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda h: (h + shift) % 256), saturation, value)).convert("RGB")


NEGATIVES: dict[str, Negative] = {
    "crop_0_20": _crop_0_20,
    "crop_20_50": _crop_20_50,
    "random_image": _random_image,
    "moco_v2": _moco_v2,
}
