"""Gemma 4's small models, whose text model is causal everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Untried, max_branch_tokens

# Shapes: I images, N patches of the image that has most, V values of a patch, P prompt tokens


@dataclass(frozen=True, slots=True)
class Gemma4:
    """``pixel_values`` (I, N, V), ``image_position_ids`` (I, N, 2): where each patch stands, −1 for fill.

    The larger models' image tokens attend to each other in both directions, and some have experts beside the MLP.
    """

    image_token_id: int
    max_branch_tokens: int | None
    pooled: int  # patches that make one token

    image_inputs = ("pixel_values", "image_position_ids")
    host_inputs = ()
    carries_state = False

    @classmethod
    def from_config(cls, config) -> "Gemma4":
        text = config.text_config
        if text.use_bidirectional_attention:
            raise Untried("its image tokens attend to each other in both directions")
        if text.enable_moe_block:
            raise Untried("a 'gemma4' model with experts has not been tried in a packed row")
        return cls(config.image_token_id, max_branch_tokens(config), config.vision_config.pooling_kernel_size**2)

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        real = (images["image_position_ids"] != -1).all(-1)
        return (real.sum(-1) // self.pooled).tolist()

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        pieces = (images[name].split(1) for name in self.image_inputs)
        return [dict(zip(self.image_inputs, image, strict=True)) for image in zip(*pieces, strict=True)]

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        return torch.arange(len(prompt_ids))[None]
