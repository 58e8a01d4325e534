"""Names for what a branch shows the model: by them a reference's log-probs are kept, and an image is known again."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .readings import Response


def branch_digest(prompt_ids: Sequence[int], images: bytes, response: Response) -> str:
    """images: their digests, one behind the other."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in (prompt_ids, response.ids):
        digest.update(array("q", [len(ids), *ids]))
    if response.weights is not None:
        digest.update(array("d", [len(response.weights), *response.weights]))
    digest.update(images)
    return digest.hexdigest()


def image_digest(image: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(image.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
