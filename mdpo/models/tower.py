"""What the vision tower is called with: sizes of pictures are read on the host, and the numbers made of them sent
along.

A tower that is handed its grids on the GPU reads them back to lay out its work, and waits for all that is queued there.
So ``PackedBatch`` keeps them on the host, and where a tower makes tensors of them (the Qwen-VL family), they are made
here by transformers' own functions and handed over under the names that ``get_image_features`` has for them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

# Shapes: I images, N patches of all images


def tower_inputs(base: PreTrainedModel, images: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of ``get_image_features``.

    base: a bare model. images: of a ``PackedBatch``; ``image_grid_thw`` (I, 3) is on the host, or beside the pixels.
    """
    grids, device = images.get("image_grid_thw"), images["pixel_values"].device
    if grids is None or grids.device == device:
        return dict(images)
    return {**images, **layout_of(base, grids, device)}


def layout_of(base: PreTrainedModel, grids: Tensor, device: torch.device) -> dict[str, Any]:
    """What a Qwen-VL tower makes of its grids, as arguments of ``get_image_features``.

    grids: (I, 3), on the host. device: the tower's.
    """
    tower: Any = base.model.visual
    lengths = {"cu_seqlens": get_vision_cu_seqlens(grids)}
    placed = {"position_ids": get_vision_position_ids(grids, tower.spatial_merge_size)}
    if hasattr(tower, "window_size"):  # Qwen2.5-VL
        placed["window_index"], lengths["cu_window_seqlens"] = get_vision_window_index(
            grids, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
    if hasattr(tower, "num_grid_per_side"):  # Qwen3-VL
        placed["interp_indices"], placed["interp_weights"] = get_vision_interpolation_indices_and_weights(
            grids,
            tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.spatial_merge_size,
        )
    counts = {}
    if is_flash_attention_requested(tower.config):  # which reads lengths on the GPU; other attentions cut by them
        longest = {"cu_seqlens": "max_seqlen", "cu_window_seqlens": "max_window_seqlen"}
        counts = {longest[name]: int(tensor.diff().max()) for name, tensor in lengths.items()}
        placed, lengths = placed | lengths, {}
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in placed.items()}
    return {f"image_{name}": value for name, value in (lengths | moved | counts).items()}
