"""What a model's own forward is called with beside the tokens: images as the processor made them, and token types."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mdpo.errors import InputError
from mdpo.packing import Family, Separate

# Shapes: S sequences, L tokens of the longest


def model_inputs(
    base: PreTrainedModel,
    family: Family | Separate,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_lengths: Tensor,
    images: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The keywords of ``base.forward``, all on one device.

    input_ids, attention_mask: (S, L) int64. prompt_lengths: (S,) int64. images: of all sequences, one behind the other.

    Raises InputError for pixels under a name that the model does not read: it would answer without the picture.
    """
    parameters = inspect.signature(base.forward).parameters
    unread = [name for name, tensor in images.items() if tensor.is_floating_point() and name not in parameters]
    if unread:
        raise InputError(
            f"the image processor returns {', '.join(unread)}, which the forward of a {base.config.model_type!r} "
            "model does not take; use the processor that was saved with the model"
        )
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs |= {"use_cache": False, "return_dict": True}
    # An image processor may return more than the model reads, such as InternVL's num_patches.
    inputs |= {name: tensor for name, tensor in images.items() if name in parameters}
    image_type = (input_ids == family.image_token_id).long() * attention_mask
    if "mm_token_type_ids" in parameters:
        inputs["mm_token_type_ids"] = image_type
    if "token_type_ids" in parameters:
        response_type = family.response_type if isinstance(family, Separate) else None
        if response_type is None:
            inputs["token_type_ids"] = image_type
        else:
            behind = torch.arange(input_ids.shape[1], device=input_ids.device) >= prompt_lengths[:, None]
            inputs["token_type_ids"] = response_type * behind.long()
    return inputs
