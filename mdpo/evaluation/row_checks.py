"""Whether rows, as a processor makes them, are rows for the model: before the first is scored or trained on."""

import logging
from typing import Any

import torch
from torch import nn

from mdpo.data import PreferenceDataset
from mdpo.errors import InputError
from mdpo.models import branch_logps, encode_images
from mdpo.models.folder import short
from mdpo.models.logps import unwrap
from mdpo.packing import PackedBatch, family_of, pack

_log = logging.getLogger(__name__)


def check_rows(model: nn.Module, processor: Any, dataset: PreferenceDataset | None) -> None:
    """Whether the model has an embedding for every token of the rows, and features for every placeholder of the first
    row with images, which is read and encoded once.

    Raises InputError that names the token and its row, or what differs.
    """
    if dataset is None or not len(dataset):
        return
    _check_vocabulary(model, processor, dataset)
    _check_branches(model, dataset)
    index = dataset.first_with_images()
    if index is not None:
        _check_images(model, dataset, index)


def _check_vocabulary(model: nn.Module, processor: Any, dataset: PreferenceDataset) -> None:
    size = _vocabulary(model)
    largest, index = dataset.largest_token_id()
    if largest >= size:
        token = processor.tokenizer.convert_ids_to_tokens(int(largest))
        raise InputError(
            f"{dataset.rows[index].where}: token {token!r} has id {largest}, but the model's embeddings have "
            f"{size} rows; call model.resize_token_embeddings(len(tokenizer)) and train them, or use the "
            "tokenizer that was saved with the model"
        )
    if len(processor.tokenizer) > size:
        _log.warning(
            "the tokenizer has %d tokens and the model has embeddings for %d; no row uses the others",
            len(processor.tokenizer),
            size,
        )


def _check_branches(model: nn.Module, dataset: PreferenceDataset) -> None:
    """Packing refuses a branch that outgrows the model's rotary positions; here before training, and with the row
    named.
    """
    limit = family_of(model).max_branch_tokens
    longest, index = dataset.longest_branch()
    if limit is not None and longest > limit:
        raise InputError(
            f"{dataset.rows[index].where}: its longest branch has {longest} tokens, more than the {limit} from "
            "which on the model's rotary positions change with the length, which the branches of a packed row "
            f"share; set max_length: {limit}, {dataset.smaller_pictures(limit)}or drop the row"
        )


def _vocabulary(model: nn.Module) -> int:
    base: Any = unwrap(model)
    return min(len(base.get_input_embeddings().weight), len(base.get_output_embeddings().weight))


@torch.no_grad()
def _check_images(model: nn.Module, dataset: PreferenceDataset, index: int) -> None:
    example = dataset[index]
    device = next(parameter.device for parameter in model.parameters())
    if max(example.prompt_ids) >= _vocabulary(model):  # the tokens around an image are the processor's
        raise InputError(
            f"{dataset.rows[index].where}: the processor puts token id {max(example.prompt_ids)} around images, "
            f"but the model's embeddings have {_vocabulary(model)} rows; use the processor that was saved with "
            "the model"
        )
    try:
        batch = pack([example], model).to(device)
        if isinstance(batch, PackedBatch):
            encode_images(model, batch)
        else:  # which encodes them in its own forward
            branch_logps(model, batch)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise InputError(
            f"{dataset.rows[index].where}: the processor's images do not fit the model ({short(error)}); use the "
            "processor that was saved with the model, with its image size, patch_size and num_additional_image_tokens"
        ) from error
