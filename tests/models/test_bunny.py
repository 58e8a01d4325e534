"""The authors' own numbers, through convert, load, pack and sequence_logps."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mdpo.errors import InputError
from mdpo.models import convert_bunny, load, sequence_logps
from mdpo.packing import MDPO_BRANCHES, PreferenceTokens, pack
from mdpo_kernels import mdpo_loss

OFFICIAL = Path(__file__).parents[1] / "golden" / "bunny-official"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    return convert_bunny(OFFICIAL, tmp_path_factory.mktemp("bunny") / "model")


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((OFFICIAL / "expected.json").read_text())


def ours(official: str) -> str:
    """An official parameter's name after conversion."""
    if official.startswith("model.mm_projector"):
        layer, parameter = official.split(".")[2:]
        return f"model.multi_modal_projector.linear_{1 if layer == '0' else 2}.{parameter}"
    return official.replace("model.", "model.language_model.", 1) if official.startswith("model.") else official


def rows(model, expected) -> list[PreferenceTokens]:
    images = load_file(OFFICIAL / "images.safetensors")
    image = [model.config.image_token_id] * model.config.image_seq_length
    return [
        PreferenceTokens(
            id=str(index),
            prompt_ids=[t for token in row["prompt"] for t in (image if token == expected["image_token"] else [token])],
            chosen_ids=row["chosen"],
            rejected_ids=row["rejected"],
            images={"pixel_values": images["image"][index, None]},
            rejected_images={"pixel_values": images["rejected_image"][index, None]},
        )
        for index, row in enumerate(expected["rows"])
    ]


def table(values: dict) -> torch.Tensor:
    return torch.tensor([values[branch] for branch in MDPO_BRANCHES])


def test_losses_rewards_and_gradients_are_the_authors(converted, expected):
    model = load(converted)
    packed = pack(rows(model, expected), model)
    with torch.no_grad():
        reference = sequence_logps(model, packed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, delta in load_file(OFFICIAL / "policy_delta.safetensors").items():
            parameters[ours(name)] += delta
    policy = sequence_logps(model, packed)
    result = mdpo_loss(policy, reference, beta=expected["beta"])
    result.loss.backward()

    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(reference, table(expected["reference_logps"]), **close)
    torch.testing.assert_close(policy, table(expected["policy_logps"]), **close)
    torch.testing.assert_close(result.losses, torch.tensor(expected["losses"]), **close)
    torch.testing.assert_close(result.rewards, table(expected["rewards"]), **close)
    assert abs(result.loss.item() - expected["loss"]) <= 1e-4
    for name, norm in expected["grad_norms"].items():
        assert parameters[ours(name)].grad.norm().item() == pytest.approx(norm, rel=1e-3), name


@pytest.fixture
def source(tmp_path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(OFFICIAL / name, tmp_path)
    return tmp_path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_sharded_half_precision_source(source, expected):
    weights = {name: tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
    (source / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[:30], "b.safetensors": names[30:]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, source / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = load(convert_bunny(source, source / "out"))
    assert model.dtype == torch.float16
    # Unread weights may be missing: the tower's last norm comes after the features.
    logps = sequence_logps(model.float(), pack(rows(model, expected), model))
    torch.testing.assert_close(logps, table(expected["reference_logps"]), atol=0.2, rtol=0)


def test_unread_weights_may_be_missing(source, expected):
    weights = load_file(source / "model.safetensors")
    save_file({n: t for n, t in weights.items() if "post_layernorm" not in n}, source / "model.safetensors")
    model = load(convert_bunny(source, source / "out"))
    logps = sequence_logps(model, pack(rows(model, expected), model))
    torch.testing.assert_close(logps, table(expected["reference_logps"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: edit(s / "config.json", model_type="llama"), "'llama', only 'bunny-phi'"),
        (lambda s: edit(s / "config.json", mm_projector_type="linear"), "mm_projector_type 'linear'"),
        (lambda s: edit(s / "config.json", hidden_size=72), "do not fit config.json"),
        (lambda s: (s / "config.json").unlink(), "config.json does not exist"),
        (lambda s: (s / "model.safetensors").unlink(), "only safetensors are read"),
        (lambda s: ((s / "out").mkdir(), (s / "out" / "x").touch()), "is not empty"),
    ],
)
def test_bad_sources_are_named(source, change, message):
    change(source)
    with pytest.raises(InputError, match=message):
        convert_bunny(source, source / "out")
