"""Folders from strangers: nothing of theirs runs, nothing is fetched, and each is loaded or refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from mdpo.models import load
from tests import tiny
from tests.models import hostile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("world")
    model, _ = tiny.world(folder, 1)
    get_peft_model(load(model), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("HF_HUB_OFFLINE", None)
    run = subprocess.run(
        [sys.executable, "-m", "tests.models.hostile_run", str(folder)],
        input="y\n" * 500,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_no_code_of_theirs_runs_though_stdin_says_yes(outcome):
    assert outcome["ran"] == []


def test_nothing_asks_the_network(outcome):
    assert outcome["events"] == []


def test_every_folder_is_loaded_or_refused_in_one_line(outcome):
    assert outcome["outcomes"].keys() == {*hostile.MODELS, *hostile.ADAPTERS}
    for name, said in outcome["outcomes"].items():
        for text in said:
            assert text == "loaded" or text.startswith("refused: ") and "\n" not in text, f"{name}: {text}"


@pytest.mark.parametrize(
    "name",
    [
        "unknown_type",
        "from_the_hub",
        "audio_tokenizer",
        "kernel",
        "adapter_beside",
        "no_weights",
        "adapter_without_weights",
        "adapter_of_adapters",
        "adapter_with_a_tokenizer",
    ],
)
def test_what_cannot_be_had_from_the_folder_alone_is_refused(outcome, name):
    assert any(text.startswith("refused: ") for text in outcome["outcomes"][name])


@pytest.mark.parametrize("name", ["generation", "dola", "adapter_of_another_base"])
def test_what_only_points_elsewhere_is_read_without_it(outcome, name):
    assert set(outcome["outcomes"][name]) == {"loaded"}
