"""What packing has to know of a model family: how an image becomes tokens, and how positions are counted.

A family is on the list because a test holds its packed step against three separate Hugging Face forwards. Everything
else is refused: packing relies on plain causal attention, and a model that mixes tokens in another way would train
on wrong numbers without a word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mdpo.errors import InputError

# Shapes: P prompt tokens, I images, D position axes (1, or 3 for time, height and width)

_TEXT_MODELS = ("llama", "mistral", "phi", "qwen2")

_REFUSED = {
    "paligemma": "its image and prefix tokens attend to each other in both directions",
    "gemma3": "its image tokens attend to each other in both directions",
    "mllama": "its images enter through cross-attention layers",
    "qwen3_5": "its linear-attention layers carry state from token to token",
}


class Family(Protocol):
    """How one model family turns images into tokens and tokens into positions."""

    image_token_id: int
    max_branch_tokens: int | None

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        """The number of placeholder tokens each image takes."""
        ...

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """One dict per image, so that images that several examples share are encoded once."""
        ...

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        """Position ids of a prompt, (D, P) int64. A response continues at their maximum plus one on every axis."""
        ...


@dataclass(frozen=True, slots=True)
class Llava:
    """LLaVA-1.5 and whatever is LLaVA in transformers' terms (Bunny): every image is a fixed grid of patches."""

    image_token_id: int
    max_branch_tokens: int | None
    patch_size: int
    extra_tokens: int  # +1 where the tower's class token is kept

    @classmethod
    def from_config(cls, config) -> "Llava":
        vision = config.vision_config
        has_class_token = vision.model_type == "clip_vision_model"
        return cls(
            image_token_id=config.image_token_id,
            max_branch_tokens=_max_branch_tokens(config),
            patch_size=vision.patch_size,
            extra_tokens=int(has_class_token and config.vision_feature_select_strategy == "full"),
        )

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        count, _, height, width = images["pixel_values"].shape
        return [(height // self.patch_size) * (width // self.patch_size) + self.extra_tokens] * count

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{"pixel_values": image} for image in images["pixel_values"].split(1)]

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        return torch.arange(len(prompt_ids))[None]


@dataclass(frozen=True, slots=True)
class Qwen2VL:
    """Qwen2.5-VL: images of any size, and multimodal rotary positions (time, height, width).

    The positions are those of the family's ``get_rope_index`` (Qwen2-VL, arXiv 2409.12191, §2.1); that function sees
    whole batches and knows no forks, so they are counted here branch by branch and held against it in the tests.
    """

    image_token_id: int
    max_branch_tokens: int | None
    merge_size: int

    @classmethod
    def from_config(cls, config) -> "Qwen2VL":
        return cls(config.image_token_id, _max_branch_tokens(config), config.vision_config.spatial_merge_size)

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
        for flag, length in zip(*map(Tensor.tolist, torch.unique_consecutive(is_image, return_counts=True)), strict=True):
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


_FAMILIES = {"llava": Llava, "qwen2_5_vl": Qwen2VL}


def family_of(model) -> Family:
    """The family of a Hugging Face model, bare or wrapped by PEFT.

    Raises InputError where the model cannot be packed exactly or has not been tried, with the reason.
    """
    config = model.config
    kind = config.model_type
    if kind in _REFUSED:
        raise InputError(f"model family {kind!r} cannot share a packed prefix: {_REFUSED[kind]}")
    if kind not in _FAMILIES:
        raise InputError(
            f"model family {kind!r} has not been tried in a packed row; supported: {', '.join(sorted(_FAMILIES))}"
        )
    text = config.text_config.model_type
    if kind == "llava" and text not in _TEXT_MODELS:
        raise InputError(
            f"a LLaVA around the text model {text!r} has not been tried in a packed row; "
            f"supported: {', '.join(_TEXT_MODELS)}"
        )
    return _FAMILIES[kind].from_config(config)


def _max_branch_tokens(config) -> int | None:
    """The window beyond which some layer no longer sees the start of its branch, or None.

    The packed attention is causal without a window: exact as long as no branch outgrows the window.
    """
    text = config.text_config
    layer_types = getattr(text, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    return getattr(text, "sliding_window", None)
