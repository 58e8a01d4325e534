"""SIGTERM, kill -9, torn checkpoints, a full disk, another run's checkpoint."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from mdpo import InputError, TrainingError
from mdpo.trainer.checkpoints import last_whole_checkpoint
from tests import tiny
from tests.trainer.runs import trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=10)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """An uninterrupted run: 6 steps, checkpoints at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(world, folder)
    run.train()
    run.save_model()
    return folder


def adapters_equal(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_from_it(world, whole, tmp_path):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run = trainer(world, tmp_path, save_strategy="no")
    run.add_callback(Terminate())
    run.train()
    assert run.stop_on_signal.received and run.state.global_step == 3
    assert signal.getsignal(signal.SIGTERM) == before
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    resumed = trainer(world, tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    assert adapters_equal(tmp_path, whole)


KILLED = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.trainer.runs import trainer
run = trainer((Path({model!r}), Path({data!r})), Path({out!r}), save_steps=1)
run.train(resume_from_checkpoint=True if sys.argv[1:] else None)
run.save_model()
"""


def test_kill_9_resumes_to_the_same_adapter(world, whole, tmp_path):
    root = Path(__file__).parents[2]
    code = KILLED.format(root=str(root), model=str(world[0]), data=str(world[1]), out=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while last_whole_checkpoint(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    subprocess.run([sys.executable, "-c", code, "resume"], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert adapters_equal(tmp_path, whole)


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_torn_checkpoint_is_passed_over(world, tmp_path, caplog, damage):
    run = trainer(world, tmp_path)
    run.train()
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    if damage == "missing":
        state.unlink()
    else:
        state.write_text(state.read_text()[:50])
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert "checkpoint-6 was not written completely" in caplog.text
    with pytest.raises(InputError, match="checkpoint-6"):
        trainer(world, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_full_disk_stops_with_the_last_good_state(world, tmp_path):
    class FillTheDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:  # a limit on the size of a file fails a write as a full disk does
                resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = trainer(world, tmp_path)
    run.add_callback(FillTheDisk())
    try:
        with pytest.raises(TrainingError, match=r"step 4 could not be written.*last good state is .*checkpoint-2"):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "checkpoint-4").exists()


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002"),
        ({"anchors": []}, r"anchors was \['chosen'\] and is \[\]"),
        ({"objective": "dpo"}, "objective was 'mdpo' and is 'dpo'"),
        ({"seed": 7}, "seed was 42 and is 7"),
        ({"max_length": 60}, "max_length was None and is 60"),
    ],
)
def test_another_runs_checkpoint_is_refused(world, whole, settings, difference):
    with pytest.raises(InputError, match=difference):
        trainer(world, whole, **settings).train(resume_from_checkpoint=True)


def test_other_rows_are_another_run(world, whole):
    run = trainer(world, whole)
    run.train_dataset = trainer(world, whole, rows=run.train_dataset.rows[1:]).train_dataset
    with pytest.raises(InputError, match=r"rows was '10 \(.*\)' and is '9 \("):
        run.train(resume_from_checkpoint=True)


def test_another_token_budget_may_resume(world, whole):
    run = trainer(world, whole, token_budget=1000, max_steps=-1)
    assert run._checkpoint_to_resume(True) == str(whole / "checkpoint-6")
    assert json.loads((whole / "checkpoint-6" / "mdpo_settings.json").read_text())["adapter.r"] == 4
