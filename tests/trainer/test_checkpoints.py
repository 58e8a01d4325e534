"""How checkpoints are written, replaced and rotated; and what stops a run before one could hold a number that
is none.
"""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from mdpo import TrainingError
from mdpo.trainer import checkpoints, keeps_checkpoints
from mdpo.trainer.checkpoints import STAGING, last_whole_checkpoint, recover
from mdpo.trainer.finite import is_finite, weights_not_finite
from mdpo.trainer.not_finite import StopsWhereNotFinite
from tests.trainer.runs import ROWS, start

pytestmark = pytest.mark.slow


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(("checkpoint", ".", "weights")))


class Killed(BaseException):
    """As good as kill -9 for what is on the disk: nothing that runs afterwards touches it."""


RENAMES = {"before the old one is moved": 0, "between the two renames": 1, "after both": 2}


@pytest.mark.parametrize("moment", RENAMES)
def test_a_step_that_is_written_again_is_whole_at_every_moment(tmp_path, monkeypatch, moment):
    run = start(tmp_path, max_steps=2)
    run.train()
    before = (tmp_path / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    left, rename = [RENAMES[moment]], Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    again = start(tmp_path, max_steps=2)
    again.add_callback(_Raise(at=2))
    with pytest.raises(Killed):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    monkeypatch.undo()
    found = last_whole_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-2"
    recover(tmp_path)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").read_bytes() == before


class _Raise(TrainerCallback):
    """Ends the run behind the checkpoint of a step, where its renames did not."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise Killed


@pytest.mark.parametrize("part", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state", "sign"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch, part):
    run = start(tmp_path)
    owner = keeps_checkpoints if part == "sign" else run
    real = getattr(owner, part)

    def killed(*args, **kwargs):
        real(*args, **kwargs)
        if run.state.global_step == 2:
            raise Killed

    monkeypatch.setattr(owner, part, killed)
    with pytest.raises(Killed):
        run.train()
    assert names(tmp_path) == [STAGING, "checkpoint-1"]
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    monkeypatch.undo()
    resumed = start(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("part", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_checkpoint_that_fails_leaves_nothing_and_names_the_one_before(tmp_path, monkeypatch, part):
    def full(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    owner = keeps_checkpoints.KeepsWeights
    real = getattr(owner, part)
    monkeypatch.setattr(owner, part, full)
    with pytest.raises(
        TrainingError, match=r"step 2 could not be written: the disk is full; the last good state is .*checkpoint-1"
    ):
        start(tmp_path).train()
    assert names(tmp_path) == ["checkpoint-1"]


def test_what_cannot_be_saved_beside_the_weights_leaves_them(tmp_path, monkeypatch):
    run = start(tmp_path)

    def refuses(*args, **kwargs):
        raise TypeError("a callback's state is no JSON")

    monkeypatch.setattr(run.state.__class__, "save_to_json", refuses)
    with pytest.raises(
        TrainingError,
        match=r"the step's weights are in .*weights-1/adapter_model.safetensors, "
        r"and there is no checkpoint: see to that",
    ):
        run.train()
    assert names(tmp_path) == ["weights-1"] and load_file(tmp_path / "weights-1" / "adapter_model.safetensors")


def test_rotation_goes_by_the_step_and_not_by_the_clock(tmp_path):
    class SetTheClockBack(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            folder = tmp_path / f"checkpoint-{state.global_step}"
            os.utime(folder, (1e9 - state.global_step, 1e9 - state.global_step))

    run = start(tmp_path, save_total_limit=2, max_steps=4)
    run.add_callback(SetTheClockBack())
    run.train()
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_rotation_leaves_the_best_the_newest_and_the_one_just_written(tmp_path):
    for step in (1, 2, 3, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    keep = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    checkpoints.rotate(tmp_path, 3, keep)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-10", "checkpoint-2", "checkpoint-x"]
    checkpoints.rotate(tmp_path, 1, keep)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-x"]
    checkpoints.rotate(tmp_path, None, [])
    assert len(names(tmp_path)) == 3


def test_a_run_that_was_moved_finds_its_best_checkpoint(tmp_path):
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }

    whole = start(tmp_path / "there", eval_rows=ROWS[:2], **settings)
    whole.train()
    best = Path(whole.state.best_model_checkpoint)
    assert best.parent == tmp_path / "there" and STAGING not in str(best)
    (tmp_path / "there").rename(tmp_path / "here")
    moved = start(tmp_path / "here", eval_rows=ROWS[:2], **settings)
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "here" / best.name)


# Numbers that are not finite


def poison(run, step: int, value: float) -> None:
    """Puts a number into one gradient of a step whose loss is finite."""
    real = run.accelerator.backward

    def backward(loss, **kwargs):
        real(loss, **kwargs)
        if run.state.global_step == step:
            next(p for p in run.model.parameters() if p.requires_grad).grad.view(-1)[0] = value

    run.accelerator.backward = backward


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path, value, max_grad_norm):
    good = start(tmp_path / "good", max_grad_norm=max_grad_norm)
    good.train()
    run = start(tmp_path / "run", save_total_limit=1, max_grad_norm=max_grad_norm)
    poison(run, 2, value)
    with pytest.raises(
        TrainingError,
        match=r"gradients of step 3 are not finite, with examples row\d, row\d; .* kept in .*checkpoint-2\. Lower",
    ):
        run.train()
    assert names(tmp_path / "run") == ["checkpoint-2"]
    kept, whole = (
        load_file(tmp_path / name / "checkpoint-2" / "adapter_model.safetensors") for name in ("run", "good")
    )
    assert all(torch.equal(kept[name], whole[name]) for name in whole)
    resumed = start(tmp_path / "run", max_grad_norm=max_grad_norm)
    resumed.train(resume_from_checkpoint=True)
    ours, theirs = (
        load_file(tmp_path / name / "checkpoint-3" / "adapter_model.safetensors") for name in ("run", "good")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_state_before_a_bad_gradient_is_written_where_no_step_was(tmp_path):
    run = start(tmp_path, save_strategy="no")
    poison(run, 1, math.nan)
    with pytest.raises(TrainingError, match="kept in .*checkpoint-1"):
        run.train()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


class _Scaler:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def test_fp16_leaves_a_step_out_until_its_scale_has_collapsed(tmp_path):
    run = start(tmp_path)
    run._examples = ("row7",)
    run.accelerator.scaler = _Scaler(65536.0)
    StopsWhereNotFinite._stop_at_gradients(run, run.model)
    run.accelerator.scaler = _Scaler(2.0**-20)
    with pytest.raises(
        TrainingError, match=r"step 1 have not been finite for many steps: fp16's loss scale .* row7; nothing"
    ):
        StopsWhereNotFinite._stop_at_gradients(run, run.model)


def test_no_checkpoint_and_no_final_save_holds_a_weight_that_is_not_finite(tmp_path):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    next(p for p in model.parameters() if p.requires_grad).view(-1)[3] = math.inf

    run = start(tmp_path, save_total_limit=1)
    run.add_callback(Break())
    with pytest.raises(
        TrainingError, match=r"step 2 is not written: 1 of the trained weights .*last good state is .*checkpoint-1"
    ):
        run.train()
    assert names(tmp_path) == ["checkpoint-1"]
    with pytest.raises(TrainingError, match=r"the model is not written: 1 of the trained weights"):
        run.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


def test_weights_and_norms():
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(2, 2)})
    assert weights_not_finite(model) == [] and weights_not_finite(nn.Identity()) == []
    with torch.no_grad():
        model["b"].bias[1] = math.nan
        model["a"].weight[0, 0] = math.inf
    model["a"].requires_grad_(False)
    assert weights_not_finite(model) == ["b.bias"]
    model.double()
    with torch.no_grad():
        model["b"].bias.fill_(1e300)  # no float32 holds it
    assert weights_not_finite(model) == []
    assert is_finite(torch.tensor(3.0)) and is_finite(2.0) and not is_finite(torch.tensor(math.nan))


def test_settings_of_this_run_rule_over_the_checkpoints(tmp_path):
    start(tmp_path, max_steps=4, save_steps=2).train()
    run = start(tmp_path, max_steps=4, save_steps=1)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "checkpoint-3" in names(tmp_path)
    manifest = json.loads((tmp_path / "checkpoint-3" / "mdpo_settings.json").read_text())
    assert manifest["step"] == 3 and manifest["files"]["optimizer.pt"]["bytes"] > 0
