"""Qwen2-VL to Qwen3.5, and GLM-4.1V: images of any size, and multimodal rotary positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import max_branch_tokens

# Shapes: P prompt tokens, I images, N patches of all images


@dataclass(frozen=True, slots=True)
class QwenVL:
    """``pixel_values`` (N, values of a patch), ``image_grid_thw`` (I, 3): patches in time, height and width.

    The positions (time, height, width) are those of the family's ``get_rope_index`` (Qwen2-VL, arXiv 2409.12191, §2.1;
    for images the four generations agree). That function sees whole batches and knows no forks, so they are counted
    here branch by branch and held against it in the tests.
    """

    image_token_id: int
    max_branch_tokens: int | None
    merge_size: int

    image_inputs = ("pixel_values", "image_grid_thw")
    host_inputs = ("image_grid_thw",)
    carries_state = False

    @classmethod
    def from_config(cls, config) -> "QwenVL":
        return cls(config.image_token_id, max_branch_tokens(config), config.vision_config.spatial_merge_size)

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        return (images["image_grid_thw"].prod(-1) // self.merge_size**2).tolist()

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        grids = images["image_grid_thw"]
        patches = images["pixel_values"].split(grids.prod(-1).tolist())
        return [{"pixel_values": p, "image_grid_thw": g} for p, g in zip(patches, grids.split(1), strict=True)]

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        is_image = torch.tensor(prompt_ids) == self.image_token_id
        grids = iter([] if images is None else images["image_grid_thw"].tolist())
        pieces, position, row = [], 0, 0
        runs = torch.unique_consecutive(is_image, return_counts=True)
        for flag, length in zip(*map(Tensor.tolist, runs), strict=True):
            end = row + length
            while row < end:
                if flag:
                    time, height, width = next(grids)
                    height, width = height // self.merge_size, width // self.merge_size
                    piece = torch.cartesian_prod(torch.arange(time), torch.arange(height), torch.arange(width)).T
                    step = max(height, width)
                else:
                    piece = torch.arange(length).expand(3, -1)
                    step = length
                pieces.append(piece + position)
                position, row = position + step, row + piece.shape[1]
        return torch.cat(pieces, dim=1)


@dataclass(frozen=True, slots=True)
class Qwen35(QwenVL):
    """Qwen3.5, whose layers with linear attention carry states from token to token."""

    carries_state = True


@dataclass(frozen=True, slots=True)
class Glm4V(QwenVL):
    """GLM-4.1V, as Qwen2.5-VL where images are concerned. Its tower makes its layout of the grids itself, on its
    device.
    """

    host_inputs = ()
