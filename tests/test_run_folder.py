"""One run per folder: the lock, and the refusal of a second run, with its ways on."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.cli import main
from mdpo.config import load_config
from mdpo.data import read_rows
from mdpo.errors import InputError, TrainingError
from mdpo.models import load, load_processor
from mdpo.run_folder import held_run, remove_run, run_files
from mdpo.run_lock import LOCK_NAME, hold
from tests import tiny

pytestmark = pytest.mark.slow

HOLDER = """
import sys, time
from mdpo.run_lock import hold
lock = hold(sys.argv[1], sys)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=4)


@pytest.fixture
def config(world, tmp_path):
    path = tmp_path / "config.yaml"
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(tmp_path / "out"),
        "lora_r": 2,
        "lora_alpha": 4,
        "examples_per_step": 2,
        "max_steps": 2,
        "save_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "check_start": False,
    }
    path.write_text(json.dumps(settings))
    return path


def trainer(world, output_dir, **settings) -> MDPOTrainer:
    defaults = {"examples_per_step": 2, "max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return MDPOTrainer(
        model=load(world[0]),
        args=MDPOConfig(output_dir=str(output_dir), check_start=False, **{**defaults, **settings}),
        train_dataset=read_rows(world[1]),
        processing_class=load_processor(world[0]),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def lock_of(folder: Path, age_s: float, **record) -> Path:
    path = folder / LOCK_NAME
    path.write_text(json.dumps({"process": 1, "host": "elsewhere", "start": "then"} | record))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


# The lock


def test_another_process_is_named_until_it_is_gone(tmp_path, holder):
    with pytest.raises(
        InputError, match=f"in use by another run .process {holder.pid} on {socket.gethostname()} since"
    ):
        hold(tmp_path, "me")
    holder.kill()
    holder.wait()
    lock = hold(tmp_path, "me")
    assert lock is not None and json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_another_host_lives_by_its_last_touch(tmp_path):
    lock_of(tmp_path, 60)
    with pytest.raises(InputError, match="process 1 on elsewhere since then; its last sign of life is 60 s old"):
        hold(tmp_path, "me")
    lock_of(tmp_path, 180)
    lock = hold(tmp_path, "me")
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "x", "host": "\\u001b[31m"}'])
def test_a_lock_file_that_says_nothing_is_seen_through(tmp_path, text):
    (tmp_path / LOCK_NAME).write_text(text)
    os.utime(tmp_path / LOCK_NAME, (0, 0))
    lock = hold(tmp_path, "me")
    assert lock is not None
    lock.release()


def test_one_owner_may_hold_twice_and_frees_with_the_last(tmp_path):
    first, second = hold(tmp_path / "out", "me"), hold(tmp_path / "out", "me")
    assert first is second is not None
    with pytest.raises(InputError, match="in use by another run"):
        hold(tmp_path / "." / "out", "you")
    second.release()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    first.release()
    assert not (tmp_path / "out").exists()  # made for the lock alone


def test_a_lock_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("mdpo.run_lock.TOUCH_EVERY_S", 0.01)
    lock = hold(tmp_path, "me")
    assert lock is not None
    os.utime(tmp_path / LOCK_NAME, (0, 0))
    deadline = time.monotonic() + 30
    while (tmp_path / LOCK_NAME).stat().st_mtime < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - (tmp_path / LOCK_NAME).stat().st_mtime < 60
    lock.release()


def test_a_folder_that_was_taken_over_is_noticed(tmp_path):
    lock = hold(tmp_path, "me")
    assert lock is not None
    lock.check()
    (tmp_path / LOCK_NAME).unlink()
    lock_of(tmp_path, 0)
    with pytest.raises(TrainingError, match="process 1 on elsewhere since then.*nothing more is written"):
        lock.check()
    lock.release()
    assert (tmp_path / LOCK_NAME).exists()  # the other's


def test_a_file_system_without_locks_goes_by_touches(tmp_path, monkeypatch):
    monkeypatch.setattr("mdpo.run_lock._lock", lambda handle: None)
    lock_of(tmp_path, 600, host=socket.gethostname(), process=os.getppid())
    with pytest.raises(InputError, match="in use"):
        hold(tmp_path, "me")
    lock_of(tmp_path, 600, host=socket.gethostname(), process=2**30)
    lock = hold(tmp_path, "me")
    assert lock is not None
    lock.release()


def test_a_folder_that_takes_no_lock_is_a_line(tmp_path, monkeypatch, caplog):
    def read_only(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("mdpo.run_lock._take", read_only)
    assert hold(tmp_path, "me") is None
    assert "cannot be locked (Read-only file system)" in caplog.text


# What a folder holds


def test_what_is_a_run_and_what_is_not(tmp_path):
    (tmp_path / "reference_cache").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "mdpo_run.json").write_text("{}")  # of a run that failed before its first step
    (tmp_path / "checkpoint-3").mkdir()  # torn
    (tmp_path / "model.safetensors").write_text("")  # the rest could not be written
    assert held_run(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert held_run(tmp_path) == "model.safetensors"
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert held_run(tmp_path) == "checkpoint-12"
    remove_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best", "notes.txt", "reference_cache"]
    assert not run_files(tmp_path)


def names(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_second_run_is_refused_before_the_model_is_loaded_with_three_ways_on(config, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(["train", str(config)]) == 0
    (out / "notes.txt").write_text("mine")
    before = names(out)
    assert not [name for name in before if name.startswith(".") or "lock" in name or ".part" in name]
    with monkeypatch.context() as patch:
        patch.setattr("mdpo.training.load", lambda *args, **kwargs: pytest.fail("the model was loaded"))
        patch.setattr("mdpo.training.rows_of_run", lambda *args, **kwargs: pytest.fail("the rows were read"))
        capsys.readouterr()
        assert main(["train", str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: output_dir: {out} contains a run already (checkpoint-2)")
    assert names(out) == before

    # The three ways on
    assert main(["train", str(config), "--output_dir", str(tmp_path / "other")]) == 0
    assert main(["train", str(config), "--resume_from_checkpoint", "true", "--max_steps", "2"]) == 0
    assert main(["train", str(config), "--overwrite_output_dir", "true", "--max_steps", "1"]) == 0
    assert (out / "notes.txt").read_text() == "mine" and (out / "checkpoint-1").is_dir()
    assert not (out / "checkpoint-2").exists() and (out / "reference_cache").is_dir()


def test_nothing_is_removed_before_every_check_has_passed(config, tmp_path, capsys, monkeypatch):
    assert main(["train", str(config)]) == 0
    before = names(tmp_path / "out")

    def refuse(*args, **kwargs):
        raise InputError("the check at the start says no")

    monkeypatch.setattr("mdpo.trainer.trainer.check_start", refuse)
    assert main(["train", str(config), "--overwrite_output_dir", "true", "--check_start", "true"]) == 2
    assert names(tmp_path / "out").keys() == before.keys()


def test_an_older_run_stays_where_the_first_step_is_not_finite(config, world, tmp_path, capsys):
    assert main(["train", str(config)]) == 0
    before = names(tmp_path / "out")
    weights = load_file(world[0] / "model.safetensors")
    next(value for name, value in weights.items() if "q_proj" in name)[0, 0] = float("nan")
    shutil.copytree(world[0], tmp_path / "nan")
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    over = ["train", str(config), "--overwrite_output_dir", "true", "--model_name_or_path", str(tmp_path / "nan")]
    capsys.readouterr()
    assert main([*over, "--check_start", "true"]) == 2
    assert "the model's own forward gives NaN" in capsys.readouterr().err.splitlines()[-1]
    assert main(over) == 1
    assert "the loss of step 1 is not finite" in capsys.readouterr().err.splitlines()[-1]
    assert names(tmp_path / "out").keys() == before.keys()


def test_a_run_that_failed_before_its_first_step_is_no_obstacle(config, world, tmp_path, monkeypatch):
    class Full(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            raise TrainingError("out of memory")

    run = trainer(world, tmp_path / "out")
    run.add_callback(Full())
    with pytest.raises(TrainingError):
        run.train()
    (tmp_path / "out" / "mdpo_run.json").write_text("{}")
    assert main(["train", str(config)]) == 0


def test_what_a_trainer_trains_a_second_time_can_be_resumed(world, tmp_path):
    run = trainer(world, tmp_path / "out", max_steps=2, save_steps=1)
    run.train()
    run.train()
    assert run.model is not None
    ended = {name: value.clone() for name, value in run.model.state_dict().items()}
    again = trainer(world, tmp_path / "out", max_steps=2, save_steps=1)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert again.model is not None
    assert all(torch.equal(value, ended[name]) for name, value in again.model.state_dict().items())


def test_a_checkpoint_of_another_run_may_go_on_in_a_fresh_folder_only(world, tmp_path):
    trainer(world, tmp_path / "first", save_steps=1).train()
    checkpoint = str(tmp_path / "first" / "checkpoint-1")
    trainer(world, tmp_path / "second", save_steps=1).train(resume_from_checkpoint=checkpoint)
    trainer(world, tmp_path / "third", save_steps=1).train()
    with pytest.raises(InputError, match="third contains a run already"):
        trainer(world, tmp_path / "third", save_steps=1).train(resume_from_checkpoint=checkpoint)


def test_a_run_without_checkpoints_that_was_ended_while_it_saved_is_not_sent_in_a_circle(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", str(config), "--save_strategy", "no"]) == 0
    (out / "trainer_state.json").unlink()
    capsys.readouterr()
    assert main(["train", str(config)]) == 2
    assert "--resume_from_checkpoint" not in capsys.readouterr().err
    assert main(["train", str(config), "--resume_from_checkpoint", "true"]) == 2
    assert "another --output_dir, or here with --overwrite_output_dir true" in capsys.readouterr().err
    assert main(["train", str(config), "--overwrite_output_dir", "true"]) == 0


def test_in_python_too_a_folder_is_one_trainers(world, tmp_path):
    refused = []

    class Second(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            with pytest.raises(InputError, match="in use by another run") as error:
                trainer(world, tmp_path / "out").train()
            refused.append(error)

    first = trainer(world, tmp_path / "out", save_steps=1)
    first.add_callback(Second())
    first.train()
    first.train()  # the same trainer may train again
    assert refused
    first.save_model()
    with pytest.raises(InputError, match="contains a run already"):
        trainer(world, tmp_path / "out").train()


def test_a_run_in_use_is_refused_to_the_command_line(config, tmp_path, capsys):
    lock = hold(tmp_path / "out", "somebody")
    assert lock is not None
    assert main(["train", str(config), "--resume_from_checkpoint", "true"]) == 2
    assert "in use by another run" in capsys.readouterr().err
    lock.release()


@pytest.mark.parametrize("setting", ["model_name_or_path", "adapter_name_or_path"])
def test_a_run_does_not_train_over_what_it_reads(config, tmp_path, capsys, setting):
    assert main(["train", str(config)]) == 0
    (tmp_path / "link").symlink_to(tmp_path / "out")
    run, _ = load_config(config)
    read = Path(run.model_name_or_path) if setting == "model_name_or_path" else tmp_path / "link"
    where = read if setting == "model_name_or_path" else tmp_path / "out"
    asked = [f"--{setting}", str(read), "--output_dir", str(where), "--overwrite_output_dir", "true"]
    before = names(where)
    assert main(["train", str(config), *asked]) == 2
    assert f"is what {setting} reads" in capsys.readouterr().err
    assert names(where) == before


def test_a_folder_with_a_model_that_no_training_wrote_is_not_overwritten(config, world, tmp_path, capsys):
    load(world[0]).save_pretrained(tmp_path / "out")
    before = names(tmp_path / "out")
    assert main(["train", str(config), "--overwrite_output_dir", "true"]) == 2
    assert "contains a model that no training here has written (model.safetensors)" in capsys.readouterr().err
    assert names(tmp_path / "out") == before


def test_a_checkpoint_to_go_on_from_as_an_adapter_is_not_removed(config, tmp_path, capsys):
    assert main(["train", str(config)]) == 0
    adapter = tmp_path / "out" / "checkpoint-1"
    asked = ["--adapter_name_or_path", str(adapter), "--overwrite_output_dir", "true"]
    assert main(["train", str(config), *asked]) == 2
    assert f"contains {adapter}, which adapter_name_or_path reads" in capsys.readouterr().err and adapter.is_dir()
