"""Which rows of a packed batch attend to which: the `Segments` of the packed attention.

A packed row holds many sequences behind each other. A *segment* is a run of query rows that attends to one list of
key rows, causally and aligned bottom-right: with q query rows and k ≥ q key rows, query i sees the keys 0 … k − q +
i. A sequence that stands alone has itself as keys; a second response to the same prompt has the prompt's rows and
then its own, so the prompt is computed once and read twice.

Shapes: S segments, T packed rows, K gathered key rows (K > T where rows are shared), C the most readers of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

Range = tuple[int, int]


class Segments(NamedTuple):
    """The attention pattern of one packed row, as tensors: checkpointing, FSDP and torch.compile pass it on as it is.

    Made by `Segments.build`, once per batch on the host; every layer uses the same one.
    """

    cu_seqlens_q: torch.Tensor
    """(S + 1,) int32: segment s owns the query rows cu_seqlens_q[s] … cu_seqlens_q[s + 1]."""
    cu_seqlens_k: torch.Tensor
    """(S + 1,) int32: segment s owns the gathered keys cu_seqlens_k[s] … cu_seqlens_k[s + 1]."""
    key_rows: torch.Tensor
    """(K,) int64: the packed row that each gathered key reads."""
    max_seqlen_q: int
    """The longest run of query rows."""
    max_seqlen_k: int
    """The longest run of gathered keys."""
    copies: torch.Tensor
    """(T, C) int64: the gathered keys that read each packed row, −1 where there are fewer than C; the inverse of
    `key_rows`, so that the backward can sum a row's gradients in a fixed order. (T, 0) says that every row is read
    once and in place, so nothing is gathered."""

    @property
    def shared(self) -> bool:
        """Whether keys have to be gathered: False if key_rows is 0 … T − 1."""
        return self.copies.shape[1] > 0

    @classmethod
    def build(cls, query_ranges: Sequence[Range], key_ranges: Sequence[Sequence[Range]]) -> Segments:
        """The segments for query and key rows given as half-open (start, stop) ranges; tensors on the CPU.

        query_ranges: one range per segment; together they tile the packed rows 0 … T in order.
        key_ranges: per segment the ranges of rows that it reads, in the order of its positions, its own rows last.
        A segment without query rows is dropped: FlashAttention has no use for one.

        Raises ValueError naming the segment if ranges leave a gap, lie outside the rows, hold fewer keys than
        queries, or do not end with the segment's own rows.
        """
        if len(query_ranges) != len(key_ranges):
            raise ValueError(
                f"key_ranges: {len(key_ranges)} entries for {len(query_ranges)} query_ranges, expected one per segment"
            )
        rows = query_ranges[-1][1] if query_ranges else 0
        lengths_q: list[int] = []
        lengths_k: list[int] = []
        pieces: list[torch.Tensor] = []
        position = 0
        for segment, ((start, stop), ranges) in enumerate(zip(query_ranges, key_ranges, strict=True)):
            if start != position or stop < start:
                raise ValueError(
                    f"query_ranges[{segment}]: {(start, stop)}, expected a range that starts at row {position}"
                )
            position = stop
            if start == stop:
                continue
            keys = _count_keys(segment, stop - start, ranges, rows)
            _check_own_rows(segment, start, stop, ranges)
            lengths_q.append(stop - start)
            lengths_k.append(keys)
            pieces.extend(torch.arange(first, last) for first, last in ranges if first < last)
        key_rows = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
        return cls(
            _cumulative(lengths_q),
            _cumulative(lengths_k),
            key_rows,
            max(lengths_q, default=0),
            max(lengths_k, default=0),
            _copies(key_rows, rows),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Segments:
        """The same segments with their tensors on `device`."""
        return self._replace(
            cu_seqlens_q=self.cu_seqlens_q.to(device, non_blocking=non_blocking),
            cu_seqlens_k=self.cu_seqlens_k.to(device, non_blocking=non_blocking),
            key_rows=self.key_rows.to(device, non_blocking=non_blocking),
            copies=self.copies.to(device, non_blocking=non_blocking),
        )


class Attention(NamedTuple):
    """An attention to compute: what every backend is called with, forward and backward."""

    query: torch.Tensor
    """(T, Hq, D)"""
    key: torch.Tensor
    """(T, Hkv, D)"""
    value: torch.Tensor
    """(T, Hkv, D)"""
    segments: Segments
    scale: float
    window: int
    """How many of its segment's keys a query sees at most; 0: all before it."""


def _count_keys(segment: int, queries: int, ranges: Sequence[Range], rows: int) -> int:
    for first, last in ranges:
        if not 0 <= first <= last <= rows:
            raise ValueError(f"key_ranges[{segment}]: {(first, last)}, expected 0 <= start <= stop <= {rows} rows")
    keys = sum(last - first for first, last in ranges)
    if keys < queries:
        # Bottom-right alignment would leave the first queries with nothing to attend to.
        raise ValueError(f"key_ranges[{segment}]: {keys} keys for {queries} query rows, expected at least as many keys")
    return keys


def _check_own_rows(segment: int, start: int, stop: int, ranges: Sequence[Range]) -> None:
    """The last keys are the query rows start … stop themselves: the causal mask goes by a key's place in the list."""
    position = stop
    for first, last in reversed(ranges):
        if first < last and position > start:
            if last != position:
                break
            position = first
    if position > start:
        raise ValueError(
            f"key_ranges[{segment}]: {list(ranges)}, expected the segment's own rows {(start, stop)} at the end"
        )


def _cumulative(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(torch.int32)


def _copies(key_rows: torch.Tensor, rows: int) -> torch.Tensor:
    """key_rows (K,) → (rows, C): for each row the positions in key_rows that hold it, ascending, padded with −1."""
    if torch.equal(key_rows, torch.arange(rows)):
        return torch.empty(rows, 0, dtype=torch.int64)
    order = torch.argsort(key_rows, stable=True)
    counts = torch.bincount(key_rows, minlength=rows)
    first = counts.cumsum(0) - counts
    sorted_rows = key_rows[order]
    table = torch.full((rows, int(counts.max())), -1, dtype=torch.int64)
    table[sorted_rows, torch.arange(len(order)) - first[sorted_rows]] = order
    return table
