"""Rejected images: what stands in for the image where the chosen answer should become unlikely.

A negative is a function of the image, a random generator seeded by (seed, example id[, epoch][, which negative]) and
the other images it may draw on, so that policy and reference see the same one and a cache stays valid. Made from the
PIL image, before the processor, at the image's own size, so that grids and padding come out the same. To add one, put
it into NEGATIVES.

Which to take: crop_0_20 is the paper's, but about neutral on models of 2025 and later; try crop_20_50 and random_image
beside it.
SymMPO (arXiv 2506.11712) and IC-VCO (arXiv 2605.31312) find edited and similar pictures (nearest_image) best, then
random ones, then crops and black. In this project's world whose images are all of one kind, CHAIR_s is 3.8 ± 1.1
points lower with random_image than with crop_0_20 (bench/study/results/STUDY.md, Table 3). In its world of six themes
it is 6.4 ± 1.9 higher with random_image, and 14.5 ± 1.1 lower with crop_20_50 (bench/results/scenes/SCENES.md).
"""

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mdpo.errors import InputError


class Sources(Protocol):
    """Images beside the one that a negative stands in for."""

    def other(self, number: int) -> Image.Image:
        """An image that is not in the row, from another row that ``number`` chooses; not one that an earlier negative
        of the same image took, while there are others."""
        ...

    def nearest(self) -> Image.Image:
        """The picture of another row that looks most like this image; not one that an earlier negative took."""
        ...

    def own(self) -> Image.Image:
        """The row's own ``rejected_images`` entry for this image and this negative."""
        ...


Negative = Callable[[Image.Image, random.Random, Sources], Image.Image]

_ATTEMPTS = 10  # torchvision's
_FLAT_ATTEMPTS = 200
_PATCHES, _MASKED = 24, 0.3
_FLAT_RANGE = 8  # of 255: padding that went through JPEG is not quite one colour


def generator(seed: int, example_id: str, epoch: int | None, which: int = 1) -> random.Random:
    """The example's random generator: the same in every process and run.

    epoch: None for one negative in all epochs. which: of several negatives, from 1.
    """
    key = f"{seed}\0{example_id}\0{'' if epoch is None else epoch}"
    if which > 1:  # the first is as it was when there was one alone
        key += f"\0{which}"
    return random.Random(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big"))


@dataclass(frozen=True, slots=True)
class Mixture:
    """One of several negatives per image, by weight. names: in NEGATIVES."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    def check_several(self, count: int) -> None:
        """Raises InputError where ``count`` negatives of one image would be the same picture."""
        same = [name for name in self.names if name in SAME_EACH_TIME]
        if count > 1 and same:
            raise InputError(
                f"negative: {same[0]} is the same image every time, and the objective compares {count} rejected "
                "images of a row; choose one that is drawn, such as random_image, or own"
            )

    def __call__(self, image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
        # A single negative draws nothing first: it is the same as before there were mixtures.
        name = self.names[0] if len(self.names) == 1 else rng.choices(self.names, self.weights)[0]
        return NEGATIVES[name](image, rng, sources)


def parse_negative(spec: str) -> Mixture:
    """A negative by name, or a mixture such as ``crop_0_20:0.5+black:0.5``.

    Raises InputError for an unknown name or a weight that is no positive number.
    """
    names, weights = [], []
    for part in spec.split("+"):
        name, colon, weight = part.partition(":")
        names.append(name.strip())
        if names[-1] not in NEGATIVES:
            raise InputError(f"negative: {names[-1]!r} is unknown; choose from {', '.join(NEGATIVES)}")
        try:
            weights.append(float(weight) if colon or "+" in spec else 1.0)
        except ValueError:
            weights.append(math.nan)
        if not 0 < weights[-1] < math.inf:
            raise InputError(
                f"negative: {spec!r} needs a weight above 0 for {names[-1]}, as in crop_0_20:0.5+black:0.5"
            )
    return Mixture(tuple(names), tuple(weights))


def random_resized_crop(image: Image.Image, rng: random.Random, scale: tuple[float, float]) -> Image.Image:
    """Keeps a random ``scale`` share of the area, aspect 3/4 to 4/3, resized back to the image's size.

    The distribution is that of torchvision's RandomResizedCrop, which the mDPO authors use. A crop of one flat colour
    (padding) is drawn again, unless the whole image is flat.
    """
    crop = image.crop(_crop_box(image.width, image.height, rng, scale))
    if _is_flat(crop) and not _is_flat(image):
        for _ in range(_FLAT_ATTEMPTS):
            crop = image.crop(_crop_box(image.width, image.height, rng, scale))
            if not _is_flat(crop):
                break
    return crop.resize(image.size, Image.Resampling.BILINEAR)


def _is_flat(image: Image.Image) -> bool:
    bands: Any = image.getextrema()  # RGB: a pair per band
    return all(high - low <= _FLAT_RANGE for low, high in bands)


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


def _crop_0_20(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    return random_resized_crop(image, rng, (0.01, 0.2))


def _crop_20_50(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    return random_resized_crop(image, rng, (0.2, 0.5))


def _random_image(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    """Another row's image."""
    return sources.other(rng.getrandbits(63)).resize(image.size, Image.Resampling.BILINEAR)


def _moco_v2(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    """MoCo v2's augmentation (arXiv 2003.04297): crop 20–100%, colour jitter, grey, blur, flip."""
    image = random_resized_crop(image, rng, (0.2, 1.0))
    if rng.random() < 0.8:
        jitter = [
            _enhance(ImageEnhance.Brightness),
            _enhance(ImageEnhance.Contrast),
            _enhance(ImageEnhance.Color),
            _hue,
        ]
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
    shifted = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")


def _black(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    """A black image. Idefics3 and SmolVLM take an image whose *processed* pixels are all exactly 0 for padding and drop
    it; black is far from 0 once it is normalised, so this holds for every processor with ``do_normalize``."""
    return Image.new("RGB", image.size)


def _diffusion_noise(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    """The image after 500 of the 1,000 forward diffusion steps of VCD (arXiv 2311.16922, §3.2; sigmoid schedule)."""
    betas = 1e-5 + (0.5e-2 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, 1000)))
    kept = np.prod(1 - betas[:501])
    # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
    noise = np.random.RandomState(rng.getrandbits(32)).standard_normal((image.height, image.width, 3))
    pixels = np.asarray(image, dtype=np.float64) / 127.5 - 1
    noisy = math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise
    return Image.fromarray(np.clip((noisy + 1) * 127.5, 0, 255).round().astype(np.uint8))


def _nearest_image(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    """The most similar picture of another row, by the model's own tower: a hard negative, as rDPO (Re-Align,
    arXiv 2502.13146) and SymMPO (arXiv 2506.11712) retrieve theirs."""
    return sources.nearest().resize(image.size, Image.Resampling.BILINEAR)


def _masked_patches(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    """30% of the image's square patches in its mean colour, 24 of them along the shorter side: OPA-DPO's blockwise mask
    and share (arXiv 2501.09695, mask_single_image and CoPO_mask_ratio of zhyang2226/OPA-DPO), 14 of LLaVA's 336 pixels.
    """
    pixels = np.array(image)
    side = max(1, round(min(image.size) / _PATCHES))
    rows, columns = -(-image.height // side), -(-image.width // side)
    masked = rng.sample(range(rows * columns), max(1, round(_MASKED * rows * columns)))
    mean = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    for patch in masked:
        top, left = side * (patch // columns), side * (patch % columns)
        pixels[top : top + side, left : left + side] = mean
    return Image.fromarray(pixels)


def _own(image: Image.Image, rng: random.Random, sources: Sources) -> Image.Image:
    """The row's ``rejected_images`` entry."""
    return sources.own().resize(image.size, Image.Resampling.BILINEAR)


NEGATIVES: dict[str, Negative] = {
    "crop_0_20": _crop_0_20,
    "crop_20_50": _crop_20_50,
    "random_image": _random_image,
    "moco_v2": _moco_v2,
    "black": _black,
    "diffusion_noise": _diffusion_noise,
    "masked_patches": _masked_patches,
    "nearest_image": _nearest_image,
    "own": _own,
}
NEEDS_MODEL = "nearest_image"  # whose tower says which pictures are alike
SAME_EACH_TIME = frozenset({"black"})  # those that neither draw nor take another picture each time
