"""What a rank does with a piece: particles in chunks, a completion record behind each."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from relion_pseudosubtomo.errors import PseudoSubtomoError, RankError
from relion_pseudosubtomo.estimate import particle_bytes
from relion_pseudosubtomo.io.container_content import Content
from relion_pseudosubtomo.io.containers import ContainerStore
from relion_pseudosubtomo.io.records import Record, RecordStore
from relion_pseudosubtomo.loading import LoadingStopped
from relion_pseudosubtomo.model import TaskResult
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.parallel.runner import Control
from relion_pseudosubtomo.worker import BegunTask, SharedJob, TaskInput, Worker

#: Particles a thread does between two records: what a killed job loses at most.
CHUNK_PER_THREAD = 100

#: Seconds that a file which rank 0 has just written may take to show on another node, and between
#: two looks for it.
FILES_APPEAR, _LOOK_INTERVAL = 30.0, 0.5


class TaskWork:
    """Does pieces on one rank.

    Parameters
    ----------
    job : SharedJob
    threads : int
        Threads of this rank.
    """

    def __init__(self, job: SharedJob, threads: int) -> None:
        self._job = job
        self._threads = threads
        self._worker = Worker(job, threads)
        self._records = RecordStore(job.options.output) if writes_records(job.options) else None
        self._has_seen_files = False

    def prefetch(self, given: TaskInput, control: Control) -> None:
        """Load what a piece needs while another is being done."""
        self._worker.prefetch(given, control.stopped)

    def do(self, given: TaskInput, control: Control) -> tuple[int, TaskResult]:
        """Extract a piece; return how many particles were done, and what was counted."""
        # before anything that takes a while: the tomogram after this one may be loaded meanwhile
        self._worker.turn_to(given)
        if not self._has_seen_files:
            self._require_files(control, patience=FILES_APPEAR)
            self._has_seen_files = True
        try:
            return self._do_piece(given, control)
        except (PseudoSubtomoError, OSError):
            # a rank that has lost a mount fails faster than others work, and would get all pieces
            self._require_files(control, patience=0)
            raise

    def _require_files(self, control: Control, *, patience: float) -> None:
        """Make sure that this rank sees the files of the job, within so many seconds.

        Its node may lack a mount, or the launcher may have started it in another directory.

        Raises
        ------
        RankError
        """
        deadline = time.monotonic() + patience
        while (unseen := self._find_unseen()) and not control.stopped():
            if time.monotonic() >= deadline:
                raise RankError(
                    f"{unseen}. Every node has to see the same files: look at the mounts of this "
                    "one, and at how the launcher sets the working directory"
                )
            time.sleep(_LOOK_INTERVAL)

    def _find_unseen(self) -> str:
        """Return what this rank does not see of the job's files; empty where it sees them."""
        images = self._job.some_images
        if self._records is not None and not _is_seen(self._records.job_path):
            unseen = str(self._records.job_path)
        elif images and not any(map(os.path.exists, images)):
            unseen = f"{images[0]}, or an image of another tomogram"
        else:
            return ""
        directory = "a working directory that is gone"
        with contextlib.suppress(OSError):
            directory = f"the working directory {os.getcwd()}"
        return f"expected {unseen}, found no such file from {directory}"

    def _do_piece(self, given: TaskInput, control: Control) -> tuple[int, TaskResult]:
        total = TaskResult(given.task.number, given.task.first)
        if given.columns:
            self._begin_container(given)
        with closing(self._do_chunks(given, control)) as chunks:
            for part, result in chunks:
                if result.n_particles:
                    self._record(part, result)
                total.add(result)
        if self._job.options.hdf5:
            self._finish_container(given, control)
        return total.n_particles, total

    def _do_chunks(
        self, given: TaskInput, control: Control
    ) -> Generator[tuple[TaskInput, TaskResult], None, None]:
        """Yield each chunk and what was done; threads that have done one go on with the next."""
        # partial sums are large: one record a piece is enough then
        makes_sums = self._job.options.makes_sums
        size = len(given.task) if makes_sums else CHUNK_PER_THREAD * self._threads
        begun: deque[tuple[TaskInput, BegunTask]] = deque()
        try:
            for start in range(0, len(given.task), size):
                if control.stopped():
                    break
                part = given.part(start, min(start + size, len(given.task)))
                try:
                    chunk = self._worker.begin(part, control.stopped, control.count_item)
                except LoadingStopped:
                    break
                begun.append((part, chunk))
                if len(begun) == 2:
                    part, chunk = begun.popleft()
                    yield part, self._worker.finish(chunk)
            while begun:
                part, chunk = begun.popleft()
                yield part, self._worker.finish(chunk)
        finally:
            for _, chunk in begun:
                chunk.abandon()

    def _begin_container(self, given: TaskInput) -> None:
        """Lay out the container of a tomogram of which nothing is done."""
        from relion_pseudosubtomo.io import hdf5  # most jobs need not wait for the library

        options = self._job.options
        content = Content(options, given.tomogram, given.task, given.columns, given.fingerprint)
        ContainerStore(options.output).create(
            given.tomogram.name, lambda path: hdf5.lay_out(path, content)
        )

    def _finish_container(self, given: TaskInput, control: Control) -> None:
        """Let the container of a tomogram appear that is done with this piece."""
        assert self._records is not None  # of all that is written there are records
        name = given.tomogram.name
        n_done = sum(len(record.stems) for record in self._records.read_tomogram(name))
        if n_done == given.n_whole:
            store = ContainerStore(self._job.options.output)
            store.finish(name, self._threads, control.stopped)

    def _record(self, given: TaskInput, result: TaskResult) -> None:
        if self._records is None:
            return
        options, tomogram = self._job.options, given.tomogram
        done = given.task.part(0, result.n_particles)
        self._records.write(
            Record(
                tomogram=tomogram.name,
                first=done.first,
                stop=done.first + len(done),
                fingerprint=given.fingerprint,
                stems=done.stems,
                suffixes=options.image_suffixes,
                sizes=tuple(
                    size
                    for visible in done.visible
                    for size in particle_bytes(options, tomogram, int(visible.sum()))
                ),
                n_clipped=result.n_clipped,
                n_not_finite=result.n_not_finite,
            ),
            result.sums,
        )


def _is_seen(path: Path) -> bool:
    """Return whether a file in a folder of the output directory is there.

    A network file system may answer from before it was there; folders that are opened are asked
    for anew.
    """
    for folder in (path.parent.parent, path.parent):
        with contextlib.suppress(OSError):
            os.scandir(folder).close()
    return os.path.exists(path)


def writes_records(options: JobOptions) -> bool:
    """Return whether a run leaves anything that a later run could continue."""
    return not options.no_writing or options.makes_sums
