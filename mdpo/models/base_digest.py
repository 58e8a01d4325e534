"""Which base model an adapter belongs to: a digest of a folder's weights that outlives sharding, renaming and dtype."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mdpo.errors import InputError

from .folder import short

_ROWS = 8  # of each tensor, spread evenly: enough to tell two trainings apart, in milliseconds a file
_COLUMNS = 256


def weights_digest(folder: str | Path) -> str | None:
    """A digest of the safetensors weights in ``folder``; None where there are none.

    A sample of every tensor is read, rounded to bf16, and its name is left out: so the same weights have one digest
    whether they are sharded, saved in another dtype or under the names of another version of transformers.

    Raises InputError for a damaged file.
    """
    samples = set()
    for path in sorted(Path(folder).glob("*.safetensors")):
        if path.name.startswith("adapter_"):
            continue
        try:
            with safe_open(path, "pt") as file:
                samples |= {_sample(file.get_slice(name)) for name in file.keys()}
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {short(error)}; copy it again") from error
    if not samples:
        return None
    return hashlib.blake2b(b"".join(sorted(samples)), digest_size=16).hexdigest()


def _sample(tensor: Any) -> bytes:
    shape = tensor.get_shape()
    digest = hashlib.blake2b(json.dumps(shape).encode(), digest_size=16)
    if not shape:
        rows = [tensor[...]]
    elif len(shape) == 1:
        rows = [tensor[:_COLUMNS]]
    else:
        rows = [tensor[row : row + 1, :_COLUMNS] for row in range(0, shape[0], -(-shape[0] // _ROWS))]
    for row in rows:
        whole = row.to(torch.bfloat16) if row.is_floating_point() else row
        digest.update(whole.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
