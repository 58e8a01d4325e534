"""PyTorch's backward, node by node in Python: its engine asks the CUDA driver for streams, which a fake device
lacks.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


def run_backward(loss: Tensor) -> Iterator[str]:
    """`loss.backward()`, a step for each node of the graph. Yields a node's name before it runs.

    Not what an engine does beyond a first backward: hooks on tensors, and a graph of the gradients.
    """
    assert loss.grad_fn is not None
    waiting: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in _topological(loss.grad_fn):
        gradients = waiting.pop(node, None)
        if gradients is None:
            continue
        yield f"backward {node.name()}"
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            # By it checkpointing knows that it has recomputed a layer already.
            patch.setattr(torch._C, "_current_graph_task_id", lambda: id(loss))
            if hasattr(node, "variable"):  # a leaf
                node.variable.grad = _sum(node.variable.grad, gradients[0])
                continue
            for (into, slot), gradient in zip(_edges(node), _run(node, gradients), strict=True):
                if into is not None and gradient is not None:
                    slots = waiting.setdefault(into, [None] * len(into._input_metadata))
                    slots[slot] = _sum(slots[slot], _fitted(gradient, into._input_metadata[slot]))


def _topological(root: Any) -> list[Any]:
    """Every node after all that hand it a gradient."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((into, False) for into, _ in node.next_functions if into is not None)
    return order[::-1]


def _is_python(node: Any) -> bool:
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _edges(node: Any) -> tuple[tuple[Any, int], ...]:
    edges = node.next_functions
    return tuple(edge for edge in edges if edge[0] is not None) if _is_python(node) else edges


def _run(node: Any, gradients: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    if not _is_python(node):
        found = node(*gradients)
        return found if isinstance(found, tuple) else (found,)
    found = node.apply(*gradients)
    # It answers for every argument of its forward, tensors or not.
    pairs = zip(found if isinstance(found, tuple) else (found,), node.needs_input_grad, strict=False)
    return tuple(gradient for gradient, needed in pairs if needed)


def _fitted(gradient: Tensor, metadata: Any) -> Tensor:
    return gradient.sum_to_size(tuple(metadata.shape)).to(metadata.dtype)


def _sum(so_far: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return gradient if so_far is None else so_far if gradient is None else so_far + gradient
