"""What LoRA layers write, move and keep, in numbers per token: ours, peft's, and Unsloth's as counted by hand."""

import pytest
import torch
from torch import Tensor

from bench.scripts.lora_cost import OURS, PEFT, SCALE, TOKENS, Traffic, count, layer_cost
from bench.scripts.lora_layers import LAYERS, RANK, Cost, Readers
from bench.scripts.lora_peers import unsloth

NUMBER = 2  # bytes, of bf16


def numbers(cost: Cost) -> tuple[float, float, float]:
    return cost.written / NUMBER, cost.moved / NUMBER, cost.kept / NUMBER


@pytest.mark.parametrize(("wide", "out"), [(4096, 4096), (4096, 11008), (11008, 4096), (2048, 256)])
def test_a_layer_writes_its_output_twice_and_peft_s_four_times(wide, out):
    """Beside the base's product, which writes `out` numbers and reads `wide`."""
    r, readers = RANK, Readers(wide, {"layer": out}, bias=True)
    forward, backward = map(numbers, count(readers, OURS))
    assert forward == (out + r, 2 * out + wide + 2 * r, wide + r)
    assert backward == (wide + r, 2 * out + 3 * wide + 4 * r, 0)
    forward, backward = map(numbers, count(readers, PEFT))
    assert forward == (3 * out + r, 6 * out + wide + 2 * r, wide + r)
    assert backward == (out + 2 * wide + r, 4 * out + 5 * wide + 4 * r, 0)


@pytest.mark.parametrize("model", LAYERS)
def test_a_decoder_layer_keeps_no_more_and_moves_less_than_peft_s(model):
    ours, peft = layer_cost(model, OURS), layer_cost(model, PEFT)
    assert ours[0].kept <= peft[0].kept
    for own, their in zip(ours, peft, strict=True):
        assert own.written < 0.45 * their.written and own.moved < 0.65 * their.moved
    for forward, _ in unsloth(LAYERS[model]).values():
        assert ours[0].written <= forward.written and ours[0].moved <= forward.moved


def test_what_is_written_in_place_counts_and_a_view_does_not():
    x, weight = torch.ones(TOKENS, 3), torch.ones(5, 3)
    with Traffic([weight]) as traffic:
        y = x @ weight.t()  # the base's
        y.mul_(2)
        y.view(-1).view(TOKENS, 5).t()
        torch.ones(7)
    assert traffic.base_written == 4 * 5 * TOKENS
    assert traffic.cost == Cost(written=4 * 5 * TOKENS, moved=8 * 5 * TOKENS)


@pytest.mark.parametrize("layers", [1, 3])
def test_unsloth_s_sum_is_counted_as_its_operators_do(layers):
    """A product, and `torch.addmm` of it and the adapter's, differentiated by PyTorch."""
    wide, out, r = 24, 40, RANK // SCALE
    x = torch.randn(TOKENS, wide, dtype=torch.bfloat16, requires_grad=True).clone()
    parameters = [
        [torch.randn(shape, dtype=torch.bfloat16) for shape in ((out, wide), (r, wide), (out, r))]
        for _ in range(layers)
    ]
    weights, adapters = [p[0] for p in parameters], [leaf.requires_grad_() for p in parameters for leaf in p[1:]]

    def layer(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return torch.addmm(x @ weight.t(), x @ A.t(), B.t(), alpha=2.0)

    with Traffic(weights) as forward:
        outputs = [layer(*each) for each in parameters]
    upstream = [torch.ones_like(output) for output in outputs]
    with Traffic(weights) as backward:
        torch.autograd.grad(outputs, [x, *adapters], upstream)
    readers = Readers(wide * SCALE, {str(number): out * SCALE for number in range(layers)}, bias=True)
    by_hand = unsloth([readers])["unsloth, vision models"]
    for traffic, expected in zip((forward, backward), by_hand, strict=True):
        found = traffic.cost.times(SCALE / TOKENS)
        assert (found.written, found.moved) == (expected.written, expected.moved)
