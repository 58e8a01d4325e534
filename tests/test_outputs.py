"""A result is whole or not there, at whatever moment its writer ends."""

import errno
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdpo.errors import OutputError
from mdpo.outputs import (
    clear_parts,
    scratch_folder,
    unwritten,
    whole_contents,
    whole_file,
    whole_files,
    whole_folder,
    write_text,
)

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
        RuntimeError("basic_ios::clear: iostream error"),
        OSError(errno.EFBIG, "File too large"),
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


def test_several_files_take_their_places_together_or_not_at_all(tmp_path, monkeypatch):
    pages = tmp_path / "a" / "page.html", tmp_path / "b" / "key.json"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(OutputError, match="page.html could not be written"), whole_files(*pages) as parts:
            for part in parts:
                part.write_text("half")
    assert names(tmp_path) == []  # the folders that were made for them went again
    with whole_files(*pages) as parts:
        for part in parts:
            part.write_text("new")
    assert [page.read_text() for page in pages] == ["new", "new"] and names(tmp_path / "b") == ["key.json"]


@pytest.mark.parametrize("name", ["n" * 251 + ".txt", "ü" * 125 + ".txt", "-.part"])
def test_a_name_as_long_as_names_can_be(tmp_path, name):
    write_text(tmp_path / name, "new")
    assert names(tmp_path) == [name]


def test_a_full_device_is_one_error(tmp_path):
    with pytest.raises(OutputError, match="/dev/full could not be written: the disk is full"):
        write_text("/dev/full", "text")
    (tmp_path / "link").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="the disk is full"):
        write_text(tmp_path / "link", "text")


def test_what_the_block_reads_is_not_a_failed_write(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "out" / "page.html"):
        (tmp_path / "gone.png").read_bytes()


def test_a_read_only_folder_is_one_error(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise PermissionError(errno.EROFS, "Read-only file system", str(tmp_path / "x.txt"))

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(OutputError, match=r"x.txt could not be written: Read-only file system; .* Write elsewhere,"):
        write_text(tmp_path / "x.txt", "text")


def test_a_folder_that_filled_meanwhile_is_left_alone(tmp_path):
    with (
        pytest.raises(OutputError, match="something else has been written there meanwhile"),
        whole_folder(tmp_path / "merged") as part,
    ):
        (part / "config.json").write_text("{}")
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "theirs").write_text("")
    assert names(tmp_path) == ["merged"] and names(tmp_path / "merged") == ["theirs"]


def test_a_part_of_a_process_with_our_number_is_a_leftover(tmp_path):
    left = tmp_path / f".a.txt.{socket.gethostname()}-{os.getpid()}-99.part"
    theirs = tmp_path / ".a.txt.elsewhere-7-1.part"
    forgotten = tmp_path / ".a.txt.elsewhere-7-2.part"
    for path in (left, theirs, forgotten):
        path.write_text("half")
    os.utime(forgotten, (0, 0))
    write_text(tmp_path / "a.txt", "new")  # as pods that come back have the numbers of those before
    assert names(tmp_path) == [".a.txt.elsewhere-7-1.part", "a.txt"]


def test_two_writes_of_one_process_do_not_meet(tmp_path):
    with whole_file(tmp_path / "a.txt") as one, whole_file(tmp_path / "a.txt") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one" and names(tmp_path) == ["a.txt"]


def test_the_contents_of_a_folder_come_with_the_config_last(tmp_path, monkeypatch):
    for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "notes.txt"):
        (tmp_path / name).write_text("old")
    seen = []
    move = Path.replace

    def watched(self, target):
        seen.append((Path(target).name, (tmp_path / "config.json").exists()))
        return move(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    with whole_contents(tmp_path, last=["config.json"], instead_of=["model*.safetensors"]) as part:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "sub/adapter.safetensors"):
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_text("new")
    assert seen[-1] == ("config.json", False) and not any(complete for _, complete in seen)
    assert names(tmp_path) == ["config.json", "model.safetensors", "notes.txt", "sub", "tokenizer.json"]
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_contents_that_do_not_fit_change_nothing(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    monkeypatch.setattr(os, "fsync", no_room)
    for folder in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(OutputError, match="the disk is full"), whole_contents(folder, last=["config.json"]) as part:
            (part / "config.json").write_text("new")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["config.json"]
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_all_leftovers_of_a_folder_go_and_nothing_else(tmp_path):
    here = socket.gethostname()
    left = [f".checkpoint-4.{here}-{2**22 + 1}-0.part", f".a.b.{here}-{2**22 + 1}-7.part"]
    kept = [f".c.{here}-{os.getppid()}-0.part", ".d.elsewhere-1-0.part", ".mine.part", "e.part", ".part"]
    for name in left + kept:
        (tmp_path / name).mkdir()
    clear_parts(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_a_scratch_folder_and_what_a_killed_one_left_are_gone(tmp_path):
    left = tmp_path / f".trial.{socket.gethostname()}-{2**22 + 1}-0.part"
    left.mkdir()
    with scratch_folder(tmp_path) as trial:
        assert names(tmp_path) == [trial.name]
        (trial / "config.json").write_text("{}")
    with scratch_folder(tmp_path / "new" / "run"):
        pass
    assert names(tmp_path) == []
