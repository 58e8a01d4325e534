"""A result is whole or not there, at whatever moment its writer ends."""

import errno
import os
import stat
import subprocess
import sys
import time

import pytest

from mdpo.errors import OutputError
from mdpo.outputs import unwritten, whole_file, whole_folder, write_text

SLOW_WRITER = """
import sys, time
from mdpo.outputs import whole_file
with whole_file(sys.argv[1]) as part, part.open("w") as file:
    file.write("half"); file.flush(); print("half", flush=True); time.sleep(60)
"""


def no_room(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_has_its_folder_made_and_takes_its_place_at_the_end(tmp_path):
    with whole_file(tmp_path / "a" / "b.txt") as part:
        part.write_text("new")
        assert not (tmp_path / "a" / "b.txt").exists()
    assert names(tmp_path / "a") == ["b.txt"]


def test_what_was_there_stays_when_the_writer_fails(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text("old")
    with pytest.raises(KeyError), whole_file(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and names(tmp_path) == ["scores.jsonl"]


def test_a_full_disk_is_one_line_with_what_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OutputError, match=r"report.html could not be written: the disk is full; nothing .* is lost"):
        write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["report.html"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disks_are_known_in_the_words_of_every_writer(error):
    assert str(unwritten(error)).startswith("the disk is full")


def test_other_errors_are_no_writers():
    assert unwritten(ValueError("expected a number")) is None


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "merged"
    with pytest.raises(KeyError), whole_folder(target) as part:
        (part / "config.json").write_text("{}")
        raise KeyError
    assert names(tmp_path) == []
    target.mkdir()
    with whole_folder(target) as part:
        (part / "config.json").write_text("{}")
        assert names(target) == []
    assert names(target) == ["config.json"] and names(tmp_path) == ["merged"]


def test_a_link_stays_a_link_and_modes_stay(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "real.txt").chmod(0o640)
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real.txt").stat().st_mode) == 0o640


def test_what_is_no_regular_file_is_written_straight():
    write_text("/dev/null", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_killed_writer_leaves_the_old_file_and_the_next_clears_up(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("old")
    writer = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "half\n"
    assert path.read_text() == "old" and len(names(tmp_path)) == 2
    write_text(path, "from another process")  # which leaves the part of a process that runs
    assert len(names(tmp_path)) == 2
    writer.kill()
    writer.wait()
    time.sleep(0.01)
    write_text(path, "new")
    assert names(tmp_path) == ["answers.jsonl"] and path.read_text() == "new"
