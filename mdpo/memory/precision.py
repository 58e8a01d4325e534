"""In which numbers a model computes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """weight_bytes: of a base weight and of the residual stream. autocast: to bf16. cuda: CUDA's autocast, which
    computes norms and powers in fp32; the CPU's does not. liger: its RMSNorm and SwiGLU."""

    weight_bytes: int
    autocast: bool
    cuda: bool = True
    liger: bool = False

    @property
    def output_bytes(self) -> int:
        """Of an element that a linear layer puts out."""
        return 2 if self.autocast else self.weight_bytes
