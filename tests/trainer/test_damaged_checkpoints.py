"""Whatever was done to the files of a checkpoint, resuming from it is refused in one line, or goes on."""

import json
import math
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mdpo import InputError, MDPOTrainer, TrainingError
from mdpo.trainer.checkpoints import last_whole_checkpoint
from mdpo.trainer.manifest import SETTINGS_NAME, Unfit, check_signed
from mdpo.trainer.resume import check_folder, checkpoint_to_resume
from tests.trainer.resigned import edit_state, resign
from tests.trainer.runs import start

pytestmark = pytest.mark.slow

GARBAGE = [
    -1,
    10**9,
    10**400,
    1.5,
    math.nan,
    math.inf,
    True,
    None,
    "x",
    "\x1b[2J",
    "",
    [],
    {},
    [[[[1]]]],
    {"a": {"b": []}},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> MDPOTrainer:
    """Three steps of an adapter, each with its checkpoint."""
    run = start(tmp_path_factory.mktemp("run"))
    run.train()
    return run


@pytest.fixture
def folder(run, tmp_path) -> Path:
    return Path(shutil.copytree(Path(run.args.output_dir, "checkpoint-2"), tmp_path / "checkpoint-2"))


def assert_one_line(error: Exception, folder: Path) -> None:
    text = str(error)
    assert "\n" not in text and text.isprintable() and folder.name in text and len(text) < 600, text


def flip(path: Path, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def cut(path: Path, generator: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def insert(path: Path, generator: random.Random) -> None:
    data, at = path.read_bytes(), generator.randrange(path.stat().st_size)
    path.write_bytes(data[:at] + bytes([generator.randrange(256)]) + data[at:])


def zero(path: Path, generator: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def leave_out(path: Path, generator: random.Random) -> None:
    path.unlink()


DAMAGES = [flip, cut, insert, zero, leave_out]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_changed_byte_in_any_file_is_seen(run, folder, damage):
    generator = random.Random(damage.__name__)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        before = path.read_bytes()
        while path.exists() and path.read_bytes() == before:
            damage(path, generator)
        try:
            check_signed(folder)
        except Unfit as problem:
            assert path.name in str(problem)
        else:  # a blank between two values of the list itself
            assert path.name == SETTINGS_NAME and json.loads(path.read_text()) == json.loads(before)
        path.write_bytes(before)
    check_signed(folder)


def test_files_of_two_checkpoints_do_not_pass_as_one(run, folder):
    other = Path(run.args.output_dir, "checkpoint-1")
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"):
        before = (folder / name).read_bytes()
        shutil.copy(other / name, folder / name)
        if (folder / name).read_bytes() != before:
            with pytest.raises(InputError, match=rf"{name}"):
                checkpoint_to_resume(run.args, str(folder))
        (folder / name).write_bytes(before)
    shutil.copy(other / SETTINGS_NAME, folder / SETTINGS_NAME)
    with pytest.raises(InputError, match="cannot resume from"):
        checkpoint_to_resume(run.args, str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "other/adapter_model.safetensors"])
def test_a_file_that_was_put_there_is_refused_even_when_signed(run, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name} is not one of its files"):
        run._checkpoint_to_resume(str(folder))
    resign(folder)
    with pytest.raises(InputError, match="not of this run's adapter"):
        run._checkpoint_to_resume(str(folder))


def test_damaged_checkpoints_are_passed_over_by_name_and_reason(run, tmp_path, caplog):
    shutil.copytree(run.args.output_dir, tmp_path / "run")
    args = start(tmp_path / "run").args
    flip(tmp_path / "run" / "checkpoint-3" / "optimizer.pt", random.Random(0))
    edit_state(tmp_path / "run" / "checkpoint-2", lambda state: state.update(global_step=-1))
    assert last_whole_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2", (
        "its bytes are as they were signed"
    )
    assert checkpoint_to_resume(args, True) == str(tmp_path / "run" / "checkpoint-1")
    assert "checkpoint-3 was changed after it was written (optimizer.pt has another digest): passed over" in caplog.text
    assert "checkpoint-2 is damaged (trainer_state.json: global_step is -1; expected a number of steps)" in caplog.text
    (tmp_path / "run" / "checkpoint-1" / SETTINGS_NAME).unlink()
    with pytest.raises(
        InputError, match=r"contains no whole checkpoint \(checkpoint-3 .*; checkpoint-2 .*; checkpoint-1 has no"
    ):
        checkpoint_to_resume(args, True)


def resume(run: MDPOTrainer, folder: Path) -> bool:
    """Whether the run goes on; where it does not, it says so in a line."""
    try:
        run.train(resume_from_checkpoint=str(folder))
    except (InputError, TrainingError) as error:  # the latter of a weight whose exponent was hit
        assert_one_line(error, folder)
        return False
    return True


def test_any_value_in_the_trainers_state(run, folder):
    original = (folder / "trainer_state.json").read_text()
    keys = json.loads(original)
    generator, accepted = random.Random(0), []
    for key in [*keys, "unknown", "_internal"]:
        for value in GARBAGE:
            edit_state(folder, lambda state, key=key, value=value: state.update({key: value}))
            try:
                run._checkpoint_to_resume(str(folder))
            except InputError as error:
                assert_one_line(error, folder)
            else:
                accepted.append((key, value))
            (folder / "trainer_state.json").write_text(original)
    for key in ("global_step", "epoch", "unknown", "best_model_checkpoint"):
        assert not [value for name, value in accepted if name == key and value is not None], "contradicts the run"
    for key, value in generator.sample(accepted, 12):
        edit_state(folder, lambda state, key=key, value=value: state.update({key: value}))
        assert resume(run, folder) and run.state.global_step == 3, (key, value)
        (folder / "trainer_state.json").write_text(original)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(global_step=1, epoch=0.5),
        lambda state: state.update(epoch=0.5),
        lambda state: state["log_history"].append({"step": 10**9, "loss": 1.0}),
        lambda state: state["log_history"].append({"loss": 1.0}),
        lambda state: state.update(best_global_step=3),
        lambda state: state.update(best_model_checkpoint="/etc", best_global_step=2),
        lambda state: state.update(best_model_checkpoint="checkpoint-" + "9" * 5000),
        lambda state: state.pop("global_step"),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(run, folder, change):
    edit_state(folder, change)
    assert not resume(run, folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        '"x"',
        "{",
        "\xff",
        " " * 10_000_000,
        '{"global_step": ' + "9" * 5000 + "}",
    ],
)
@pytest.mark.parametrize("name", ["trainer_state.json", SETTINGS_NAME])
def test_json_that_is_none_or_monstrous(run, folder, name, text):
    (folder / name).write_text(text, encoding="latin-1")
    if name != SETTINGS_NAME:
        resign(folder)
    assert not resume(run, folder)


def test_a_folder_a_pipe_and_a_loop_in_the_place_of_a_file(run, folder):
    for name in ("trainer_state.json", "optimizer.pt", SETTINGS_NAME):
        saved = (folder / name).read_bytes()
        for put in (lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to(path)):
            (folder / name).unlink()
            put(folder / name)
            with pytest.raises(Unfit):
                check_folder(folder, run.args)
            (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
            (folder / name).write_bytes(saved)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/mdpo-checkpoint-code-ran"),))


def pickled(path: Path, value: object) -> None:
    torch.save(value, path)
    resign(path.parent)


PICKLES = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize(
    "value",
    [Evil(), [], {}, 5, None, {"state": 1}, {"last_epoch": "x", "base_lrs": 1}, {"python": 1, "numpy": 2, "cpu": 3}],
)
def test_another_pickle_in_a_files_place(run, folder, name, value):
    pickled(folder / name, value)
    assert not resume(run, folder)
    assert not Path("/tmp/mdpo-checkpoint-code-ran").exists()


@pytest.mark.parametrize("name", PICKLES)
def test_bytes_that_are_no_pickle(run, folder, name):
    (folder / name).write_bytes(pickle.dumps(Evil()))
    resign(folder)
    assert not resume(run, folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scheduler.pt", lambda saved: saved.update(last_epoch=1)),
        ("scheduler.pt", lambda saved: saved.update(last_epoch=10**9)),
        ("scheduler.pt", lambda saved: saved.update(last_epoch=math.nan)),
        ("scheduler.pt", lambda saved: saved.update(base_lrs=[1.0])),
        ("scheduler.pt", lambda saved: saved.update(base_lrs=[])),
        ("scheduler.pt", lambda saved: saved.update(get_lr=5)),
        ("scheduler.pt", lambda saved: saved.update(_last_lr="x")),
        ("scheduler.pt", lambda saved: saved.pop("last_epoch")),
        ("optimizer.pt", lambda saved: saved["param_groups"][0].update(lr=1.0)),
        ("optimizer.pt", lambda saved: saved["param_groups"][0].update(betas=(0.1, 0.2))),
        ("optimizer.pt", lambda saved: saved["param_groups"].pop()),
        ("optimizer.pt", lambda saved: saved["param_groups"][0]["params"].pop()),
        ("optimizer.pt", lambda saved: saved["state"].clear()),
        ("optimizer.pt", lambda saved: saved["state"][0]["exp_avg"].fill_(math.nan)),
        ("optimizer.pt", lambda saved: saved["state"][0].update(exp_avg=torch.zeros(7))),
        ("optimizer.pt", lambda saved: saved["state"][0].update(step=torch.tensor(1e6))),
    ],
)
def test_a_schedule_and_an_optimizer_that_contradict_the_run(run, folder, name, change):
    saved = torch.load(folder / name, weights_only=True)
    change(saved)
    pickled(folder / name, saved)
    assert not resume(run, folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_that_is_not_finite(run, folder, value):
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = value
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    resign(folder)
    assert not resume(run, folder)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_that_was_signed_again(run, folder, seed):
    generator = random.Random(seed)
    read = ["adapter_config.json", "adapter_model.safetensors", "trainer_state.json", *PICKLES]
    for name in read:
        before = (folder / name).read_bytes()
        generator.choice(DAMAGES)(folder / name, generator)
        resign(folder)
        resume(run, folder)  # a flipped bit of a weight is a weight
        (folder / name).write_bytes(before)
    resign(folder)
    assert resume(run, folder)
