"""RELION's job control files: how its interface learns of a job's end, or asks for it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from relion_pseudosubtomo.io.lock import find_holder

SUCCESS = "RELION_JOB_EXIT_SUCCESS"
FAILURE = "RELION_JOB_EXIT_FAILURE"
ABORTED = "RELION_JOB_EXIT_ABORTED"
ABORT_NOW = "RELION_JOB_ABORT_NOW"

logger = logging.getLogger("relion_pseudosubtomo")

#: Seconds between two looks for the abort file.
LOOK_INTERVAL = 1.0


class PipelineControl:
    """The files of `--pipeline_control JOBDIR/` (spec 3.6); does nothing without a directory.

    RELION's job directory is the output directory too. While another job holds its lock the files
    are that job's: they are left alone, or its interface would take a second start that is refused
    for the end of the first.

    Parameters
    ----------
    directory : str or None
        RELION's job directory.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = None if directory is None else Path(directory)
        self._last_look = 0.0
        self._aborted = self._is_anothers = False

    @property
    def active(self) -> bool:
        """Whether RELION's interface started this job."""
        return self._directory is not None

    def start(self) -> None:
        """Remove what an earlier run of this job left, unless another one is running there."""
        if self._directory is not None:
            self._is_anothers = bool(find_holder(str(self._directory)))
            if not self._is_anothers:
                self._remove_files(self._directory)

    def take_over(self) -> None:
        """Note that this job has got the lock of the output directory."""
        if self._directory is not None and self._is_anothers:
            self._remove_files(self._directory)
            self._is_anothers = False

    def leave_to_holder(self, output: str) -> None:
        """Note that another job has the lock of the output directory."""
        if self._directory is not None and self._directory.resolve() == Path(output).resolve():
            self._is_anothers = True

    def _remove_files(self, directory: Path) -> None:
        for name in (SUCCESS, FAILURE, ABORTED, ABORT_NOW):
            (directory / name).unlink(missing_ok=True)

    def abort_wanted(self) -> bool:
        """Return whether RELION's interface asks the job to stop; looks once a second at most."""
        if self._directory is None or self._is_anothers or self._aborted:
            return self._aborted
        now = time.monotonic()
        if now - self._last_look >= LOOK_INTERVAL:
            self._last_look = now
            # a network file system may go on answering that a file is missing which it was asked
            # for before; a listing of the folder is asked for anew
            with contextlib.suppress(OSError):  # no folder yet
                self._aborted = ABORT_NOW in os.listdir(self._directory)
        return self._aborted

    def finish(self, outcome: str) -> None:
        """Leave the file that says how the job ended: `SUCCESS`, `FAILURE` or `ABORTED`."""
        if self._directory is None or self._is_anothers:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / outcome).touch()
        except OSError as error:  # the exit status tells the same
            logger.error(
                "%s could not be written (%s): RELION's interface takes this job for running",
                self._directory / outcome,
                error.strerror or error,
            )
