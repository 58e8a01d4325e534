"""Sizes of pictures stay on the host, and the towers that lay out their work by them never read the device for it."""

import pytest
import torch

from mdpo.models.logps import encode_images
from mdpo.models.tower import layout_of, tower_inputs
from mdpo.packing import pack
from tests.models.packed_examples import FAMILIES, examples

QWEN = [kind for kind in FAMILIES if kind.startswith("qwen")]
SIZED = {"image_grid_thw", "image_sizes"}


@pytest.mark.parametrize("kind", QWEN)
def test_a_tower_given_its_layout_makes_the_same_features(kind):
    model = FAMILIES[kind]().eval()
    packed = pack(examples(kind), model)
    assert tower_inputs(model, packed.images).keys() == packed.images.keys(), "on a CPU the tower does it itself"
    layout = layout_of(model, packed.images["image_grid_thw"], torch.device("cpu"))
    own = model.model.get_image_features(**packed.images, return_dict=True)
    given = model.model.get_image_features(**packed.images, **layout, return_dict=True)
    assert all(map(torch.equal, own.pooler_output, given.pooler_output))


@pytest.mark.parametrize(
    "kind", [kind for kind in FAMILIES if kind.startswith(("qwen", "llava_next", "llava_onevision"))]
)
def test_nothing_is_read_back_from_the_device(kind):
    """On the meta device, which has no numbers: whatever reads one, or mixes tensors of two devices, raises."""
    model = FAMILIES[kind]().eval()
    packed = pack(examples(kind), model)
    expected = encode_images(model, packed).embeddings.shape
    moved = packed.to("meta")
    assert moved.images["pixel_values"].is_meta and moved.input_ids.is_meta
    assert {name for name, tensor in moved.images.items() if not tensor.is_meta} == SIZED & set(packed.images)
    assert encode_images(model.to("meta"), moved).embeddings.shape == expected


@pytest.mark.parametrize("kind", QWEN)
def test_flash_attention_gets_lengths_on_the_device_and_their_maximum_on_the_host(kind):
    model = FAMILIES[kind]()
    grids = pack(examples(kind), model).images["image_grid_thw"]
    eager = layout_of(model, grids, torch.device("meta"))
    assert not eager["image_cu_seqlens"].is_meta and "image_max_seqlen" not in eager
    model.model.visual.config._attn_implementation = "flash_attention_2"
    flash = layout_of(model, grids, torch.device("meta"))
    assert flash["image_cu_seqlens"].is_meta
    assert flash["image_max_seqlen"] == int(grids[:, 1:].prod(-1).max())
