"""The arithmetic against counted tensors: what each layer saves, and the peak of a whole step."""

import pytest
import torch
from torch import Tensor

from bench.live_memory import LiveMemory
from mdpo.memory import footprint
from mdpo.memory.layer import kept_bytes_per_token
from mdpo.models import language_layers
from tests.memory.counting import LAYERS, Case, case

# fp32 for every family, since a byte missing there is a byte missing everywhere; then each way to mix precisions.
SAVED = [
    ("llava-llama", torch.float32, False, 8),
    ("llava-llama-gqa", torch.float32, False, 8),
    ("bunny", torch.float32, False, 8),
    ("qwen2_5_vl", torch.float32, False, 8),
    ("llava-llama", torch.bfloat16, True, 8),
    ("bunny", torch.bfloat16, True, 8),
    ("llava-llama", torch.float32, True, 8),
    ("llava-llama", torch.bfloat16, False, 8),
    ("llava-llama", torch.float32, False, 0),
]


def saved_by_layer(run: Case) -> list[int]:
    """Bytes of the distinct storages that each layer saves, weights and autocast's copies of them left out."""
    found: dict[int, Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in run.model.parameters()}
    shapes = {shape for p in run.model.parameters() for shape in (p.shape, p.shape[::-1])}
    totals = []

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights and tensor.shape not in shapes:
            found.setdefault(key, tensor)
        return tensor

    def note(*_) -> None:
        totals.append(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))

    for layer in language_layers(run.model):
        layer.register_forward_pre_hook(note)
        layer.register_forward_hook(note)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.forward()
    return [after - before for before, after in zip(totals[::2], totals[1::2], strict=True)]


@pytest.mark.parametrize(("kind", "dtype", "autocast", "rank"), SAVED)
def test_a_layer_saves_what_is_counted_for_it(kind, dtype, autocast, rank):
    with case(kind, dtype, autocast=autocast, rank=rank) as run:
        predicted = run.packed.num_tokens * kept_bytes_per_token(run.shape, run.precision)
        first, *others = saved_by_layer(run)
    assert others == [pytest.approx(predicted, rel=0.01)] * (LAYERS - 1)
    assert first == pytest.approx(predicted, rel=0.1), "the first layer's input needs no gradient"


@pytest.mark.parametrize("checkpointed", [0, 1, 3, 4])
@pytest.mark.parametrize(
    ("kind", "dtype", "autocast"),
    [("llava-llama", torch.float32, False), ("llava-llama", torch.bfloat16, True), ("bunny", torch.bfloat16, True)],
)
def test_the_peak_of_a_step(kind, dtype, autocast, checkpointed):
    with case(kind, dtype, autocast=autocast, checkpointed=checkpointed) as run:
        for parameter in run.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with LiveMemory() as memory:
            run.forward().backward()
        expected = footprint(run.shape, run.setup(checkpointed))
        parts = ("casts", "boundaries", "kept layers", "recomputed layer", "in flight", "head", "workspace", "inputs")
        pixels = 4 * run.shape.pixels * len(run.packed.image_index)  # there before the step, so not counted
        predicted = sum(expected.parts[name] for name in parts) - pixels
    assert memory.peak == pytest.approx(predicted, rel=0.1), expected
