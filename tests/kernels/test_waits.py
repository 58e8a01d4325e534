"""No op makes the host wait for a GPU, forward or backward: seen on a fake CUDA device, without a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mdpo_kernels import (
    Segments,
    fused_linear_mdpo_loss,
    fused_mdpo_loss,
    linear_token_logps,
    mdpo_loss,
    sequence_logps,
    token_logps,
    varlen_attention,
)
from tests.fake_cuda import needs_cuda_build, waits

pytestmark = needs_cuda_build
ROWS, HIDDEN, VOCABULARY = 12, 16, 40


class Inputs(nn.Module):
    """What the ops take: floating tensors as parameters, indices as buffers."""

    targets: Tensor
    cu_seqlens: Tensor
    reference: Tensor

    def __init__(self, trains_head: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape: int, trains: bool = True) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator), trains)

        self.logits, self.hidden = parameter(ROWS, VOCABULARY), parameter(ROWS, HIDDEN)
        self.weight, self.bias = (
            parameter(VOCABULARY, HIDDEN, trains=trains_head),
            parameter(VOCABULARY, trains=trains_head),
        )
        self.query, self.key, self.value = (parameter(ROWS, heads, 8) for heads in (4, 2, 2))
        self.branches = parameter(3, 2)
        self.register_buffer("targets", torch.arange(ROWS))
        self.register_buffer("cu_seqlens", torch.tensor([0, 2, 4, 6, 8, 10, 12], dtype=torch.int32))
        self.register_buffer("reference", torch.zeros(3, 2))
        segments = Segments.build([(0, 5), (5, 12)], [[(0, 5)], [(0, 2), (5, 12)]])
        self.sizes = segments.max_seqlen_q, segments.max_seqlen_k
        for name in ("cu_seqlens_q", "cu_seqlens_k", "key_rows", "copies"):
            self.register_buffer(name, getattr(segments, name))

    @property
    def segments(self) -> Segments:
        bounds = self.get_buffer("cu_seqlens_q"), self.get_buffer("cu_seqlens_k")
        longest_q, longest_k = self.sizes
        return Segments(*bounds, self.get_buffer("key_rows"), longest_q, longest_k, self.get_buffer("copies"))


def _linear_loss(x: Inputs) -> Tensor:
    return fused_linear_mdpo_loss(x.hidden, x.weight, x.targets, x.cu_seqlens, x.reference, bias=x.bias).loss


OPS: dict[str, tuple[Inputs, Callable[[Inputs], Tensor]]] = {
    "token_logps": (Inputs(), lambda x: token_logps(x.logits, x.targets).sum()),
    "linear_token_logps": (Inputs(), lambda x: linear_token_logps(x.hidden, x.weight, x.targets, softcap=3.0).sum()),
    "frozen_head": (Inputs(False), lambda x: linear_token_logps(x.hidden, x.weight, x.targets, bias=x.bias).sum()),
    "varlen_attention": (Inputs(), lambda x: varlen_attention(x.query, x.key, x.value, x.segments).sum()),
    "mdpo_loss": (Inputs(), lambda x: mdpo_loss(x.branches, x.reference).loss),
    "sequence_logps": (Inputs(), lambda x: sequence_logps(token_logps(x.logits, x.targets), x.cu_seqlens).sum()),
    "fused_mdpo_loss": (
        Inputs(),
        lambda x: fused_mdpo_loss(x.logits, x.targets, x.cu_seqlens, x.reference, anchors=("chosen", "rejected")).loss,
    ),
    "fused_linear_mdpo_loss": (Inputs(), _linear_loss),
    "fused_linear_mdpo_loss, frozen head": (Inputs(False), _linear_loss),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_waits_nowhere(name: str) -> None:
    inputs, op = OPS[name]
    seen = waits(lambda batches, backward: backward(op(inputs)), inputs, [])
    assert seen.trained and not seen.waits
