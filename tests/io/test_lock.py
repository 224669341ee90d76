"""One job at a time in a directory, also where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from pathlib import Path

import pytest

from relion_pseudosubtomo.errors import InputError, LockedError, OutputError
from relion_pseudosubtomo.io.lock import DirectoryLock, find_holder


def test_the_second_job_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    """The message names the process that holds the lock; leaving releases it."""
    with (
        DirectoryLock(str(tmp_path), "a job"),
        pytest.raises(InputError, match=f"process {os.getpid()}, a job"),
        DirectoryLock(str(tmp_path), "another"),
    ):
        pass
    with DirectoryLock(str(tmp_path), "a third"):
        assert "a third" in (tmp_path / ".lock").read_text()
    assert (tmp_path / ".lock").read_text() == ""


def hold_for_a_moment(path: Path) -> None:
    """Lock a file as another process would, and release it soon."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    threading.Timer(0.2, os.close, [file]).start()


def test_a_lock_that_is_about_to_go_is_waited_for(tmp_path: Path) -> None:
    """A killed job's lock may live on in a process that it had just started."""
    hold_for_a_moment(tmp_path / ".lock")
    assert find_holder(str(tmp_path)) == ""
    hold_for_a_moment(tmp_path / ".lock")
    with DirectoryLock(str(tmp_path), "a job"):
        assert "a job" in (tmp_path / ".lock").read_text()


def test_without_locks_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system that knows no locks does not stop the run."""

    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(logging.getLogger("relion_pseudosubtomo"), "propagate", True)
    with DirectoryLock(str(tmp_path), "a job"):
        assert "has no locks" in caplog.text


def test_a_full_disk_does_not_hinder_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a second job would be told has no room; it is refused all the same."""

    def refuse(file: int, text: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with DirectoryLock(str(tmp_path), "a job"):
        assert find_holder(str(tmp_path)) == "a job that is starting"
        with pytest.raises(LockedError, match="starting"), DirectoryLock(str(tmp_path), "another"):
            pass
    assert find_holder(str(tmp_path)) == ""


def test_other_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be locked for another reason is an error."""

    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(OutputError, match=r"\.lock cannot be locked: Input/output error"),
        DirectoryLock(str(tmp_path), "a job"),
    ):
        pass
