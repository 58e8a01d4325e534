"""Idefics3, SmolVLM and InternVL: pictures cut into tiles that the tower encodes one by one.

Each tile is an image here, with placeholders of its own. What frames it in the prompt (row and column marks, start and
end tokens) is text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Untried, check_text_model, max_branch_tokens

# Shapes: S tiles, E examples of the processor's batch, C channels


@dataclass(frozen=True, slots=True)
class Idefics3:
    """Idefics3 and SmolVLM: a tile's patches are merged by ``scale_factor`` in both directions.

    ``pixel_values`` (E, S, C, height, width) and, where there is one, ``pixel_attention_mask`` (E, S, height, width).
    The model takes a tile of zeros for padding and drops it: so does this, and a blank image makes no tokens.
    """

    image_token_id: int
    max_branch_tokens: int | None
    patch_size: int
    scale_factor: int

    image_inputs = ("pixel_values",)
    host_inputs = ()
    carries_state = False

    @classmethod
    def from_config(cls, config) -> "Idefics3":
        check_text_model(config)
        return cls(
            image_token_id=config.image_token_id,
            max_branch_tokens=max_branch_tokens(config),
            patch_size=config.vision_config.patch_size,
            scale_factor=config.scale_factor,
        )

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        height, width = images["pixel_values"].shape[-2:]
        patches = (height // self.patch_size) * (width // self.patch_size)
        return [patches // self.scale_factor**2] * int(_real(images["pixel_values"]).sum())

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        pixels = images["pixel_values"]
        mask = images.get("pixel_attention_mask")
        # The processor's is int64, a third of what the pixels take; the model only asks where it is not zero.
        mask = torch.ones_like(pixels[:, :, 0], dtype=torch.bool) if mask is None else mask.bool()
        real = _real(pixels)
        pairs = zip(pixels[real].split(1), mask[real].split(1), strict=True)
        return [{"pixel_values": tile[None], "pixel_attention_mask": seen[None]} for tile, seen in pairs]

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        return torch.arange(len(prompt_ids))[None]


@dataclass(frozen=True, slots=True)
class InternVL:
    """InternVL: a tile's patches are merged by 1 / ``downsample_ratio`` in both directions.

    ``pixel_values`` (S, C, height, width), the tiles of all images.
    """

    image_token_id: int
    max_branch_tokens: int | None
    patch_size: tuple[int, int]
    downsample_ratio: float

    image_inputs = ("pixel_values",)
    host_inputs = ()
    carries_state = False

    @classmethod
    def from_config(cls, config) -> "InternVL":
        check_text_model(config)
        if config.vision_config.model_type != "internvl_vision" or config.vision_feature_select_strategy != "default":
            raise Untried(
                f"an 'internvl' model with the vision tower {config.vision_config.model_type!r} and "
                f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} has not been tried in a "
                "packed row"
            )
        return cls(
            image_token_id=config.image_token_id,
            max_branch_tokens=max_branch_tokens(config),
            patch_size=tuple(config.vision_config.patch_size),
            downsample_ratio=config.downsample_ratio,
        )

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        count, _, height, width = images["pixel_values"].shape
        rows, columns = height // self.patch_size[0], width // self.patch_size[1]
        return [int(rows * self.downsample_ratio) * int(columns * self.downsample_ratio)] * count

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{"pixel_values": tile} for tile in images["pixel_values"].split(1)]

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        return torch.arange(len(prompt_ids))[None]


def _real(pixels: Tensor) -> Tensor:
    """(E, S, C, height, width) → (E, S) bool, True for the tiles that are not all zero."""
    return pixels.flatten(2).any(-1)
