"""Two processes on a CPU train the same adapter as one, see every example once, and fail together."""

import subprocess
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from mdpo.trainer.steps import StepSampler
from tests import tiny
from tests.numerics import relative_distance
from tests.trainer.processes import ROOT, run
from tests.trainer.runs import trainer

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=11)


def launch(world, output: Path, processes: int, *options: str, check: bool = True) -> subprocess.CompletedProcess:
    return run(SCRIPT, processes, *map(str, world), str(output), *options, check=check)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    launch(world, output, 1)
    return output


def distance(one: Path, other: Path, start: Path) -> float:
    """‖Δ − Δ'‖ / ‖Δ‖ of two adapters, from the adapter they started with."""
    ours, theirs, first = (load_file(folder / "adapter_model.safetensors") for folder in (one, other, start))
    return relative_distance(ours, theirs, first)


@pytest.fixture(scope="module")
def start(world, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("start")
    trainer(world, output).save_model()
    return output


def test_two_processes_train_the_adapter_of_one(world, alone, start, tmp_path):
    launch(world, tmp_path, 2)
    assert distance(alone, tmp_path, start) <= 1e-3
    caches = list((tmp_path / "reference_cache").iterdir())
    assert len(caches) == 1, "one process writes the cache"
    assert len(caches[0].read_text().splitlines()) == 3 * 11


def test_deepspeed_zero_2_trains_the_adapter_of_one(world, alone, start, tmp_path):
    pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed: pip install deepspeed")
    variables = {
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_MIXED_PRECISION": "no",
    }
    run(SCRIPT, 2, *map(str, world), str(tmp_path), "use_cpu=no", **variables)
    assert distance(alone, tmp_path, start) <= 1e-3
    assert (tmp_path / "checkpoint-10" / "global_step10").is_dir(), "its engine has trained"


def test_resume_with_another_number_of_processes(world, alone, start, tmp_path):
    launch(world, tmp_path, 2, "max_steps=20", f"resume={alone / 'checkpoint-10'}")
    assert distance(alone, tmp_path, start) <= 1e-3


def test_two_processes_resume_a_full_fine_tuning_to_the_same_weights(world, tmp_path):
    launch(world, tmp_path / "whole", 2, "peft=no", "max_steps=4", "save_steps=2")
    launch(
        world,
        tmp_path / "resumed",
        2,
        "peft=no",
        "max_steps=4",
        "save_steps=2",
        f"resume={tmp_path / 'whole' / 'checkpoint-2'}",
    )
    whole, resumed = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_rank_that_dies_stops_the_others(world, alone, start, tmp_path):
    began = time.monotonic()
    done = launch(world, tmp_path, 2, "die_at=12", check=False)
    assert done.returncode != 0 and "exitcode" in done.stderr.replace(" ", "").lower()
    assert time.monotonic() - began < 120, "start-up included; the others stop within a minute"
    launch(world, tmp_path, 2, f"resume={tmp_path / 'checkpoint-10'}")
    assert distance(alone, tmp_path, start) <= 1e-3


def test_fsdp2_trains_the_adapter_of_one_process(tmp_path):
    script = SCRIPT.with_name("fsdp2_run.py")
    for processes in (1, 2):
        run(script, processes, str(tmp_path / f"{processes}.safetensors"))
    one, two = (load_file(tmp_path / f"{processes}.safetensors") for processes in (1, 2))
    assert relative_distance(one, two, dict.fromkeys(one, torch.zeros(()))) <= 1e-3, "they hold what has moved"


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("examples", [1, 7, 12, 25])
def test_every_example_once_an_epoch(world_size, examples):
    seen = []
    steps = set()
    for rank in range(world_size):
        sampler = StepSampler(
            [20 + index for index in range(examples)], 60, examples_per_step=5, seed=0, rank=rank, world_size=world_size
        )
        epoch = list(sampler)
        steps.add(len(epoch))
        seen += [
            index for step in epoch for micro_batch in step if micro_batch.weight for index in micro_batch.examples
        ]
    assert sorted(seen) == list(range(examples))
    assert len(steps) == 1, "every rank takes every step"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_configs(path):
    config = load_config_from_file(str(path))  # it refuses keys that it does not know
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert config.distributed_type == kinds[path.stem]
    assert config.deepspeed_config.get("zero_stage", 2) == 2 and config.fsdp_config.get("fsdp_version", 2) == 2
