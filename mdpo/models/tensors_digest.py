"""A digest of many tensors, hashed by all cores at once."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_PIECE = 2**23  # bytes: milliseconds of a thread, and little to hold of each; another number makes other digests


def tensors_digest(named: Iterable[tuple[str, Tensor]], *, threads: int | None = None) -> str:
    """A digest of (name, tensor) pairs in their order: names, shapes, dtypes and every byte.

    Tensors are cut into pieces of a fixed size, which are hashed each by itself; the digest is that of their digests,
    and so the same for any number of threads, on any device.

    threads: how many; None for one a core, up to 16.
    """
    digest = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1)) as pool:
        for part in pool.map(_hashed, _pieces(named)):
            digest.update(part)
    return digest.hexdigest()


def _pieces(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[bytes, Tensor]]:
    """(what it is a piece of, bytes) of every tensor; one without a number is a piece too."""
    for name, tensor in named:
        label = f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode()
        for piece in tensor.detach().contiguous().view(-1).view(torch.uint8).split(_PIECE):
            yield label, piece


def _hashed(labelled: tuple[bytes, Tensor]) -> bytes:
    label, piece = labelled
    digest = hashlib.blake2b(label, digest_size=16)
    digest.update(_on_host(piece).numpy().data)  # without Python's lock, as is the copy before it
    return digest.digest()


def _on_host(piece: Tensor) -> Tensor:
    if not piece.is_cuda:
        return piece
    # Each thread on a stream of its own, into pinned memory: at the speed of the bus, and several at once.
    stream = torch.cuda.Stream(piece.device)
    stream.wait_stream(torch.cuda.default_stream(piece.device))  # where the weights came from
    with torch.cuda.stream(stream):
        pinned = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
        pinned.copy_(piece, non_blocking=True)
    stream.synchronize()
    return pinned
