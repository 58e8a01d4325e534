"""Rows that take more tokens than they may, and the size of pictures with which they would not."""

import copy
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import ProcessorMixin

from .image_facts import RowFacts
from .image_tokens import ImageTokens
from .lengths import ANSWERS, PROMPT, added_by_images
from .picture_size import PictureSize, size_pictures, sizes_of
from .row_store import Rows
from .token_store import Tokens


@dataclass(frozen=True, slots=True)
class SmallerPictures:
    """Counts rows again as they would be with smaller pictures.

    tokens: before images are expanded and answers cut at ``max_length``. facts: of the rows' images.
    """

    rows: Rows
    facts: RowFacts
    tokens: Tokens
    processor: ProcessorMixin
    max_length: int | None

    def advice(self, chosen: np.ndarray, lengths: Callable[[np.ndarray, np.ndarray], np.ndarray], limit: int) -> str:
        """ "set max_pixels: N, with which … fit, ", and nothing where no size of pictures helps.

        chosen: (n,) indices of the rows that are longer than ``limit``. lengths: of rows, from their (n, parts) tokens
        and their indices, as ``limit`` counts them.
        """
        sizes = sizes_of(self.processor)
        if sizes is None or not sizes.choices():
            return ""
        choices = sizes.choices()

        def fit(pixels: int, which: np.ndarray) -> np.ndarray:
            return lengths(self._parts(which, pixels), which) <= limit

        helped = chosen[fit(choices[0], chosen)]
        if not len(helped):
            return ""
        fitting = bisect_left(choices, True, key=lambda pixels: not fit(pixels, helped).all())
        fits = (
            "it fits"
            if len(chosen) == 1
            else "they fit"
            if len(helped) == len(chosen)
            else f"{len(helped)} of them fit"
        )
        return f"set max_pixels: {choices[fitting - 1]}, with which {fits}, "

    def _parts(self, which: np.ndarray, pixels: int) -> np.ndarray:
        """(n, parts) tokens of the rows ``which``, (n,), with pictures of at most so many pixels."""
        sized: Any = copy.copy(self.processor)
        sized.image_processor = copy.copy(sized.image_processor)
        size_pictures(sized, PictureSize(max_pixels=pixels))
        parts = self.tokens.lengths()[which]
        parts[:, PROMPT] += added_by_images(self.rows.select(which), self.facts, ImageTokens(sized))
        if self.max_length is not None:
            parts[:, ANSWERS] = np.minimum(parts[:, ANSWERS], self.max_length - parts[:, [PROMPT]])
        return parts
