"""The arithmetic against counted tensors: what each layer saves, and the peak of a whole step."""

import weakref
from operator import attrgetter

import pytest
import torch
from torch import Tensor

from mdpo.memory import Adaptation, Footprint, footprint, read_shape
from mdpo.memory.counted import Unplanned
from mdpo.memory.layer import kept_bytes_per_token, layer_bytes
from mdpo.memory.live import LiveMemory
from mdpo.models import LANGUAGE_LINEAR, language_layers
from tests import tiny
from tests.memory.counting import LAYERS, Case, case, counted_case

pytestmark = pytest.mark.slow

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


class Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_by_layer(run: Case) -> list[int]:
    """Bytes of the distinct storages that each layer saves, weights and autocast's copies of them left out.

    What a branch saved that leads nowhere, such as a router's, is gone when its layer ends.
    """
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()
    weights = {p.untyped_storage()._cdata for p in run.model.parameters()}
    shapes = {shape for p in run.model.parameters() for shape in (p.shape, p.shape[::-1])}
    totals = []

    def keep(tensor: Tensor) -> Kept:
        found = Kept(tensor)
        if tensor.untyped_storage()._cdata not in weights and tensor.shape not in shapes:
            kept.add(found)
        return found

    def note(*_) -> None:
        storages = [each.tensor.untyped_storage() for each in kept]
        totals.append(sum({storage._cdata: storage.nbytes() for storage in storages}.values()))

    for layer in language_layers(run.model):
        layer.register_forward_pre_hook(note)
        layer.register_forward_hook(note)
    with torch.autograd.graph.saved_tensors_hooks(keep, attrgetter("tensor")):
        run.forward()
    return [after - before for before, after in zip(totals[::2], totals[1::2], strict=True)]


@pytest.mark.parametrize(("kind", "dtype", "autocast", "rank"), SAVED)
def test_a_layer_saves_what_is_counted_for_it(kind, dtype, autocast, rank):
    with case(kind, dtype, autocast=autocast, rank=rank) as run:
        predicted = run.packed.num_tokens * kept_bytes_per_token(run.shape.layer, run.precision)
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
        expected, peak = footprint(run.shape, run.setup(checkpointed)), peak_of(run)
    assert peak == pytest.approx(of_a_step(run, expected), rel=0.1), expected


def peak_of(run: Case) -> int:
    """Of a step after the first, in bytes."""
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with LiveMemory() as memory:
        run.forward().backward()
    return memory.peak


def of_a_step(run: Case, expected: Footprint) -> float:
    """What comes and goes in a step; pixels are there before."""
    parts = ("casts", "boundaries", "kept layers", "recomputed layer", "in flight", "head", "workspace", "inputs")
    return sum(expected.parts[name] for name in parts) - 4 * run.shape.pixels * run.images


# Of each kind of layers that have no equation: masks of two kinds, four norms, convolutions, latent keys and values,
# experts beside a shared one and alone, keys and values of an earlier layer; and the packed ones.
KINDS = ["gemma3", "glm46v", "lfm2_vl", "mistral_large4", "glm4v_moe", "llama4", "gemma4", "glm4v", "qwen3_vl_moe"]


def test_layers_that_fill_up_what_they_read_have_no_plan():
    with pytest.raises(
        Unplanned, match="'qwen3_5' model cannot be planned, since its layers with linear attention fill"
    ):
        read_shape(tiny.qwen3_5().config, Adaptation(rank=4, pattern=LANGUAGE_LINEAR))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_without_an_equation_saves_what_was_counted(kind):
    mixed = KINDS.index(kind) % 2 == 1
    with counted_case(kind, torch.bfloat16 if mixed else torch.float32, autocast=mixed) as run:
        counted = layer_bytes(run.shape, run.precision)
        predicted = [layer.kept.of(run.tokens, run.longest) for layer in counted.layers]
        first, *others = saved_by_layer(run)
    if kind == "gemma4":
        # Its layers differ: what several of them read is kept by the first that does, whichever that is.
        total = sum(predicted) + counted.shared.of(run.tokens, run.longest)
        assert first + sum(others) == pytest.approx(total, rel=0.05)
        return
    assert others == [pytest.approx(size, rel=0.015) for size in predicted[1:]]
    assert first == pytest.approx(predicted[0], rel=0.1), "the first layer's input needs no gradient"


@pytest.mark.parametrize("checkpointed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["mistral3", "glm4v_moe", "gemma3"])
def test_the_peak_of_a_step_without_an_equation(kind, checkpointed):
    with counted_case(kind, torch.bfloat16, autocast=True, checkpointed=checkpointed) as run:
        expected, peak = footprint(run.shape, run.setup(checkpointed)), peak_of(run)
    assert peak == pytest.approx(of_a_step(run, expected), rel=0.1), expected
