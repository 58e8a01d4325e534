"""Every family tiny and random, and the same five preference examples for each of them."""

import torch
from torch import Tensor

from mdpo.packing import PreferenceTokens, family_of
from tests import tiny

FAMILIES = {
    "llava-llama": tiny.llava,
    "llava-llama-gqa": lambda: tiny.llava("llama-gqa"),
    "llava-mistral": lambda: tiny.llava("mistral"),
    "llava-mistral-window": lambda: tiny.llava("mistral-window"),
    "llava-qwen2": lambda: tiny.llava("qwen2"),
    "bunny": tiny.bunny,
    "llava_next": tiny.llava_next,
    "llava_next-siglip-qwen2": lambda: tiny.llava_next("qwen2", "siglip"),
    "llava_onevision": tiny.llava_onevision,
    "qwen2_vl": tiny.qwen2_vl,
    "qwen2_vl-window": lambda: tiny.qwen2_vl(**tiny.WINDOW),
    "qwen2_5_vl": tiny.qwen2_5_vl,
    "qwen2_5_vl-window": lambda: tiny.qwen2_5_vl(**tiny.WINDOW),
    "glm4v": tiny.glm4v,
    "qwen3_vl": tiny.qwen3_vl,
    "qwen3_vl_moe": tiny.qwen3_vl_moe,
    "qwen3_5": tiny.qwen3_5,
    "qwen3_5_moe": tiny.qwen3_5_moe,
    "idefics3": tiny.idefics3,
    "smolvlm": tiny.smolvlm,
    "gemma4": tiny.gemma4,
    "internvl": tiny.internvl,
    "internvl-qwen3": lambda: tiny.internvl("qwen3"),
    "internvl-window": lambda: tiny.internvl("qwen3-window"),
}
IMAGE = 3  # the placeholder's id in every tiny model


def pixels(kind: str, generator: torch.Generator, grid: tuple[int, int] = (4, 6)) -> dict[str, Tensor]:
    """One picture as the family's image processor returns it; another grid is another number of tokens."""
    height, width = grid
    if kind.startswith(("qwen", "glm")):
        values = torch.randn(height * width, 3 * 2 * 4 * 4, generator=generator)
        return {"pixel_values": values, "image_grid_thw": torch.tensor([[1, height, width]])}
    if kind == "gemma4":  # the rest of 40 patches is fill
        places = torch.cartesian_prod(torch.arange(width), torch.arange(height))
        values = torch.rand(1, 40, 3 * 8 * 8, generator=generator)
        values[:, len(places) :] = 0
        fill = torch.full((40 - len(places), 2), -1)
        return {"pixel_values": values, "image_position_ids": torch.cat([places, fill])[None]}
    if kind.startswith(("llava_next", "llava_onevision")):
        # Five tiles are the most that a resolution has; the rest of them is fill that the model must not see.
        values = torch.randn(1, 5, 3, tiny.SIDE, tiny.SIDE, generator=generator)
        return {"pixel_values": values, "image_sizes": torch.tensor([[11 * height, 11 * width]])}
    tiles = 1 if kind.startswith(("llava", "bunny")) else height * width // 8
    values = torch.randn(tiles, 3, tiny.SIDE, tiny.SIDE, generator=generator)
    if kind in ("idefics3", "smolvlm"):
        mask = torch.ones(1, tiles, tiny.SIDE, tiny.SIDE, dtype=torch.int64)
        mask[:, 0, :, tiny.SIDE // 2 :] = 0  # part of a tile can be padding
        return {"pixel_values": values[None], "pixel_attention_mask": mask}
    return {"pixel_values": values}


def join(*images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several pictures of one prompt."""
    tiles = int("pixel_attention_mask" in images[0])  # the dimension they stand in
    return {name: torch.cat([image[name] for image in images], dim=tiles) for name in images[0]}


def examples(kind: str) -> list[PreferenceTokens]:
    """An ordinary row, plain DPO, two images in one prompt, text alone, and a row that shares the first one's image."""
    g = torch.Generator().manual_seed(1)
    grids = ((4, 6), (4, 6), (8, 4), (8, 4), (4, 4))
    first, crop, second, second_crop, third = (pixels(kind, g, grid) for grid in grids)
    family = family_of(FAMILIES[kind]())

    def prompt(*images):
        ids = [20, 21]
        for length in (length for image in images for length in family.image_lengths(image)):
            ids += [IMAGE] * length + [22]
        return [*ids, 23, 24]

    return [
        PreferenceTokens("ordinary", prompt(first), [30, 31, 32, 1], [33, 1], first, crop),
        PreferenceTokens("plain-dpo", prompt(second), [40, 1], [41, 42, 43, 44, 1], second),
        PreferenceTokens(
            "two-images", prompt(third, second), [50, 51, 1], [52, 1], join(third, second), join(third, second_crop)
        ),
        PreferenceTokens("text-only", prompt(), [60, 61, 62, 1], [63, 1]),
        PreferenceTokens("one-token", prompt(first), [1], [1], first, crop),
    ]
