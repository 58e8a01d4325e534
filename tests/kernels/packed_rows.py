"""Packed rows with every way of sharing keys, and attention over them with its gradients."""

from collections.abc import Callable

import torch

from mdpo_kernels import Segments

Grads = tuple[torch.Tensor, ...]


# What a packed batch is made of, and what could go wrong in it. Prefix 7, responses 3 and 4 unless said otherwise.
PATTERNS = {
    # one sequence alone: nothing is gathered
    "single": Segments.build([(0, 9)], [[(0, 9)]]),
    "unshared": Segments.build([(0, 5), (5, 6), (6, 17)], [[(0, 5)], [(5, 6)], [(6, 17)]]),
    # the layout of one example: [prefix][y_w][y_l][prefix'][y_w]
    "example": Segments.build([(0, 10), (10, 14), (14, 24)], [[(0, 10)], [(0, 7), (10, 14)], [(14, 24)]]),
    # a prefix with three readers beside a prefix with two: the table of copies has holes
    "three-readers": Segments.build(
        [(0, 9), (9, 12), (12, 17), (17, 22), (22, 24)],
        [[(0, 9)], [(0, 7), (9, 12)], [(0, 7), (12, 17)], [(17, 22)], [(17, 20), (22, 24)]],
    ),
    # an absent branch leaves a segment without rows
    "empty-segment": Segments.build([(0, 8), (8, 8), (8, 11)], [[(0, 8)], [(0, 5)], [(0, 5), (8, 11)]]),
    # keys in several runs, and the prefix alone as a segment that every response reads
    "runs": Segments.build([(0, 6), (6, 9), (9, 11)], [[(0, 6)], [(0, 6), (6, 9)], [(0, 2), (4, 6), (9, 11)]]),
    # one row each: block sizes of one
    "one-row": Segments.build([(0, 1), (1, 2)], [[(0, 1)], [(0, 1), (1, 2)]]),
}


def inputs(rows: int, heads: tuple[int, int, int], dtype: torch.dtype = torch.float64, device: str = "cpu") -> Grads:
    generator = torch.Generator().manual_seed(0)
    query_heads, key_heads, head_dim = heads
    shapes = [(rows, h, head_dim) for h in (query_heads, key_heads, key_heads, query_heads)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes)


def run(attention: Callable[..., torch.Tensor], tensors: Grads, segments: Segments, **options: object) -> Grads:
    """(out, dquery, dkey, dvalue) in float64."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors[:3]]
    out = attention(*leaves, segments, **options)
    grads = torch.autograd.grad(out, leaves, tensors[3])
    return tuple(t.detach().double() for t in (out, *grads))
