"""The oracle of the packed attention: plain PyTorch, any device and float dtype, every step written out."""

import torch

from .attention_segments import Segments


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Packed causal attention, one segment at a time with its whole matrix of scores: O(q·k) memory per segment.

    Args:
        query: (T, Hq, D).
        key, value: (T, Hkv, D), Hq a multiple of Hkv; query head h reads key head h · Hkv // Hq.
        segments: which rows attend to which; q query rows and k keys are aligned bottom-right.
        scale: factor of the scores, default D ** -0.5.
        window: how many of its segment's keys a query sees at most, its own and those right before it; None: all.

    Returns:
        (T, Hq, D) in the inputs' dtype; scores and softmax are computed in it too, so float64 in is float64 throughout.
    """
    group = query.shape[1] // key.shape[1]
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    bounds_q, bounds_k = segments.cu_seqlens_q.tolist(), segments.cu_seqlens_k.tolist()
    outputs = []
    for s in range(len(bounds_q) - 1):
        rows = segments.key_rows[bounds_k[s] : bounds_k[s + 1]]
        q = query[bounds_q[s] : bounds_q[s + 1]].transpose(0, 1)  # (Hq, q, D)
        k = key[rows].repeat_interleave(group, dim=1).transpose(0, 1)  # (Hq, k, D)
        v = value[rows].repeat_interleave(group, dim=1).transpose(0, 1)
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=query.device).tril(k.shape[1] - q.shape[1])
        if window is not None:
            seen = seen.triu(k.shape[1] - q.shape[1] - window + 1)
        scores = (q @ k.transpose(1, 2) * factor).masked_fill(~seen, float("-inf"))
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs) if outputs else torch.empty_like(query)
