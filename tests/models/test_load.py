"""A model folder is read whole or refused in one line: damaged files, weights that lack, are left over or do
not fit.
"""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import is_torchvision_available

from mdpo import InputError
from mdpo.models import load, load_processor
from tests import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny.bunny().save_pretrained(folder)  # its tower has a norm that is not read
    tiny.processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def name_of(tensors: dict, *parts: str) -> str:
    return next(name for name in sorted(tensors) if all(part in name for part in parts))


def settings(folder: Path, change, name: str = "config.json") -> None:
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def lose_a_layer(folder: Path) -> None:
    def change(tensors):
        for name in [name for name in tensors if "language_model" in name and "layers.1." in name]:
            del tensors[name]

    weights(folder, change)


def lose(*parts):
    return lambda folder: weights(folder, lambda tensors: tensors.pop(name_of(tensors, *parts)))


def widen(folder: Path) -> None:
    weights(folder, lambda tensors: tensors.update({name_of(tensors, "fc1.weight"): torch.zeros(7, 32)}))


def shorten(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def tear(name):
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:40])


def shard(folder: Path) -> None:
    tiny.bunny().save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    next(folder.glob("model-00002-*.safetensors")).unlink()


def lead_out(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    settings(folder, lambda content: content["weight_map"].update(x="../../x.safetensors"), index.name)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def fewer_layers(folder: Path) -> None:
    settings(folder, lambda content: content["text_config"].update(num_hidden_layers=1))


def quantized(folder: Path) -> None:
    settings(folder, lambda content: content.update(quantization_config={"quant_method": "awq", "bits": 4}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_layer, r"lacks \d+ of the weights .*layers\.1\..* and \d+ more"),
        (lose("embed_tokens"), r"lacks 1 of the weights .*embed_tokens"),
        (lose("vision_tower", "layers.0", "q_proj.weight"), r"lacks 1 of the weights .*vision_tower.*q_proj"),
        (lose("multi_modal_projector", "bias"), "lacks 1 .*multi_modal_projector"),
        (widen, r"fc1\.weight has the shape \(7, 32\) instead of"),
        (fewer_layers, r"weights that LlavaForConditionalGeneration does not read: .*layers\.1\."),
        (shorten, "model.safetensors is damaged or was not copied completely"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"),
            "model.safetensors is dam",
        ),
        (lose_a_shard, r"model-00002-of-\d+.safetensors is missing"),
        (lead_out, "weight_map does not name files of the folder"),
        (pickled, "pytorch_model.bin is a pickle, which is not read"),
        (tear("config.json"), "config.json is damaged: not JSON"),
        (tear("generation_config.json"), "generation_config.json is damaged: not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "it is a list; expected an object"),
        (lambda folder: settings(folder, lambda c: c.update(text_config=[1])), "config.json is not a model's config"),
        (lambda folder: settings(folder, lambda c: c.update(model_type="nobodys")), "nobodys"),
        (quantized, "quantised with awq.*unquantised model"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json", "tokenizer.json", "config.json"])
def test_a_torn_file_of_the_processor_is_named(folder, name):
    tear(name)(folder)
    with pytest.raises(InputError, match=f"{name} is damaged: not JSON"):
        load_processor(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("processor_config.json", {"patch_size": None}, "patch_size is not set.*set it to 8"),
        ("processor_config.json", {"vision_feature_select_strategy": None}, "select_strategy is not set.*'full'"),
        ("config.json", {"image_token_id": 9}, "'<image>' has id 3, but the model's config says image_token_id 9"),
        ("processor_config.json", {"image_processor": ["no", "object"]}, "no processor that loads"),
    ],
)
def test_a_processor_that_does_not_fit_its_model_is_refused(folder, name, change, message):
    settings(folder, lambda content: content.update(change), name)
    with pytest.raises(InputError, match=message):
        load_processor(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lose("vision_tower", "post_layernorm.bias"),
        lambda folder: weights(
            folder, lambda t: t.update({"vision_tower.vision_model.head.probe": torch.zeros(1, 1, 16)})
        ),
        lambda folder: weights(
            folder, lambda t: t.update({"vision_tower.vision_model.embeddings.position_ids": torch.ones(9)})
        ),
        shard,
    ],
    ids=["a norm that is not read", "a pooling head", "a buffer of older versions", "shards"],
)
def test_what_a_forward_does_not_read_may_differ(folder, whole, damage):
    damage(folder)
    ours, theirs = load(folder).state_dict(), load(whole).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if "post_layernorm" not in name)


@pytest.mark.parametrize("family", ["smolvlm", "internvl"])
def test_tied_weights_are_saved_once_and_come_back(family, tmp_path):
    model = getattr(tiny, family)()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", ["bf16", "int8", "save"])
def test_a_dtype_that_weights_cannot_have(folder, name):
    with pytest.raises(InputError, match=f"dtype: '{name}' is not a floating-point dtype"):
        load(folder, dtype=name)


def test_nobody_is_asked_whether_to_run_a_folders_code(folder, monkeypatch):
    code = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    (folder / "modeling.py").write_text(code)
    remote = {"AutoConfig": "modeling.C", "AutoModelForImageTextToText": "modeling.M", "AutoProcessor": "modeling.P"}
    settings(folder, lambda content: content.update(model_type="theirs", auto_map=remote))
    settings(folder, lambda content: content.update(auto_map=remote), "processor_config.json")
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("a terminal was asked"))
    for read in (load, load_processor):
        with pytest.raises(InputError):
            read(folder)
    assert not (folder / "ran").exists()


def test_every_from_pretrained_of_ours_stays_local():
    """Without the first keyword transformers asks on a terminal whether to run a folder's code."""
    calls = 0
    for path in sorted((Path(__file__).parents[2] / "mdpo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"):
                continue
            if ast.unparse(node.func).startswith("Peft"):  # runs no code of the folder's
                continue
            calls += 1
            written = {keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords}
            assert "LOCAL" in written or {"trust_remote_code", "local_files_only"} <= written, f"{path}:{node.lineno}"
    assert calls > 2


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_a_missing_package_is_named_with_its_extra(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    kind = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(kind))
    with pytest.raises(InputError, match=r'usually torchvision: .*pip install -e "\.\[vision\]"'):
        load_processor(tmp_path)
