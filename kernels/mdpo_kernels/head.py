"""The head: what turns a hidden state into the logits whose softmax is taken.

    x = hidden @ weightᵀ + bias,    z = scale·x,  or  z = softcap·tanh(scale·x / softcap)

Shapes: V vocabulary, H hidden size; of a tile the tokens that are in it.
"""

from typing import NamedTuple

from torch import Tensor


class Head(NamedTuple):
    """A head, or a tile of its vocabulary."""

    weight: Tensor
    """(V, H)"""
    bias: Tensor | None = None
    """(V,)"""
    softcap: float | None = None
    scale: float = 1.0

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def trains(self) -> bool:
        """Whether the weight or the bias wants a gradient."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    @property
    def flags(self) -> dict[str, bool]:
        """What a kernel is compiled for."""
        return {"HAS_BIAS": self.bias is not None, "HAS_SOFTCAP": self.softcap is not None}

    def tiles(self, columns: int) -> list["Head"]:
        """The head in tiles of so many tokens, the last perhaps with fewer; views, whose gradients meet in one sum."""
        weights = self.weight.split(columns)
        biases = [None] * len(weights) if self.bias is None else self.bias.split(columns)
        return [self._replace(weight=weight, bias=bias) for weight, bias in zip(weights, biases, strict=True)]
