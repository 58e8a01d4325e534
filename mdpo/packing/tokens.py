"""One preference example as token ids and processed images: what data makes and packing lays out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceTokens:
    """A preference pair, ready to be packed.

    id: names the example in every error, log line and cache record.
    prompt_ids: the prompt with its image placeholders already expanded, one id per image feature.
    chosen_ids, rejected_ids: the responses, each ending in the EOS token that is scored.
    images: what the processor returned for the prompt's images (``pixel_values``, ``image_grid_thw``, …), or None.
    rejected_images: the same for what stands in their place (negative), or several of them (negative, negative_2, …);
        None where the example has none. Each has to expand to the same ``prompt_ids``.
    contrast_ids: the answer that is right for the first negative, as ``chosen_ids``; None where the example has none.
    imageless_prompt_ids: the prompt as the model reads it without images; None: ``prompt_ids`` without its
    placeholders. chosen_weights, rejected_weights: how much each token of these responses counts in their log-probs;
    None: 1 each.
    """

    id: str
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    images: Mapping[str, Tensor] | None = None
    rejected_images: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None
    contrast_ids: Sequence[int] | None = None
    imageless_prompt_ids: Sequence[int] | None = None
    chosen_weights: Sequence[float] | None = None
    rejected_weights: Sequence[float] | None = None

    @property
    def negatives(self) -> Sequence[Mapping[str, Tensor]]:
        """The rejected images, also where there is one, or none."""
        if self.rejected_images is None:
            return ()
        return (self.rejected_images,) if isinstance(self.rejected_images, Mapping) else self.rejected_images

    @property
    def packed_length(self) -> int:
        """Tokens of its row as mDPO's branches: P + R_w + R_l, and P + R_w once more with a rejected image."""
        length = len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)
        if self.rejected_images is not None:
            length += len(self.prompt_ids) + len(self.chosen_ids)
        return length
