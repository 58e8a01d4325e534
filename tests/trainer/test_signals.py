"""SIGINT, SIGTERM and SIGHUP in every phase of a run; evaluations that are made up for; images and workers that are
gone.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from mdpo import InputError, MDPOTrainer, cli
from mdpo.stops import resumed_command
from mdpo.trainer import signals as handlers
from mdpo.trainer.checkpoints import last_whole_checkpoint
from tests import tiny
from tests.trainer.runs import config, same, trainer

pytestmark = pytest.mark.slow

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=10)


@pytest.fixture(autouse=True)
def the_handlers_are_put_back():
    came_with = [signal.getsignal(number) for number in NUMBERS]
    for number in NUMBERS:  # a program that was started in the background ignores Ctrl-C, and keeps to it
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    found = [signal.getsignal(number) for number in NUMBERS]
    for number, handler in zip(NUMBERS, came_with, strict=True):
        signal.signal(number, handler)
    assert found == before
    assert handlers.active() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]
    assert not multiprocessing.active_children()


@pytest.fixture
def send(monkeypatch):
    """send("method", step, number): that signal comes when the trainer's method is called after so many steps."""

    def arm(name: str, step: int, number: int, after: bool = False) -> list:
        original, sent = getattr(MDPOTrainer, name), []

        def method(self, *arguments, **keywords):
            result = original(self, *arguments, **keywords) if after else None
            if self.state.global_step == step and not sent:
                sent.append(number)
                signal.raise_signal(number)
            return result if after else original(self, *arguments, **keywords)

        monkeypatch.setattr(MDPOTrainer, name, method)
        return sent

    return arm


def weights(folder, name="adapter_model.safetensors"):
    return load_file(folder / name)


def go_on(path, capsys, whole) -> None:
    """The resumed run of a stopped one ends as the run that was never stopped."""
    capsys.readouterr()
    assert cli.main(["train", str(path), "--resume_from_checkpoint", "true"]) == 0
    out = path.parent / "out"
    assert same(weights(out), weights(whole))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert cli.main(["train", str(config(world, folder))]) == 0
    return folder / "out"


@pytest.mark.parametrize("number", NUMBERS)
def test_the_step_is_finished_a_checkpoint_written_and_the_run_goes_on(world, whole, tmp_path, capsys, send, number):
    send("training_step", 2, number)
    path = config(world, tmp_path)
    assert cli.main(["train", str(path), "--seed", "42"]) == 128 + number
    said = capsys.readouterr().out.splitlines()[-1]
    name = signal.Signals(number).name
    assert (
        said == f"stopped by {name} after step 3; go on with: mdpo train {path} --seed 42 --resume_from_checkpoint true"
    )
    assert last_whole_checkpoint(tmp_path / "out").name == "checkpoint-3"
    go_on(path, capsys, whole)


def test_a_library_that_answers_the_signals_exception_by_its_own(world, tmp_path, capsys, monkeypatch):
    def answer(folder):  # as torch.asarray does, where the signal comes while it asks a storage for its length
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            raise InputError(f"{folder} is damaged; copy it again") from None

    monkeypatch.setattr("mdpo.training.load", lambda *args, **kwargs: answer(args[0]))
    assert cli.main(["train", str(config(world, tmp_path))]) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "stopped by SIGTERM before the first step; nothing was trained"


@pytest.mark.parametrize("module", ["mdpo", "mdpo.cli"])
def test_ctrl_c_while_torch_is_imported_ends_without_a_traceback(module):
    code = (  # the first of transformers' or torch's modules that is looked for sends it
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['mdpo', 'train', 'm', 'd']\n"  # without words that can be run, it would not be looked for
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGINT and ended.stderr == "" and ended.stdout == ""


def test_workers_and_an_epochs_end(world, whole, tmp_path, capsys, send):
    send("training_step", 1, signal.SIGTERM)
    path = config(world, tmp_path, dataloader_num_workers=1, save_strategy="epoch")
    assert cli.main(["train", str(path)]) == 143
    go_on(path, capsys, whole)


def test_during_a_checkpoint_it_is_finished_and_no_further_step_made(world, whole, tmp_path, capsys, send):
    send("_save_optimizer_and_scheduler", 2, signal.SIGINT)
    path = config(world, tmp_path, save_strategy="steps", save_steps=2)
    assert cli.main(["train", str(path)]) == 130
    assert "after step 2;" in capsys.readouterr().out
    go_on(path, capsys, whole)


@pytest.mark.parametrize("method", [pytest.param("training_step", marks=pytest.mark.long), "save_model"])
def test_a_run_that_is_complete_is_saved_and_ends_well(world, whole, tmp_path, capsys, send, method):
    sent = send(method, 5 if method == "training_step" else 6, signal.SIGTERM)
    assert cli.main(["train", str(config(world, tmp_path))]) == 0
    assert sent and "saved to" in capsys.readouterr().out.splitlines()[-1]
    assert same(weights(tmp_path / "out"), weights(whole))


EVALUATED = {
    "eval_fraction": 0.3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
    "save_total_limit": 1,
    "token_budget": 120,  # micro-batches to be left between
}


@pytest.mark.parametrize(
    ("strategy", "step"),
    [
        ("steps", 2),
        *(pytest.param(*case, marks=pytest.mark.long) for case in [("steps", 4), ("epoch", 2), ("epoch", 4)]),
    ],
)
def test_an_evaluation_is_left_and_made_up_for(world, tmp_path, capsys, send, step, strategy):
    """The best is the first, since the loss falls: the stop keeps it, and the resumed run's end loads it."""
    (tmp_path / "other").mkdir()
    changes = EVALUATED | {"eval_strategy": strategy, "save_strategy": strategy}
    found = []
    for folder, stops in ((tmp_path / "other", False), (tmp_path, True)):
        path = config(world, folder, **changes)
        if stops:
            sent = send("_forward", step, signal.SIGTERM)  # the first micro-batch after the step is an evaluation's
            assert cli.main(["train", str(path)]) == 143 and sent
            assert last_whole_checkpoint(folder / "out").name == f"checkpoint-{step}"
            go_on(path, capsys, tmp_path / "other" / "out")
        else:
            assert cli.main(["train", str(path)]) == 0
        state = yaml.safe_load((folder / "out" / "trainer_state.json").read_text())
        found.append(
            [(entry["step"], entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry]
            + [state["best_global_step"], os.path.basename(state["best_model_checkpoint"])]
        )
    assert found[0] == found[1]


def test_before_the_first_step_there_is_nothing_to_keep(world, tmp_path, capsys, send, monkeypatch):
    send("get_train_dataloader", 0, signal.SIGINT)
    assert cli.main(["train", str(config(world, tmp_path))]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "stopped by SIGINT before the first step; nothing was trained"
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_another_command_says_what_to_do(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "mdpo.evaluation.score_command.read_rows", lambda *arguments, **keywords: signal.raise_signal(signal.SIGTERM)
    )
    assert cli.main(["score", str(world[0]), str(world[1]), "--output", str(tmp_path / "scores.jsonl")]) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "stopped by SIGTERM; the same command begins again"


def test_an_ignored_signal_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handlers.Signals() as current:
            signal.raise_signal(signal.SIGHUP)
            assert current.received is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_the_process_and_then_to_its_group_writes_a_checkpoint(world, whole, tmp_path, capsys):
    """As ``timeout`` sends it, and Kubernetes or systemd may; a data worker is in the group too."""
    path = config(world, tmp_path, dataloader_num_workers=1)
    process = os.fork()
    if process == 0:
        original = MDPOTrainer.training_step

        def training_step(self, *arguments):
            if self.state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.killpg(os.getpid(), signal.SIGTERM)
            return original(self, *arguments)

        code = 70
        try:
            os.setsid()
            MDPOTrainer.training_step = training_step
            code = cli.main(["train", str(path)])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143
    assert last_whole_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-3"
    go_on(path, capsys, whole)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_rows_that_hang_are_not_waited_for_for_ever(world, whole, tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setattr(handlers, "PATIENCE", 0.3)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    original, calls = MDPOTrainer.get_batch_samples, []

    def get_batch_samples(self, iterator, *arguments):
        calls.append(self.state.global_step)
        if self.state.global_step == 3:  # an epoch's first batch
            monkeypatch.setattr("mdpo.data.dataset.open_image", lambda *arguments: open(fifo))  # noqa: SIM115
            if workers:
                for worker in iterator._workers:
                    os.kill(worker.pid, signal.SIGSTOP)
            signal.raise_signal(signal.SIGTERM)
        return original(self, iterator, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MDPOTrainer, "get_batch_samples", get_batch_samples)
        path = config(world, tmp_path, dataloader_num_workers=workers)
        assert cli.main(["train", str(path)]) == 143
    monkeypatch.undo()
    assert last_whole_checkpoint(tmp_path / "out").name == "checkpoint-3"
    go_on(path, capsys, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_gone_is_named(tmp_path, capsys, send, workers):
    world = tiny.world(tmp_path / "world", count=10)
    path = config(world, tmp_path, dataloader_num_workers=workers, num_train_epochs=3)

    class Remove(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            (tmp_path / "world" / "7.png").rename(tmp_path / "7.png")

    original = MDPOTrainer._may_stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MDPOTrainer, "_may_stop", lambda self: (original(self), self.add_callback(Remove())))
        assert cli.main(["train", str(path)]) == 1
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert "row 7" in last and "7.png does not exist" in last and "checkpoint-" in last and "Traceback" not in said
    (tmp_path / "7.png").rename(tmp_path / "world" / "7.png")
    assert cli.main(["train", str(path), "--resume_from_checkpoint", "true"]) == 0


def test_a_worker_that_was_killed_is_told_and_nothing_lost(world, whole, tmp_path, capsys):
    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                multiprocessing.active_children()[0].kill()

    original = MDPOTrainer._may_stop
    path = config(world, tmp_path, dataloader_num_workers=1, dataloader_prefetch_factor=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MDPOTrainer, "_may_stop", lambda self: (original(self), self.add_callback(Kill())))
        assert cli.main(["train", str(path)]) == 1
    said = capsys.readouterr().err
    assert "a dataloader worker was killed (out of memory?)" in said.splitlines()[-1] and "Traceback" not in said
    go_on(path, capsys, whole)


def test_outside_of_the_main_thread_training_warns_and_trains(world, tmp_path, caplog):
    run = trainer(world, tmp_path, max_steps=1, save_strategy="no")
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert run.state.global_step == 1
    assert caplog.text.count("outside the main thread") == 1


def test_the_command_that_goes_on_is_the_one_typed():
    typed = ["train", "my config.yaml", "--resume-from-checkpoint", "out/checkpoint-2", "--learning_rate", "1e-4"]
    assert resumed_command(typed) == "mdpo train 'my config.yaml' --learning_rate 1e-4 --resume_from_checkpoint true"
    typed = ["train", "c.yaml", "--resume_from_checkpoint=x", "--overwrite_output_dir", "true", "--beta=0.2"]
    assert resumed_command(typed) == "mdpo train c.yaml --beta=0.2 --resume_from_checkpoint true"


def test_a_trainer_without_the_command_line(world, tmp_path, send):
    send("training_step", 2, signal.SIGINT)
    run = trainer(world, tmp_path, save_strategy="no")
    run.train()
    assert run.stop_on_signal.received == signal.SIGINT and run.stop_on_signal.stopped
    assert run.state.global_step == 3 and last_whole_checkpoint(tmp_path).name == "checkpoint-3"


def test_one_in_the_middle_of_a_callback_is_remembered_without_a_traceback(monkeypatch):
    class Leaves:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with handlers.signals() as found:
        leaves = Leaves()
        del leaves
        assert found is not None and found.received == signal.SIGTERM
    assert not printed
