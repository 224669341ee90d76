"""One job at a time in an output directory: an flock that dies with its process (spec 4.5)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import platform
import time
from types import TracebackType

from relion_pseudosubtomo.errors import LockedError, OutputError

LOCK_NAME = ".lock"

#: What file systems without locks answer: Lustre mounted without them, some NFS servers.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

#: Seconds that a lock is waited for, and between two looks. A killed job's lock lives on for a
#: moment in a process that the job was about to start: importing h5py starts one.
_PATIENCE, _PAUSE = 1.0, 0.02

logger = logging.getLogger("relion_pseudosubtomo")


def find_holder(directory: str) -> str:
    """Return what a running job says of itself in the lock of a directory; empty without one."""
    try:
        file = os.open(os.path.join(directory, LOCK_NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        _lock(file, fcntl.LOCK_SH)
    except BlockingIOError:
        text = os.pread(file, 4096, 0).decode(errors="replace").strip()
        return text or "a job that is starting"
    except OSError:
        pass
    finally:
        os.close(file)
    return ""


def _lock(file: int, operation: int) -> None:
    """Lock a file; raise BlockingIOError where another process keeps it."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE)


class DirectoryLock:
    """Holds DIR/.lock, which names host, process and job while it is held.

    Parameters
    ----------
    directory : str
        The output directory; it has to exist.
    job : str
        What to tell a second job.

    Raises
    ------
    LockedError
        On entering, where another job holds the lock.
    """

    def __init__(self, directory: str, job: str) -> None:
        self._path = os.path.join(directory, LOCK_NAME)
        self._job = job
        self._file = -1

    def __enter__(self) -> DirectoryLock:
        """Take the lock, or say who holds it."""
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"{self._path} could not be written: {error.strerror}") from error
        try:
            _lock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logger.warning(
                    "%s: this file system has no locks; make sure that only one job writes here",
                    self._path,
                )
                return self
            if not isinstance(error, BlockingIOError):
                raise OutputError(f"{self._path} cannot be locked: {error.strerror}") from error
            holder = os.pread(self._file, 4096, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise LockedError(
                f"Another job is writing to this directory ({self._path}: {holder or 'starting'}). "
                "Wait for it, or give another --o."
            ) from None
        self._write(f"host {platform.node()}, process {os.getpid()}, {self._job}\n")
        return self

    def _write(self, text: str) -> None:
        """Write what a second job is told, where the disk has room: the lock holds without it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock; the empty file stays: removing it would race with a second job."""
        self._write("")
        with contextlib.suppress(OSError):  # a disk's quota may be told of only now
            os.close(self._file)
