"""Models, adapters and data by their names on the hub: from one command to a trained adapter, and one line for what fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import hub as loopback
from tests import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    return tiny.world(tmp_path_factory.mktemp("world"), count=8)


@pytest.fixture
def hub():
    with loopback.serving() as server:
        yield server


def test_from_hub_names_to_a_trained_adapter_in_one_command(hub, world, tmp_path):
    import datasets

    model, data = world
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["image"] = {"bytes": (data.parent / row.pop("img_path")).read_bytes(), "path": None}
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (tmp_path / "rows" / "data").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "rows" / "data" / "train-00000-of-00001.parquet"))
    commit = hub.add("tiny/model", model)
    hub.add("tiny/pairs", tmp_path / "rows", kind="datasets")

    words = [
        "--model_name_or_path", "tiny/model", "--train_data", "tiny/pairs", "--output_dir", "out", "--max_steps", "1",
        "--examples_per_step", "4", "--lora_r", "2", "--use_cpu", "--report_to", "none", "--bf16", "false",
    ]  # fmt: skip
    (tmp_path / "empty.yaml").write_text("")
    command = [sys.executable, "-m", "mdpo.cli", "train", "empty.yaml", *words]
    done = subprocess.run(command, cwd=tmp_path, env=surroundings(hub, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny/model", commit)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def surroundings(hub, folder: Path) -> dict[str, str]:
    """The environment of a user whose hub is this one and whose cache is empty."""
    paths = os.pathsep.join(path for path in sys.path if path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "PYTHONPATH": paths}
