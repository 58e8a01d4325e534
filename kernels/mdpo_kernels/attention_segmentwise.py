"""Packed attention one segment at a time: what runs on a CPU, and on a GPU in the dtypes FlashAttention does not take.

A segment with k keys for q queries splits into two blocks without a mask: the last q keys, causally, and the k − q
before them, all seen by every query. Each block gives its output and log-sum-exp; the two are merged by them. The
backward hands the *merged* output and log-sum-exp to each block, which is all a block needs to give its part of the
gradients. So shared keys are never copied, and the gradients of their readers meet in one fp32 buffer.

A segment that a window cuts is taken some queries at a time, each with the keys that any of them sees, and masked.

Shapes: T packed rows; Hq query heads, Hkv key heads; D head_dim; lse (Hq, T) float32 (float64 for float64).
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .attention_segments import Attention, Range, Segments

_WINDOW_QUERIES = 512  # taken at a time where a window cuts: their scores are held, queries · (queries + window)


class _Mask(NamedTuple):
    """Query i sees key j where first ≤ j − i ≤ last, counted within a block; first None: from the block's
    first key on.
    """

    first: int | None
    last: int


_CAUSAL = _Mask(None, 0)


class _Block(NamedTuple):
    queries: Range
    key_runs: list[Range]
    mask: _Mask | None


def forward(call: Attention) -> tuple[torch.Tensor, torch.Tensor]:
    """→ out (T, Hq, D), lse (Hq, T)."""
    query, key, value, segments, scale, window = call
    out = query.new_empty(query.shape)
    lse = query.new_empty((query.shape[1], query.shape[0]), dtype=_wide(query.dtype))
    q, k, v, o = (_heads_first(t) for t in (query, key, value, out))
    for full, own in _blocks(segments, window):
        rows = own.queries
        block_out, block_lse = _block_forward(_rows(q, rows), _take(k, own), _take(v, own), own.mask, scale)
        if full is not None:
            other_out, other_lse = _block_forward(_rows(q, rows), _take(k, full), _take(v, full), full.mask, scale)
            merged = torch.logaddexp(block_lse, other_lse)
            block_out = _share(block_out, block_lse, merged) + _share(other_out, other_lse, merged)
            block_lse = merged
        _rows(o, rows).copy_(block_out)
        # A row of −inf alone, or with +inf in it, is NaN, and so are the probabilities that the backward makes of it.
        lse[:, rows[0] : rows[1]] = block_lse[0].masked_fill(block_lse[0].isinf(), float("nan"))
    return out, lse


def _share(out: torch.Tensor, lse: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    """A block's output times its share of the softmax's denominator; one whose scores are all −inf has no share."""
    share = (lse - merged).exp().unsqueeze(-1)
    return (out * share).masked_fill((lse == float("-inf")).unsqueeze(-1) & (share == 0), 0)


def backward(
    call: Attention, grad_out: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, in their dtypes; those of shared rows summed in fp32."""
    query, key, value, segments, scale, window = call
    grads = tuple(t.new_zeros(t.shape, dtype=_wide(t.dtype)) for t in (query, key, value))
    grad_q, grad_k, grad_v, do, q, k, v, o = (_heads_first(t) for t in (*grads, grad_out, query, key, value, out))
    for pair in _blocks(segments, window):
        for block in pair:
            if block is None:
                continue
            rows = block.queries
            part_q, part_k, part_v = _block_backward(
                _rows(do, rows), _rows(q, rows), _take(k, block), _take(v, block), _rows(o, rows),
                lse[None, :, rows[0] : rows[1]], block.mask, scale,
            )  # fmt: skip
            _rows(grad_q, rows).add_(part_q)
            _put(grad_k, block, part_k)
            _put(grad_v, block, part_v)
    return grads[0].to(query.dtype), grads[1].to(key.dtype), grads[2].to(value.dtype)


def _blocks(segments: Segments, window: int) -> Iterator[tuple[_Block | None, _Block]]:
    """Per segment the block that every query sees (None if there is none) and the causal one; of a segment that the
    window cuts, for some queries at a time, None and the one masked block of all that they see."""
    # On a CPU these are four cheap reads. On a GPU they synchronise, which is why it is the last choice there.
    bounds_q, bounds_k = segments.cu_seqlens_q.tolist(), segments.cu_seqlens_k.tolist()
    breaks = (segments.key_rows.diff() != 1).nonzero().flatten() + 1
    begins = [0, *breaks.tolist()]
    rows = segments.key_rows[begins].tolist()
    for s in range(len(bounds_q) - 1):
        queries = bounds_q[s], bounds_q[s + 1]
        first, stop = bounds_k[s], bounds_k[s + 1]
        middle = stop - (queries[1] - queries[0])
        if window and stop - first > window:
            for start in range(queries[0], queries[1], _WINDOW_QUERIES):
                end = min(start + _WINDOW_QUERIES, queries[1])
                own = middle + start - queries[0]
                seen = max(first, own - window + 1)
                runs = _runs(begins, rows, seen, own + end - start)
                yield None, _Block((start, end), runs, _Mask(own - seen - window + 1, own - seen))
            continue
        full = _Block(queries, _runs(begins, rows, first, middle), None) if first < middle else None
        yield full, _Block(queries, _runs(begins, rows, middle, stop), _CAUSAL)


def _runs(begins: list[int], rows: list[int], first: int, stop: int) -> list[Range]:
    """The gathered keys first … stop as half-open runs of packed rows; run i starts at gathered key begins[i] with
    row rows[i]."""
    runs = []
    run = bisect_right(begins, first) - 1
    while first < stop:
        end = min(stop, begins[run + 1]) if run + 1 < len(begins) else stop
        start = rows[run] + first - begins[run]
        runs.append((start, start + end - first))
        first, run = end, run + 1
    return runs


def _rows(tensor: torch.Tensor, rows: Range) -> torch.Tensor:
    return tensor.narrow(2, rows[0], rows[1] - rows[0])


def _take(tensor: torch.Tensor, block: _Block) -> torch.Tensor:
    """The block's keys from (1, Hkv, T, D): a view where they are one run."""
    pieces = [_rows(tensor, run) for run in block.key_runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _put(gradient: torch.Tensor, block: _Block, part: torch.Tensor) -> None:
    position = 0
    for run in block.key_runs:
        length = run[1] - run[0]
        _rows(gradient, run).add_(part.narrow(2, position, length))
        position += length


def _block_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: _Mask | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, Hq, q, D), (1, Hkv, k, D) ×2 → out (1, Hq, q, D), lse (1, Hq, q)."""
    if _is_fused(query, mask):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, mask is not None, scale=scale
        )
        # Of a row of NaN, or of −inf alone, PyTorch's kernel makes 0 and a log-sum-exp of 0. A true 0 loses no more
        # than some memory below.
        if (lse.isfinite() & (lse != 0)).all():
            return out, lse
    return _dense_forward(query, key, value, mask, scale)


def _is_fused(query: torch.Tensor, mask: _Mask | None) -> bool:
    return query.device.type == "cpu" and mask in (None, _CAUSAL)


def _dense_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: _Mask | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_block_forward` with the whole matrix of scores in fp32 (or float64), for what no fused kernel takes."""
    scores = _scores(query, key, mask, scale)
    lse = scores.logsumexp(-1)
    out = (scores - lse.unsqueeze(-1)).exp_() @ value.to(scores.dtype).unsqueeze(2)
    return out.flatten(1, 2), lse.flatten(1, 2)


def _block_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: _Mask | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This block's part of the gradients, given the whole segment's out (1, Hq, q, D) and lse (1, Hq, q)."""
    if _is_fused(query, mask):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, query, key, value, out, lse, 0.0, mask is not None, scale=scale
        )
    return _dense_backward(grad_out, query, key, value, out, lse, mask, scale)


def _dense_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: _Mask | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`_block_backward` for what `_dense_forward` computed."""
    wide, heads = _wide(query.dtype), (key.shape[1], -1)
    probs = (_scores(query, key, mask, scale) - lse.unflatten(1, heads).unsqueeze(-1)).exp_()  # (1, Hkv, G, q, k)
    q, do, o = (t.to(wide).unflatten(1, heads) for t in (query, grad_out, out))
    k, v = (t.to(wide).unsqueeze(2) for t in (key, value))
    grad_scores = (do @ v.transpose(-1, -2) - (do * o).sum(-1, keepdim=True)).mul_(probs).mul_(scale)
    # Query heads of one group read the same key head: their gradients are summed.
    grad_k, grad_v = (grad_scores.transpose(-1, -2) @ q).sum(2), (probs.transpose(-1, -2) @ do).sum(2)
    return (grad_scores @ k).flatten(1, 2), grad_k, grad_v


def _scores(query: torch.Tensor, key: torch.Tensor, mask: _Mask | None, scale: float) -> torch.Tensor:
    """(1, Hkv, G, q, k) in fp32 or float64, −inf where the query does not see the key."""
    wide = _wide(query.dtype)
    scores = query.to(wide).unflatten(1, (key.shape[1], -1)) * scale @ key.to(wide).unsqueeze(2).transpose(-1, -2)
    if mask is not None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril_(mask.last)
        if mask.first is not None:
            seen.triu_(mask.first)
        scores.masked_fill_(~seen, float("-inf"))
    return scores


def _heads_first(tensor: torch.Tensor) -> torch.Tensor:
    """(T, H, D) → a view (1, H, T, D), the layout of PyTorch's attention."""
    return tensor.transpose(0, 1).unsqueeze(0)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
