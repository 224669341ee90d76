"""What a rank does with a piece: particles in chunks, a completion record behind each."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import closing

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

    def prefetch(self, given: TaskInput, control: Control) -> None:
        """Load what a piece needs while another is being done."""
        self._worker.prefetch(given, control.stopped)

    def do(self, given: TaskInput, control: Control) -> tuple[int, TaskResult]:
        """Extract a piece; return how many particles were done, and what was counted."""
        # before anything that takes a while: the tomogram after this one may be loaded meanwhile
        self._worker.turn_to(given)
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
        tomogram = self._job.tomogram_set.tomograms[given.task.tomogram]
        content = Content(options, tomogram, given.task, given.columns, given.fingerprint)
        ContainerStore(options.output).create(
            tomogram.name, lambda path: hdf5.lay_out(path, content)
        )

    def _finish_container(self, given: TaskInput, control: Control) -> None:
        """Let the container of a tomogram appear that is done with this piece."""
        assert self._records is not None  # of all that is written there are records
        name = self._job.tomogram_set.tomograms[given.task.tomogram].name
        n_done = sum(len(record.stems) for record in self._records.read_tomogram(name))
        if n_done == given.n_whole:
            store = ContainerStore(self._job.options.output)
            store.finish(name, self._threads, control.stopped)

    def _record(self, given: TaskInput, result: TaskResult) -> None:
        if self._records is None:
            return
        job = self._job
        tomogram = job.tomogram_set.tomograms[given.task.tomogram]
        done = given.task.part(0, result.n_particles)
        self._records.write(
            Record(
                tomogram=tomogram.name,
                first=done.first,
                stop=done.first + len(done),
                fingerprint=given.fingerprint,
                stems=done.stems,
                suffixes=job.options.image_suffixes,
                sizes=tuple(
                    size
                    for visible in done.visible
                    for size in particle_bytes(job.options, tomogram, int(visible.sum()))
                ),
                n_clipped=result.n_clipped,
                n_not_finite=result.n_not_finite,
            ),
            result.sums,
        )


def writes_records(options: JobOptions) -> bool:
    """Return whether a run leaves anything that a later run could continue."""
    return not options.no_writing or options.makes_sums
