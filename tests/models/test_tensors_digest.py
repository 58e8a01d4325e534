"""The digest of weights: of every byte, and the same however many threads hash it."""

import pytest
import torch

from mdpo.models import tensors_digest as module
from mdpo.models.tensors_digest import tensors_digest


def tensors() -> list[tuple[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        ("a", torch.randn(300, 70, generator=draw)),
        ("b", torch.randn(5, 3, generator=draw).bfloat16()),
        ("scalar", torch.tensor(2.5)),
        ("none", torch.empty(0, 4)),
        ("flags", torch.tensor([True, False])),
        ("turned", torch.randn(40, 50, generator=draw).T),
    ]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 4096)  # so that the first tensor has twenty-one


def test_it_does_not_depend_on_the_number_of_threads():
    digests = {tensors_digest(tensors(), threads=threads) for threads in (1, 2, 7, None)}
    assert len(digests) == 1


@pytest.mark.parametrize("name", [name for name, _ in tensors()])
def test_every_value_name_shape_and_dtype_counts(name):
    found = {tensors_digest(tensors())}
    for change in ("value", "name", "shape", "dtype", "left out"):
        changed = []
        for own, tensor in tensors():
            if own != name:
                changed.append((own, tensor))
            elif change == "value" and tensor.numel():
                last = tensor.clone()
                last.reshape(-1)[-1] = 0 if last.dtype != torch.bool else True
                if last.shape == (50, 40):  # reshape copied it
                    last[-1, -1] = 0
                changed.append((own, last))
            elif change == "name":
                changed.append((f"{own}2", tensor))
            elif change == "shape":
                changed.append((own, tensor[None]))
            elif change == "dtype":
                changed.append((own, tensor.view(torch.int8) if tensor.dtype == torch.bool else tensor.half()))
        found.add(tensors_digest(changed))
    assert len(found) == (6 if name != "none" else 5)


def test_order_counts_and_layout_in_memory_does_not():
    forwards, backwards = tensors(), tensors()[::-1]
    assert tensors_digest(forwards) != tensors_digest(backwards)
    dense = [(name, tensor.contiguous()) for name, tensor in tensors()]
    assert tensors_digest(dense) == tensors_digest(forwards)


@pytest.mark.gpu
def test_it_is_the_same_on_a_gpu():
    moved = [(name, tensor.cuda()) for name, tensor in tensors()]
    assert tensors_digest(moved) == tensors_digest(tensors())
