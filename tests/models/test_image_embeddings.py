"""A picture's embedding: the mean of what the tower makes of it, for every family, and kept for the next run."""

import hashlib

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.errors import InputError
from mdpo.models import image_embeddings as module
from mdpo.models.image_embeddings import image_embeddings
from mdpo.models.tower import tower_inputs
from tests import tiny
from tests.models.packed_examples import FAMILIES, pixels

GRIDS = [(4, 6), (8, 4), (4, 4), (4, 6)]


def names(count: int) -> list[str]:
    return [hashlib.blake2b(str(at).encode(), digest_size=16).hexdigest() for at in range(count)]


def pictures(kind: str) -> list:
    generator = torch.Generator().manual_seed(3)
    return [pixels(kind, generator, grid) for grid in GRIDS]


@pytest.mark.parametrize(
    "kind", ["llava-llama", "llava_next", "llava_onevision", "gemma4", "qwen2_5_vl", "qwen3_vl", "idefics3", "internvl"]
)
@torch.no_grad()
def test_it_is_the_mean_of_the_pictures_features(kind, monkeypatch):
    model, given = FAMILIES[kind](), pictures(kind)
    found = image_embeddings(model, names(4), given.__getitem__)
    for at, picture in enumerate(given):
        features = model.model.get_image_features(**tower_inputs(model, picture), return_dict=True).pooler_output
        want = torch.cat(list(features)).float().mean(0)
        torch.testing.assert_close(found[at], want, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(module, "_BATCH", 1)
    torch.testing.assert_close(image_embeddings(model, names(4), given.__getitem__), found, atol=1e-5, rtol=1e-4)


class Asked:
    def __init__(self, given: list) -> None:
        self.given, self.asked = given, []

    def __call__(self, at: int):
        self.asked.append(at)
        return self.given[at]


def test_what_was_made_is_kept_for_this_tower_alone(tmp_path, caplog):
    model, asked = tiny.llava(), Asked(pictures("llava"))
    first = image_embeddings(model, names(3), asked, folder=tmp_path)
    assert asked.asked == [0, 1, 2]
    again = image_embeddings(tiny.llava(), names(4), asked, folder=tmp_path)
    assert asked.asked == [0, 1, 2, 3] and torch.equal(again[:3], first), "bit by bit, and only what is new is made"
    model.get_decoder().embed_tokens.weight.data += 1
    image_embeddings(model, names(4), asked, folder=tmp_path)
    assert len(asked.asked) == 4, "the text model has no say"
    next(iter(model.model.vision_tower.parameters())).data += 1
    assert not torch.equal(image_embeddings(model, names(4), asked, folder=tmp_path), again)
    assert len(asked.asked) == 8
    (file, _) = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(image_embeddings(tiny.llava(), names(3), asked, folder=tmp_path), first)
    assert len(asked.asked) == 11 and "is damaged" in caplog.text and "made again" in caplog.text


def test_an_adapter_on_the_tower_has_no_say_and_comes_back(tmp_path):
    asked = Asked(pictures("llava"))
    bare = image_embeddings(tiny.llava(), names(4), asked, folder=tmp_path)
    config = LoraConfig(r=2, target_modules=r".*vision_tower.*(q_proj|v_proj)", init_lora_weights=False)
    model = get_peft_model(tiny.llava(), config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.train()
    assert torch.equal(image_embeddings(model, names(4), asked, folder=tmp_path), bare) and len(asked.asked) == 4
    torch.testing.assert_close(image_embeddings(model, names(4), asked), bare)
    assert model.training and {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_a_folder_that_cannot_be_written_to_costs_time_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    image_embeddings(tiny.llava(), names(1), Asked(pictures("llava")), folder=tmp_path / "file")
    assert "image embeddings are not kept" in caplog.text


def test_features_that_are_no_numbers_are_an_error_and_not_kept(tmp_path):
    model = tiny.llava()
    model.model.multi_modal_projector.linear_2.weight.data[0] = torch.nan
    with pytest.raises(InputError, match="features that are not finite"):
        image_embeddings(model, names(1), Asked(pictures("llava")), folder=tmp_path)
    assert not list(tmp_path.iterdir())
