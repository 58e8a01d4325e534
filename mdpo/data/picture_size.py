"""How large pictures get: ``max_pixels`` and ``min_pixels``, or the image processor's own names for it.

    Qwen-VL              resizes a picture to between two numbers of pixels     size: {shortest_edge, longest_edge}
    Idefics3, SmolVLM    scale every picture to one longest edge, then cut it   size: {longest_edge}, do_image_splitting
    InternVL             cuts a picture into a number of tiles                  min_patches, max_patches
    LLaVA, LLaVA-NeXT    sizes that the model was built with                    none

What is set is set on the image processor itself: it is saved with it, and whoever counts tokens or makes pixels asks
it.
"""

import argparse
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from mdpo.errors import InputError

from .image_tokens import image_settings


@dataclass(frozen=True, slots=True)
class PictureSize:
    """Settings of how large pictures are when the model sees them. None leaves the processor's.

    max_pixels, min_pixels: of one picture; a larger one is made smaller, a smaller one larger, in its proportions.
        Thumbnails beside a picture's tiles are not counted.
    image_processor_kwargs: the same under the names that the image processor has, such as ``{"max_patches": 6}``.

    Raises InputError, "KEY: what is wrong; what to do", for a value that cannot be used.
    """

    max_pixels: int | None = None
    min_pixels: int | None = None
    image_processor_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("max_pixels", "min_pixels"):
            value = getattr(self, name)
            if value is not None and not _is_count(value):
                raise InputError(f"{name} is {str(value)[:40]}; expected a whole number above 0")
        if self.max_pixels is not None and self.min_pixels is not None and self.min_pixels > self.max_pixels:
            raise InputError(f"min_pixels: {self.min_pixels} is more than max_pixels {self.max_pixels}; lower it")
        if self.image_processor_kwargs is not None and not isinstance(self.image_processor_kwargs, Mapping):
            kind = type(self.image_processor_kwargs).__name__
            raise InputError(f"image_processor_kwargs: a {kind}; give the image processor's settings by name")

    @classmethod
    def of(cls, settings: Any) -> "PictureSize":
        """From a run's settings, a ``RunConfig``."""
        return cls(settings.max_pixels, settings.min_pixels, settings.image_processor_kwargs)

    def values(self) -> dict[str, Any]:
        """Those of these settings that are given, by name."""
        named = {
            "max_pixels": self.max_pixels,
            "min_pixels": self.min_pixels,
            "image_processor_kwargs": self.image_processor_kwargs,
        }
        return {name: value for name, value in named.items() if value}


def size_options(options: argparse.Namespace) -> PictureSize:
    """The options of ``mdpo.commands.rows.add_size_options`` as ``PictureSize``.

    Raises InputError if --image-processor-kwargs is not a JSON object.
    """
    kwargs = options.image_processor_kwargs
    if kwargs is not None:
        try:
            kwargs = json.loads(kwargs)
        except (ValueError, RecursionError) as error:
            raise InputError(f"--image-processor-kwargs: not JSON ({error}); give an object, such as {{}}") from error
    return PictureSize(options.max_pixels, options.min_pixels, kwargs)


def size_pictures(processor: ProcessorMixin, size: PictureSize) -> ProcessorMixin:
    """Sets the size on the processor's image processor, in place; returns the processor.

    Args:
        processor: of a model, as ``mdpo.models.load_processor`` gives it.
        size: what is None in it stays as it is; a bound that passes the processor's other bound moves that one too.

    Raises:
        InputError: the image processor has no such setting; with what it has instead.
    """
    asked = size.values()
    if not asked:
        return processor
    source: Any = processor
    images, name = source.image_processor, next(iter(asked))
    sizes = sizes_of(processor)
    if sizes is None:
        raise InputError(f"{name}: {_fixed(images)}")
    if size.max_pixels is not None or size.min_pixels is not None:
        changes = sizes.between(size.min_pixels, size.max_pixels)
        both = sorted(changes.keys() & (size.image_processor_kwargs or {}).keys())
        if both:
            raise InputError(
                f"image_processor_kwargs: {both[0]} is what {name} sets on this processor; keep one of them"
            )
        _set(images, changes)
    _set(images, _checked(size.image_processor_kwargs or {}, sizes))
    low, high = sizes.bounds()
    if low > high:
        raise InputError(f"image_processor_kwargs: the least, {low}, is more than the most, {high}; set both")
    return processor


def size_settings(processor: ProcessorMixin) -> dict[str, Any]:
    """What the image processor has in its own names for the size of pictures, as JSON can hold it."""
    source: Any = processor
    kind = _kind(source.image_processor)
    found = {name: getattr(source.image_processor, name) for name in (() if kind is None else kind.own)}
    return {name: value if isinstance(value, (bool, int)) else dict(value) for name, value in found.items()}


def sizes_of(processor: ProcessorMixin) -> "Sizes | None":
    """How the processor's pictures can be sized; None where they cannot."""
    source: Any = processor
    kind = _kind(source.image_processor)
    return None if kind is None else kind(processor)


class Sizes(ABC):
    """How a kind of image processor sizes pictures. own: its settings by name, with the keys of those that are
    mappings.
    """

    own: Mapping[str, tuple[str, ...]]

    def __init__(self, processor: ProcessorMixin) -> None:
        source: Any = processor
        self.images = source.image_processor
        self.name = type(self.images).__name__
        self.settings = image_settings(processor)

    @abstractmethod
    def between(self, least: int | None, most: int | None) -> dict[str, Any]:
        """The image processor's settings for pictures of at least and at most so many pixels."""

    @abstractmethod
    def bounds(self) -> tuple[int, int]:
        """The least and the most in force, in the image processor's own unit."""

    @abstractmethod
    def choices(self) -> Sequence[int]:
        """Values of ``max_pixels`` that differ in their tokens, ascending, up to the one in force."""

    def _at_least(self, most: int | None, smallest: int, what: str) -> None:
        if most is not None and most < smallest:
            raise InputError(
                f"max_pixels: {most} is less than the {smallest} pixels of {what}; give at least {smallest}"
            )


class _Pixels(Sizes):
    """Qwen-VL, whose ``size`` calls numbers of pixels edges. A token is a square of pixels."""

    own = {"size": ("shortest_edge", "longest_edge")}

    def between(self, least: int | None, most: int | None) -> dict[str, Any]:
        self._at_least(most, self._token, "one token")
        low, high = _bounds(least, most, *self.bounds())
        return {"size": {"shortest_edge": low, "longest_edge": high}}

    def bounds(self) -> tuple[int, int]:
        return self.images.size["shortest_edge"], self.images.size["longest_edge"]

    def choices(self) -> Sequence[int]:
        return range(self._token, self.images.size["longest_edge"] + 1, self._token)

    @property
    def _token(self) -> int:
        return (self.images.patch_size * self.images.merge_size) ** 2


class _LongestEdge(Sizes):
    """Idefics3 and SmolVLM: the longest edge of every picture, which is then cut into square tiles."""

    own = {"size": ("longest_edge",), "do_image_splitting": ()}

    def between(self, least: int | None, most: int | None) -> dict[str, Any]:
        if least is not None:
            raise InputError(
                f"min_pixels: {self.name} scales every image, a small one as well, to the longest edge that "
                "max_pixels sets; leave it out"
            )
        if not self.images.do_image_splitting:
            raise InputError(
                f"max_pixels: do_image_splitting is false, so every image is resized to {self._tile} x "
                f"{self._tile}; leave it out"
            )
        self._at_least(most, self._tile**2, "one tile")
        return {"size": {"longest_edge": math.isqrt(most or 0) // self._tile * self._tile}}

    def bounds(self) -> tuple[int, int]:
        return self.images.size["longest_edge"], self.images.size["longest_edge"]

    def choices(self) -> Sequence[int]:
        if not self.images.do_image_splitting:
            return ()
        return [(tiles * self._tile) ** 2 for tiles in range(1, self.images.size["longest_edge"] // self._tile + 1)]

    @property
    def _tile(self) -> int:
        return self.images.max_image_size["longest_edge"]


class _Patches(Sizes):
    """InternVL: how many tiles a picture is cut into, which its processor asks for on its own account."""

    own = {"min_patches": (), "max_patches": ()}

    def between(self, least: int | None, most: int | None) -> dict[str, Any]:
        if not self._cuts:
            size = self.images.size
            raise InputError(
                f"{'min_pixels' if most is None else 'max_pixels'}: crop_to_patches is false, so every image is "
                f"resized to {size['height']} x {size['width']}; leave it out"
            )
        self._at_least(most, self._tile, "one tile")
        low, high = _bounds(
            None if least is None else -(-least // self._tile),
            None if most is None else most // self._tile,
            *self.bounds(),
        )
        return {"min_patches": low, "max_patches": high}

    def bounds(self) -> tuple[int, int]:
        return self.images.min_patches, self.images.max_patches

    def choices(self) -> Sequence[int]:
        return range(self._tile, self._tile * self.images.max_patches + 1, self._tile) if self._cuts else ()

    @property
    def _cuts(self) -> bool:
        return self.settings.get("crop_to_patches", self.images.crop_to_patches)

    @property
    def _tile(self) -> int:
        return self.images.size["height"] * self.images.size["width"]


def _kind(images: Any) -> type[Sizes] | None:
    """By the settings that the image processor declares: classes of many names share them."""
    declared = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    if "max_pixels" in declared and all(edge in images.size for edge in _Pixels.own["size"]):
        return _Pixels
    if "max_image_size" in declared and "longest_edge" in images.size:
        return _LongestEdge
    return _Patches if "max_patches" in declared and "height" in images.size else None


def _bounds(least: int | None, most: int | None, low: int, high: int) -> tuple[int, int]:
    """The two bounds, of which the one that is given takes the other along where it passes it."""
    if most is None:
        return (low, high) if least is None else (least, max(high, least))
    return min(low if least is None else least, most), most


def _fixed(images: Any) -> str:
    """How an image processor whose pictures cannot be sized has them, and what to do."""
    name, grids = type(images).__name__, getattr(images, "image_grid_pinpoints", None)
    if grids:
        shown = ", ".join(f"{height} x {width}" for height, width in grids[:3])
        return (
            f"{name} takes pictures at resolutions that the model was built with (image_grid_pinpoints: {shown}, "
            "…), a small picture at a small one; leave it out, and make large pictures smaller beforehand"
        )
    size = getattr(images, "crop_size", None) or getattr(images, "size", None) or {}
    known = all(edge in size for edge in ("height", "width"))
    taken = f"{size['height']} x {size['width']}" if known else "the model's own size"
    return f"{name} resizes every image to {taken}; leave it out"


def _checked(kwargs: Mapping[str, Any], sizes: Sizes) -> Mapping[str, Any]:
    """Raises InputError for a setting that the image processor has not, or whose value it cannot use."""
    for name, value in kwargs.items():
        where = f"image_processor_kwargs: {str(name)[:40]}"
        if name not in sizes.own:
            raise InputError(
                f"{where} is not a setting by which {sizes.name} sizes images; it has {', '.join(sizes.own)}, and "
                "what else it has belongs to the model"
            )
        keys = sizes.own[name]
        if keys:
            sound = (
                isinstance(value, Mapping) and value and set(value) <= set(keys) and all(map(_is_count, value.values()))
            )
            wanted = f"whole numbers above 0 by the names {', '.join(keys)}"
        elif name == "do_image_splitting":
            sound, wanted = isinstance(value, bool), "true or false"
        else:
            sound, wanted = _is_count(value), "a whole number above 0"
        if not sound:
            raise InputError(f"{where} is {str(value)[:60]}; expected {wanted}")
    return kwargs


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _set(images: Any, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        before = getattr(images, name)
        setattr(images, name, type(before)(**(dict(before) | dict(value))) if isinstance(value, Mapping) else value)
