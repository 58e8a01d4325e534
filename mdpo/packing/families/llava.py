"""LLaVA-1.5, Bunny, LLaVA-NeXT and LLaVA-OneVision: a CLIP or SigLIP tower and a projector in front of a text model."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdpo.errors import InputError

from .base import Untried, check_text_model, max_branch_tokens

# Shapes: I images, C channels, S tiles of the image that has most, P prompt tokens

_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


@dataclass(frozen=True, slots=True)
class Llava:
    """LLaVA-1.5 and whatever is LLaVA in transformers' terms (Bunny): every image is a fixed grid of patches.

    ``pixel_values`` (I, C, height, width).
    """

    image_token_id: int
    max_branch_tokens: int | None
    patch_size: int
    extra_tokens: int  # beside the patches: the tower's class token kept, or a patch dropped in its place

    image_inputs = ("pixel_values",)
    host_inputs = ()
    carries_state = False

    @classmethod
    def from_config(cls, config) -> "Llava":
        check_text_model(config)
        return cls(
            image_token_id=config.image_token_id,
            max_branch_tokens=max_branch_tokens(config),
            patch_size=config.vision_config.patch_size,
            extra_tokens=_extra_tokens(config),
        )

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        count, _, height, width = images["pixel_values"].shape
        return [(height // self.patch_size) * (width // self.patch_size) + self.extra_tokens] * count

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{"pixel_values": image} for image in images["pixel_values"].split(1)]

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        return torch.arange(len(prompt_ids))[None]


@dataclass(frozen=True, slots=True)
class LlavaNext:
    """LLaVA-NeXT (1.6): the whole image and the tiles of its best-fitting resolution, padding cut off again.

    ``pixel_values`` (I, S, C, side, side), the whole image first, filled up to S; ``image_sizes`` (I, 2), height and
    width before processing. A row of patches ends in a newline feature, so an image takes side² patches plus
    rows · (columns + 1).
    """

    image_token_id: int
    max_branch_tokens: int | None
    side: int  # of a tile, pixels
    patches: int  # along the side of a tile
    resolutions: tuple[tuple[int, int], ...]  # height and width, pixels

    image_inputs = ("pixel_values", "image_sizes")
    host_inputs = ("image_sizes",)
    carries_state = False

    @classmethod
    def from_config(cls, config) -> "LlavaNext":
        check_text_model(config)
        if _extra_tokens(config):
            raise Untried(
                f"a {config.model_type!r} model with vision_feature_select_strategy "
                f"{config.vision_feature_select_strategy!r} on a {config.vision_config.model_type!r} tower leaves "
                "no square grid of patches"
            )
        vision = config.vision_config
        return cls(
            image_token_id=config.image_token_id,
            max_branch_tokens=max_branch_tokens(config),
            side=vision.image_size,
            patches=vision.image_size // vision.patch_size,
            resolutions=tuple((height, width) for height, width in config.image_grid_pinpoints),
        )

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        return [self._length(height, width) for height, width in images["image_sizes"].tolist()]

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        sizes = images["image_sizes"]
        # The fill is another one in every batch. Without it, tiles of several images are simply concatenated.
        tiles = [1 + rows * columns for rows, columns in map(self._grid, sizes.tolist())]
        return [
            {"pixel_values": pixels[:count], "image_sizes": size}
            for pixels, count, size in zip(images["pixel_values"], tiles, sizes.split(1), strict=True)
        ]

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        return torch.arange(len(prompt_ids))[None]

    def _grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of tiles: the resolution that keeps most of the image, the smallest among equals.

        As in transformers' ``select_best_resolution``, to the rounding.
        """
        height, width = size

        def merit(resolution: tuple[int, int]) -> tuple[int, int]:
            scale = min(resolution[1] / width, resolution[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - resolution[0] * resolution[1]

        best = max(self.resolutions, key=merit)
        return best[0] // self.side, best[1] // self.side

    def _length(self, height: int, width: int) -> int:
        """As in the model's ``pack_image_features``."""
        rows, columns = self._unpadded(height, width)
        return self.patches**2 + rows * (columns + 1)

    def _unpadded(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that are image and not fill: as in the model's ``unpad_image``, to the
        rounding.
        """
        rows, columns = (tiles * self.patches for tiles in self._grid((height, width)))
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return rows, columns


@dataclass(frozen=True, slots=True)
class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: as LLaVA-NeXT, and the patches of a large image are scaled down to those of ``most_tiles``
    tiles.

    Pictures that the image processor was given as those of one prompt (``batch_num_images`` above 1) make one tile each
    instead, which the model tells from a whole batch's prompts and not from a picture: refused.
    """

    most_tiles: int

    @classmethod
    def from_config(cls, config) -> "LlavaOnevision":
        most = re.fullmatch(r"anyres_max_(\d+)", config.vision_aspect_ratio)
        if most is None or not int(most[1]):
            raise Untried(
                f"a 'llava_onevision' model with vision_aspect_ratio {config.vision_aspect_ratio!r} has not been "
                "tried in a packed row"
            )
        tiled = LlavaNext.from_config(config)
        return cls(
            tiled.image_token_id, tiled.max_branch_tokens, tiled.side, tiled.patches, tiled.resolutions, int(most[1])
        )

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        together = images.get("batch_num_images")
        if together is not None and (together > 1).any():
            raise InputError(
                f"batch_num_images is {together.tolist()}, so they were not cut into tiles; give the image "
                "processor a plain list of them, images=[...]"
            )
        # Not super(): a dataclass with slots is a second class, which super() does not find.
        return LlavaNext.image_lengths(self, images)

    def _length(self, height: int, width: int) -> int:
        """As in the model's ``pack_image_features``, to the rounding."""
        rows, columns = self._unpadded(height, width)
        ratio = math.sqrt(rows * columns / (self.most_tiles * self.patches**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return self.patches**2 + rows * (columns + 1)


def _extra_tokens(config) -> int:
    tower = config.vision_config.model_type
    if tower not in _CLASS_TOKENS:
        raise Untried(
            f"a {config.model_type!r} model with the vision tower {tower!r} has not been tried in a packed row"
        )
    return _CLASS_TOKENS[tower] - (config.vision_feature_select_strategy == "default")
