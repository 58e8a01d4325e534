"""Which pictures of a data set look alike: the nearest ones of each, by the cosine of their embeddings."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch import Tensor

from .images import Use, content_digest
from .problem import other_pictures_missing
from .row_store import Rows

# (digests, a picture by its position) → (N, D) float32, as ``mdpo.models.image_embeddings.image_embeddings``.
Embed = Callable[[Sequence[str], Callable[[int], Mapping[str, Tensor]]], Tensor]

_SIMILARITIES = 2**25  # at a time: 128 MiB of float32
_SAME = 1e-5  # below 1: the same picture in another file, such as a PNG beside its BMP

# Shapes: N pictures, D features of each, K nearest ones


class Neighbours:
    """The pictures that look most like each picture of the rows, and are another one.

    rows: those with the pictures. process: what the image processor makes of the picture with this number in the rows'
    table. settings: how it does. count: negatives of every image.

    Raises RowError for a row without another picture, and for one whose picture is gone.
    """

    def __init__(
        self, rows: Rows, embed: Embed, process: Callable[[int], Mapping[str, Tensor]], settings: Any, count: int
    ) -> None:
        self.rows = rows
        numbers, places = np.unique(rows.images.numbers, return_index=True)
        order = np.argsort(places)  # as they come in the rows, whatever their numbers
        named: dict[str, int] = {}
        first: list[int] = []  # number of each content's first file
        content: dict[int, int] = {}  # which content a number has
        for number, place in zip(numbers[order].tolist(), places[order].tolist(), strict=True):
            row = rows[int(np.searchsorted(rows.images.ends, place, side="right"))]
            digest = _digest(content_digest(Use(rows.source(number), row.where, "images")), settings)
            if named.setdefault(digest, len(named)) == len(first):
                first.append(number)
            content[number] = named[digest]
        vectors = embed(list(named), lambda at: process(first[at])).numpy()
        different, picture = np.unique(first_alike(vectors), return_inverse=True)
        self._first = [first[at] for at in different.tolist()]  # number of each picture's first file
        self._picture = {number: int(picture[at]) for number, at in content.items()}
        # A row's own pictures may be among the nearest, and so may those that its earlier negatives took.
        most = int(rows.images.counts().max(initial=0))
        self._near = nearest(vectors[different], count + most - 1)
        self._check(count)

    def choose(self, index: int, position: int, taken: Set[int]) -> int:
        """The picture nearest to the row's image at ``position`` that is none of the row's. taken: pictures to pass
        over.
        """
        fresh = [at for at in self._others(index, position) if at not in taken]
        if not fresh:
            raise other_pictures_missing(self.rows[index].where, "nearest_image", len(taken) + 1)
        return fresh[0]

    def _others(self, index: int, position: int) -> list[int]:
        """The pictures near the row's image at ``position`` that are none of the row's, nearest first."""
        own = self.pictures(index)
        return [at for at in self._near[own[position]].tolist() if at >= 0 and at not in own]

    def pictures(self, index: int) -> tuple[int, ...]:
        """Which pictures the row's images are: the same number for copies of one, in whatever format."""
        return tuple(self._picture[number] for number in self.rows.images.of(index))

    def number(self, picture: int) -> int:
        """A number in the rows' table that is this picture."""
        return self._first[picture]

    def _check(self, count: int) -> None:
        for index in np.flatnonzero(self.rows.images.counts() > 0).tolist():
            for position in range(len(self.rows.images.of(index))):
                if len(self._others(index, position)) < count:
                    raise other_pictures_missing(self.rows[index].where, "nearest_image", count)


def nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """(N, K) int64: for each vector the ``count`` others of the largest cosine, nearest first; −1 where there are
    fewer.

    vectors: (N, D) float32. Of equally near ones the first comes first. One that points the same way is the same
    picture.
    """
    found = np.full((len(vectors), count), -1, np.int64)
    unit = _unit(vectors)
    for start, stop in _stretches(len(unit)):
        cosines = unit[start:stop] @ unit.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        cosines[cosines > 1 - _SAME] = -np.inf
        for at, row in enumerate(cosines):
            bound = np.partition(row, -count)[-count] if count < len(row) else -np.inf
            close = np.flatnonzero((row >= bound) & (row > -np.inf))
            close = close[np.argsort(-row[close], kind="stable")][:count]
            found[start + at, : len(close)] = close
    return found


def first_alike(vectors: np.ndarray) -> np.ndarray:
    """(N,) int64: for each vector the first one that points the same way, of those that are the first of theirs.

    vectors: (N, D) float32.
    """
    firsts, unit = np.arange(len(vectors)), _unit(vectors)
    for start, stop in _stretches(len(unit)):
        same = unit[start:stop] @ unit[:stop].T > 1 - _SAME
        for at, row in enumerate(same, start):
            earlier = np.flatnonzero(row[:at])
            earlier = earlier[firsts[earlier] == earlier]
            if len(earlier):
                firsts[at] = earlier[0]
    return firsts


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)


def _stretches(count: int) -> Iterator[tuple[int, int]]:
    """Of ``count`` vectors, as many at a time as may be compared with all."""
    step = max(1, _SIMILARITIES // max(1, count))
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _digest(content: str, settings: Any) -> str:
    text = json.dumps([content, settings], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
