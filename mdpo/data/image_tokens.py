"""What takes an image placeholder's place in the prompt, from the image's size alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import PixtralProcessor, ProcessorMixin

_PROBE = (64, 64)


def image_settings(processor: ProcessorMixin) -> dict[str, Any]:
    """What the processor passes to its image processor on its own account: InternVL's has it cut tiles, for one."""
    source: Any = processor  # whose _merge_kwargs the counting of tokens in transformers goes through as well
    settings = source._merge_kwargs(source.valid_processor_kwargs)["images_kwargs"]
    if isinstance(processor, PixtralProcessor):  # which has its pictures cut to what the model merges into one token
        return settings | {"patch_size": processor.patch_size * processor.spatial_merge_size}
    return settings


class ImageTokens:
    """The token ids of an image of a given size, (M,) int32.

    Most families repeat the placeholder, and their processor counts how often. Others frame it: InternVL with a token
    at either end, Idefics3 with one per tile, Pixtral with one per row. For those the processor itself expands an empty
    image, once per grid, or once per size where it says nothing of grids.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor: Any = processor
        self._settings = image_settings(processor)
        self._by_size: dict[tuple[int, int], np.ndarray] = {}
        self._by_grid: dict[Any, np.ndarray] = {}
        self._framed: bool | None = None

    def __call__(self, height: int, width: int) -> np.ndarray:
        """height, width: in pixels. Raises ValueError where the image processor refuses the size."""
        size = (height, width)
        if size not in self._by_size:
            if self._framed is None:
                self._framed = bool((self._expanded(*_PROBE) != self.processor.image_token_id).any())
            self._by_size[size] = self._framed_tokens(*size) if self._framed else self._repeated(*size)
        return self._by_size[size]

    def expand(self, prompt_ids: Sequence[int] | np.ndarray, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
        """The prompt with every placeholder replaced by its image's tokens.

        sizes: (height, width) of each, in order.
        """
        ids = np.asarray(prompt_ids, dtype=np.int32)
        places = np.flatnonzero(ids == self.processor.image_token_id)
        pieces, start = [], 0
        for place, size in zip(places, sizes, strict=True):
            pieces += [ids[start:place], self(*size)]
            start = place + 1
        return np.concatenate([*pieces, ids[start:]])

    def _repeated(self, height: int, width: int) -> np.ndarray:
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return np.full(int(counted["num_image_tokens"][0]), self.processor.image_token_id, dtype=np.int32)

    def _framed_tokens(self, height: int, width: int) -> np.ndarray:
        grids = getattr(self.processor.image_processor, "get_number_of_image_patches", None)
        grid = (height, width) if grids is None else grids(height, width, dict(self._settings))
        if grid not in self._by_grid:
            self._by_grid[grid] = self._expanded(height, width)
        return self._by_grid[grid]

    def _expanded(self, height: int, width: int) -> np.ndarray:
        image = Image.new("RGB", (width, height), (200, 100, 50))
        inputs = self.processor(text=[self.processor.image_token], images=[image], add_special_tokens=False)
        ids = np.asarray(inputs["input_ids"][0], dtype=np.int32)
        # PaliGemma's processor lays out the whole prompt, images first: what follows from BOS on is the template's
        # here.
        ends = np.flatnonzero(ids == self.processor.tokenizer.bos_token_id)
        return ids[: ends[0]] if len(ends) else ids
