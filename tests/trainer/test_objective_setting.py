"""The setting `objective` through `mdpo train`: the same loss by another name trains the same adapter."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mdpo.cli import main
from tests import tiny

pytestmark = pytest.mark.slow

MDPO = [
    {"name": "response_preference", "rows": {"chosen": 1, "rejected": -1}},
    {"name": "image_preference", "rows": {"chosen": 1, "chosen@negative": -1}},
    {"name": "anchor_chosen", "rows": {"chosen": 1}},
]


@pytest.mark.parametrize(
    ("objective", "mdpos"),
    [("dpo", {"conditional": False, "anchors": []}), (MDPO, {}), ("rdpo", {"anchors": []})],
    ids=["dpo", "a list of terms", "rdpo"],
)
def test_one_loss_by_two_names_trains_one_adapter(tmp_path, objective, mdpos):
    model, data = tiny.world(tmp_path / "world", count=6)
    adapters = []
    for name, settings in (("named", {"objective": objective}), ("mdpo", mdpos)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({
            "model_name_or_path": str(model), "train_data": str(data), "output_dir": str(tmp_path / name),
            "max_steps": 2,
            "examples_per_step": 3, "lora_r": 2, "use_cpu": True, "learning_rate": 1e-3, "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True, **settings,
        }))  # fmt: skip
        assert main(["train", str(path)]) == 0
        adapters.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    named, mdpo = adapters
    assert named.keys() == mdpo.keys() and all(torch.equal(named[key], mdpo[key]) for key in named)
    assert any(tensor.any() for key, tensor in named.items() if "lora_B" in key)
