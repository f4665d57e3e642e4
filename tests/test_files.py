"""Writing is atomic, follows the umask, and works on file systems that lack calls."""

import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lthjax import files
from lthjax.folder import arrays


@pytest.fixture(autouse=True)
def once() -> None:
    files._said.clear()


def refuse(number: int):
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write_whole(tmp_path / "file", b"x")
        with files.whole_folder(tmp_path / "folder", "last", tmp_path) as part:
            (part / "last").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(fault)):
        files.write_whole(tmp_path / "file", b"new")
    with pytest.raises(type(fault)), files.whole_folder(tmp_path / "folder", "last", tmp_path) as part:
        (part / "last").write_text("x")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK])
def test_file_systems_without_a_call_are_written_to_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, refuse(number))
    with caplog.at_level(logging.WARNING):
        for text in (b"one", b"two"):
            files.write_whole(tmp_path / "file", text)
            with files.whole_folder(tmp_path / text.decode(), "last", tmp_path) as part:
                (part / "in").mkdir()
                (part / "in" / "file").write_bytes(text)
                (part / "last").write_bytes(text)
    assert (tmp_path / "file").read_bytes() == b"two"
    assert (tmp_path / "one" / "in" / "file").read_bytes() == b"one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "one", "two"]
    said = [record.message for record in caplog.records]
    assert len(said) == len(set(said))
    assert all(sum(word in text for text in said) == 1 for word in ("renamed", "synced"))


def test_a_folder_that_is_copied_has_its_last_file_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    copy = shutil.copyfile
    monkeypatch.setattr(os, "replace", refuse(errno.ENOTSUP))
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: order.append(Path(b).name) or copy(a, b))
    with files.whole_folder(tmp_path / "folder", "a", tmp_path) as part:
        for name in ("a", "b", "z"):
            (part / name).write_text(name)
    assert order[-1] == "a"
    assert sorted(order) == ["a", "b", "z"]


def test_faults_of_the_disk_are_not_taken_for_a_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
        for owner, name in ((os, "replace"), (os, "fsync")):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, refuse(number))
                with pytest.raises(OSError, match=os.strerror(number)):
                    files.write_whole(tmp_path / "file", b"x")


def test_the_sentence_says_what_to_do() -> None:
    full = files.unwritable("runs/a", OSError(errno.ENOSPC, "No space left on device"))
    assert str(full) == (
        "runs/a: it cannot be written (No space left on device); free some space, and run the same command "
        "again, which goes on from here."
    )
    told = files.unwritable("runs/a", ValueError("INTERNAL: write failed [No space left on device]\n at ..."))
    assert str(told) == str(full)
    assert "\n" not in str(files.unwritable("runs/a", ValueError("one\ntwo")))


def test_what_is_meant_is_cleared(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path / "done", "last", tmp_path, "seed=1") as part:
        assert files.label_of(part) == "seed=1"
        (part / "last").write_text("x")
        other = part.with_name(part.name.replace("seed=1,", "seed=10,"))
        other.mkdir()
        files.clear(tmp_path, lambda left: files.label_of(left) == "seed=10")
        assert not other.exists()
    assert (tmp_path / "done" / "last").is_file()
    (tmp_path / ".tmp-host-1-0").mkdir()
    assert files.label_of(tmp_path / ".tmp-host-1-0") == ""
    files.clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["done"]


def test_what_a_killed_process_left_of_a_file_is_cleared_with_the_next_one(tmp_path: Path) -> None:
    """Files of a running process, of another machine, and of other names are left alone."""
    host = socket.gethostname()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    names = {
        f".tmp-{host}-{gone.pid}-0-a.csv": False,
        f".tmp-{host}-{os.getppid()}-0-a.csv": True,
        f".tmp-{host}x-{gone.pid}-0-a.csv": True,
        f".tmp-{host}-{gone.pid}-0-b.csv": True,
    }
    for name in names:
        (tmp_path / name).write_text("half")
    files.write_whole(tmp_path / "a.csv", b"whole")
    assert {name: (tmp_path / name).exists() for name in names} == names


class Ends:
    """An object whose end raises, where nobody can catch it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_writes_that_end_after_a_failed_one_print_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: told.append(str(raised.exc_value)))
    for _ in range(2):
        arrays._hush_late_writes()
    late = "Event loop is closed"
    for error in (RuntimeError(late), RuntimeError("other"), ValueError(late)):
        one = Ends(error)
        del one
    assert told == ["other", late]
