"""Two processes of a run: a signal to one, a second signal, an error that both meet, a process that is killed."""

import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mdpo import MDPOTrainer, cli, training
from mdpo.errors import InputError, OutputError
from mdpo.trainer import keeps_checkpoints
from mdpo.trainer import signals as handlers
from mdpo.trainer.checkpoints import last_whole_checkpoint
from tests import tiny
from tests.trainer.runs import config, same

pytestmark = pytest.mark.slow


class Ranks:
    """Two runs of the command line as torchrun would start them, each in a process with a log of its own."""

    def __init__(self, arguments: list[str], folder: Path, before) -> None:
        """before: called with the rank in its process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [folder / f"log{rank}" for rank in range(2)]
        self.began = time.monotonic()
        self.pids = [self._fork(arguments, rank, port, before) for rank in range(2)]

    def _fork(self, arguments: list[str], rank: int, port: int, before) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setsid()
            log = os.open(self.logs[rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            torch.set_num_threads(1)
            before(rank)
            code = cli.main(arguments)
        finally:
            os._exit(code)

    def codes(self, seconds: float = 60.0) -> list[int | None]:
        """None for a process that was still there after so many seconds."""
        codes: list[int | None] = [None, None]
        end = time.monotonic() + seconds
        while None in codes and time.monotonic() < end:
            for rank, pid in enumerate(self.pids):
                if codes[rank] is None:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    codes[rank] = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.02)
        for pid, code in zip(self.pids, codes, strict=True):
            if code is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return codes

    def lines(self, *beginnings: str) -> list[str]:
        texts = [log.read_text() for log in self.logs]
        assert not any("Traceback" in text for text in texts), texts
        return [line for text in texts for line in text.splitlines() if line.startswith(beginnings)]


SAID = ("stopped", "error", "ended", "saved")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=10)


def settings(world, folder: Path, **changes) -> str:
    return str(config(world, folder, ddp_backend="gloo", dataloader_num_workers=1, **changes))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert Ranks(["train", settings(world, folder)], folder, lambda rank: None).codes() == [0, 0]
    return load_file(folder / "out" / "adapter_model.safetensors")


def at_step(step: int, action) -> None:
    """action(iterator): what this process does before it reads the batch after so many steps."""
    original, done = MDPOTrainer.get_batch_samples, []

    def get_batch_samples(self, iterator, *arguments):
        if self.state.global_step == step and not done:
            done.append(step)
            action(iterator)
        return original(self, iterator, *arguments)

    setattr(MDPOTrainer, "get_batch_samples", get_batch_samples)  # noqa: B010  (in a process of its own)


def signal_this_process(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_to_one_reaches_another_that_waits_for_a_stopped_worker(world, whole, tmp_path):
    def before(rank: int) -> None:
        handlers.PATIENCE = 0.5
        stop = lambda iterator: [os.kill(worker.pid, signal.SIGSTOP) for worker in iterator._workers]  # noqa: E731
        # Step 3 begins an epoch: the worker has read nothing ahead.
        at_step(3, stop if rank == 1 else lambda iterator: (time.sleep(0.3), signal_this_process(signal.SIGTERM)))

    path = settings(world, tmp_path)
    ranks = Ranks(["train", path], tmp_path, before)
    assert ranks.codes() == [143, 143]
    assert len(ranks.lines(*SAID)) == 1 and "after step 3; go on, under the same launcher" in ranks.lines(*SAID)[0]
    assert last_whole_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-3"
    assert Ranks(["train", path, "--resume_from_checkpoint", "true"], tmp_path, lambda rank: None).codes() == [0, 0]
    assert same(load_file(tmp_path / "out" / "adapter_model.safetensors"), whole)


@pytest.mark.long
def test_a_second_signal_to_one_ends_all(world, tmp_path):
    def twice(iterator) -> None:
        signal_this_process(signal.SIGTERM)
        time.sleep(0.6)
        signal_this_process(signal.SIGTERM)

    def before(rank: int) -> None:
        handlers._SAME = 0.3
        at_step(2, twice if rank == 1 else lambda iterator: time.sleep(30))

    ranks = Ranks(["train", settings(world, tmp_path)], tmp_path, before)
    assert ranks.codes(25) == [143, 143]
    assert set(ranks.lines(*SAID)) == {"ended at once by SIGTERM"}


def test_an_error_that_all_meet_is_said_once(world, tmp_path):
    def before(rank: int) -> None:
        def full(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        keeps_checkpoints.put_in_place = full

    ranks = Ranks(["train", settings(world, tmp_path, save_strategy="steps", save_steps=2)], tmp_path, before)
    assert ranks.codes() == [1, 1]
    assert len(ranks.lines(*SAID)) == 1 and "the checkpoint of step 2 could not be written" in ranks.lines(*SAID)[0]


def test_a_disk_that_is_full_when_the_run_begins_is_said_once(world, tmp_path):
    def before(rank: int) -> None:
        def full(*arguments, **named):
            raise OutputError("mdpo_run.json could not be written: the disk is full")

        training.write_run_record = full

    ranks = Ranks(["train", settings(world, tmp_path)], tmp_path, before)
    assert ranks.codes() == [1, 1]
    assert ranks.lines(*SAID) == ["error: mdpo_run.json could not be written: the disk is full"]


def test_what_one_meets_before_training_ends_all_and_is_said_once(world, tmp_path):
    def before(rank: int) -> None:
        def rows(*arguments):
            raise InputError("this machine has no such file")

        if rank == 1:
            training._training_rows = rows

    ranks = Ranks(["train", settings(world, tmp_path)], tmp_path, before)
    assert ranks.codes() == [2, 2]
    assert ranks.lines(*SAID) == ["error: this machine has no such file"]


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_is_killed_ends_the_other_with_a_line(world, tmp_path, killed):
    def before(rank: int) -> None:
        at_step(2, lambda iterator: signal_this_process(signal.SIGKILL) if rank == killed else None)

    ranks = Ranks(["train", settings(world, tmp_path, save_strategy="steps", save_steps=1)], tmp_path, before)
    codes = ranks.codes()
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1
    assert len(ranks.lines(*SAID)) == 1 and "checkpoint-2" in ranks.lines(*SAID)[0]
