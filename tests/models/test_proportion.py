"""A config that asks for far more than the weights beside it is refused before anything is built."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mdpo.errors import InputError
from mdpo.models import load, load_processor
from mdpo.models.adapters import load_adapter
from tests import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    model, _ = tiny.world(tmp_path_factory.mktemp("world"), 1)
    return model


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(path: Path, *keys: str, value) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("text_config", "vocab_size"), 10**9, "config.json asks for [0-9,]+ numbers, but the weights hold 55,712"),
        (("text_config", "hidden_size"), 10**12, "does not load as an image-text model"),
        (("text_config", "intermediate_size"), 10**9, "config.json asks for"),
        (
            ("text_config", "num_hidden_layers"),
            10**12,
            "num_hidden_layers is 1000000000000, but the weights are 64 tensors",
        ),
        (("vision_config", "image_size"), 10**7, "config.json asks for"),
        (("vision_config", "num_hidden_layers"), 10**400, "damaged: not JSON|num_hidden_layers is 10"),
        (("text_config", "num_hidden_layers"), -1, "lacks|has .* weights|does not load|is not a model's config"),
        (("attn_implementation",), "somebody/kernel", "attn_implementation leads outside the folder"),
        (("text_config", "_attn_implementation"), "somebody/kernel", "_attn_implementation leads outside the folder"),
        (("transformers_weights",), "../model.safetensors", "transformers_weights leads outside the folder"),
        (("vision_config", "architecture"), "hf-hub:somebody/model", "architecture leads outside the folder"),
    ],
)
def test_sizes_and_places_that_are_not_the_weights_own(folder, monkeypatch, keys, value, message):
    with torch.device("meta"):
        torch.empty(0)  # PyTorch notes once what makes tensors, and must note the real one
    real = torch.empty

    def bounded(*size, **options):
        tensor = real(*size, **options)
        assert tensor.device.type == "meta" or tensor.numel() < 10**8, "memory was taken"
        return tensor

    monkeypatch.setattr(torch, "empty", bounded)
    edit(folder / "config.json", *keys, value=value)
    with pytest.raises(InputError, match=message) as refused:
        load(folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("image_processor", "size", "shortest_edge"), 10**6),
        (("image_processor", "crop_size", "height"), 10**6),
        (("num_additional_image_tokens",), 10**9),
        (("image_seq_length",), 10**9),
        (("image_processor", "max_patches"), 10**6),
    ],
)
def test_a_processor_that_would_blow_pictures_up(folder, keys, value):
    edit(folder / "processor_config.json", *keys, value=value)
    with pytest.raises(InputError, match=f"processor_config.json: {keys[-1]} is {value}, above"):
        load_processor(folder)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "model.safetensors"])
def test_pipes_and_folders_where_files_are_meant(folder, name):
    import os

    for make in (os.mkfifo, os.mkdir):
        path = folder / name
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(InputError, match=f"{name}|has no"):
            load_processor(folder)
            load(folder)


def test_an_adapter_whose_rank_is_none_of_its_weights(whole, tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path)
    edit(tmp_path / "adapter_config.json", "r", value=10**9)
    with pytest.raises(
        InputError, match="adapter_config.json: r is 1000000000, which is no size of the adapter's weights"
    ):
        load_adapter(tiny.llava(), tmp_path)


def test_an_adapters_base_is_the_folder_that_it_was_put_on(whole, tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path)
    edit(tmp_path / "adapter_config.json", "base_model_name_or_path", value="somebody/model")
    adapted = load_adapter(load(whole), tmp_path, base=whole)
    assert adapted.peft_config["default"].base_model_name_or_path == str(whole), "saving asks the hub about any other"
