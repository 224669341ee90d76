"""The extraction of a job: hand its tasks to the ranks, take what they report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from relion_pseudosubtomo import merge
from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.estimate import (
    all_sums_bytes,
    choose_prebin,
    container_bytes,
    passing_bytes,
    rank_memory,
    seconds_beside,
    table_memory,
    task_bytes,
    task_seconds,
)
from relion_pseudosubtomo.findings import counted
from relion_pseudosubtomo.io.fingerprint import fingerprint_task
from relion_pseudosubtomo.model import Task, TaskResult, Tomogram
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.output_directory import Completed, OutputDirectory
from relion_pseudosubtomo.parallel.coordinate import News
from relion_pseudosubtomo.parallel.forecast import count_pieces
from relion_pseudosubtomo.parallel.schedule import TaskCost
from relion_pseudosubtomo.parallel.work import Outcome, Piece
from relion_pseudosubtomo.parallel.world import Pool
from relion_pseudosubtomo.pipeline import PipelineControl
from relion_pseudosubtomo.plan import Plan, take_task
from relion_pseudosubtomo.preflight import JobInput
from relion_pseudosubtomo.progress import Progress
from relion_pseudosubtomo.summary import (
    RunSummary,
)
from relion_pseudosubtomo.task_work import writes_records
from relion_pseudosubtomo.worker import SharedJob, TaskInput

logger = logging.getLogger("relion_pseudosubtomo")

#: Tomograms by whose images a rank finds out whether it sees those of the job at all.
_SOME_TOMOGRAMS = 20

NO_PREBIN = (
    "--prebin is not used: it needs a whole factor of 2 or more, at most half of --bin, that "
    "divides the window of --b times --bin pixels into 14 or more, and no --circle_precrop"
)


@dataclass(frozen=True)
class Start:
    """How a job was started.

    Attributes
    ----------
    command : list of str
        The command line, for note.txt.
    control : PipelineControl
        RELION's job control files.
    stopped : callable
        True once a signal asked for an end.
    threads : int
        Threads of each rank.
    """

    command: list[str]
    control: PipelineControl
    stopped: Callable[[], bool]
    threads: int


def memory_text(options: JobOptions, job: JobInput, tomograms: list[Tomogram], threads: int) -> str:
    """Return how much memory of their own the ranks need."""
    memory = rank_memory(options, tomograms, threads)
    tables = table_memory(job.particle_set, job.trajectories)
    text = f"{memory / 1e9:.2f} GB a rank"
    return f"{text}, {tables / 1e9:.2f} GB more on rank 0 for the tables" if tables > 5e7 else text


def sums_to_write(options: JobOptions, costs: Sequence[TaskCost], ranks: int) -> int:
    """Return the bytes of the partial sums that a run writes, one for each piece of a tomogram."""
    if not options.makes_sums:
        return 0
    n_pieces = count_pieces(costs, ranks, split=options.may_split)
    return all_sums_bytes(options, n_pieces, ranks)


@dataclass
class Extraction:
    """One run of the tasks of a plan.

    Attributes
    ----------
    options : JobOptions
    job : JobInput
    plan : Plan
    summary : RunSummary
    directory : OutputDirectory
        Whose lock is held.
    failed : set of int
        Numbers of the tasks that failed.
    seconds : float
        Wall time of the extraction.
    busy : dict of int to float
        Seconds each rank spent on pieces.
    completed : Completed
        What is done, by this run or earlier ones.
    signalled : bool
        Whether any rank was told to stop.
    unfit : set of int
        Ranks that can do nothing of the job; the others stop then.
    kept_exact : set of str
        Tomograms that `--prebin` could not be used for after all.
    may_leave_out : bool
        Whether every failure is its tomogram's own, so that `--allow_failures` does without it.
    """

    options: JobOptions
    job: JobInput
    plan: Plan
    summary: RunSummary
    directory: OutputDirectory
    failed: set[int] = field(default_factory=set)
    seconds: float = 0.0
    busy: dict[int, float] = field(default_factory=dict)
    completed: Completed = field(default_factory=Completed)
    signalled: bool = False
    unfit: set[int] = field(default_factory=set)
    kept_exact: set[str] = field(default_factory=set)
    may_leave_out: bool = True

    def extract(self, pool: Pool, start: Start) -> bool:
        """Do what no record says is done; failures are noted, not raised.

        Returns
        -------
        bool
            False where an end was asked for before anything was changed.
        """
        if not kernels.IS_COMPILED:
            logger.warning("The compiled kernels are missing: the NumPy versions are far slower.")
        fingerprints = self._fingerprint()
        self.completed, records = self.directory.examine(
            self.job.tomogram_set, self.plan.tasks, fingerprints
        )
        self.summary.n_done_before = sum(len(record.stems) for record in records)
        for record in records:
            self.summary.count_bad_values(record.tomogram, record.n_clipped, record.n_not_finite)
        self._tell_prebin()
        costs = self._costs(start.threads)
        self.directory.check_space(self._bytes_to_write(costs, pool.size))
        if self.stop_wanted(start):  # old results are not given up for a run that does nothing
            return False
        self.directory.begin()
        if self.options.hdf5:
            self.settle_containers(self.plan, start)
        memory = memory_text(self.options, self.job, self._tomograms(), start.threads)
        logger.info("Private memory: about %s", memory)
        began = time.perf_counter()

        def describe(piece: Piece) -> TaskInput:
            return self._describe(piece, fingerprints[piece.task])

        stop = partial(self.stop_wanted, start)
        shared = SharedJob(self.options, self.job.particle_set.optics, self._some_images())
        left = len(self.plan.kept_rows) - self.summary.n_done_before
        run = pool.run(shared, costs, describe, split=self.options.may_split, stop=stop)
        # closed before the lock goes: nothing is written behind it
        with Progress(left) as progress, closing(run):
            for news in run:
                progress.advance(news.n_items)
                self._take(news)
        self.seconds = time.perf_counter() - began
        return True

    def tasks_left(self) -> tuple[Task, ...]:
        """Return what no record says is done; nothing is changed."""
        if self.options.only_do_unfinished:
            self.completed, _ = self.directory.examine(
                self.job.tomogram_set, self.plan.tasks, self._fingerprint()
            )
        return tuple(
            task.part(first, stop)
            for task in self.plan.tasks
            for first, stop in self.completed.missing(task)
        )

    def _fingerprint(self) -> dict[int, str]:
        job = self.job
        if not writes_records(self.options):
            return dict.fromkeys(range(len(self.plan.tasks)), "")
        return {
            task.number: fingerprint_task(
                self.options,
                job.tomogram_set.tomograms[task.tomogram],
                job.particle_set,
                job.trajectories,
                task,
            )
            for task in self.plan.tasks
        }

    def _tomograms(self) -> list[Tomogram]:
        """Return the tomogram of every task."""
        tomograms = self.job.tomogram_set.tomograms
        return [tomograms[task.tomogram] for task in self.plan.tasks]

    def _some_images(self) -> tuple[str, ...]:
        """Return the first image of some of the tomograms that are extracted."""
        tomograms = self._tomograms()
        some = tomograms[:: max(1, len(tomograms) // _SOME_TOMOGRAMS)]
        if self.options.real_subtomo:
            return tuple(tomogram.reconstructions[0] for tomogram in some)
        return tuple(tomogram.frames[0].path for tomogram in some)

    def _tell_prebin(self) -> None:
        """Say where `--prebin` is used, and where not."""
        options, n = self.options, len(self.plan.tasks)
        if not options.prebin:
            return
        if options.prebin_factor == 1:
            logger.warning("%s", NO_PREBIN)
            return
        pairs = zip(self._tomograms(), self.plan.tasks, strict=True)
        used = sum(choose_prebin(options, tomogram, task) > 1 for tomogram, task in pairs)
        logger.info(
            "Prebinning by %d: %d tomograms; exact, as too few particles would gain: %d tomograms",
            options.prebin_factor,
            used,
            n - used,
        )

    def _costs(self, threads: int) -> list[TaskCost]:
        costs = []
        for task in self.plan.tasks:
            tomogram = self.job.tomogram_set.tomograms[task.tomogram]
            begin, each = task_seconds(self.options, tomogram, task)
            beside = seconds_beside(self.options, tomogram, task)
            costs.append(TaskCost(begin, each / threads, self.completed.missing(task), beside))
        return costs

    def _bytes_to_write(self, costs: list[TaskCost], ranks: int) -> int:
        pairs = list(zip(self._tomograms(), self.plan.tasks, strict=True))
        ranges = [
            (tomogram, task.part(first, stop))
            for tomogram, task in pairs
            for first, stop in self.completed.missing(task)
        ]
        n_bytes = sum(task_bytes(self.options, tomogram, part) for tomogram, part in ranges)
        n_bytes += sums_to_write(self.options, costs, ranks)
        unfinished = [
            container_bytes(self.options, tomogram, task)
            for tomogram, task in pairs
            if self.completed.missing(task)
        ]
        return n_bytes + passing_bytes(self.options, unfinished, ranks)

    def _describe(self, piece: Piece, fingerprint: str) -> TaskInput:
        """Return what a rank needs to do a piece."""
        whole = self.plan.tasks[piece.task]
        task = whole.part(piece.start, piece.stop)
        moving = self.job.trajectories
        tomogram = self.job.tomogram_set.tomograms[whole.tomogram]
        return TaskInput(
            task,
            tomogram,
            self.job.particle_set.take_numbers(task.rows),
            None if moving is None else moving.stack(task.rows),
            np.any(whole.visible, axis=0),
            fingerprint,
            choose_prebin(self.options, tomogram, whole),
            len(whole),
            self._rows_for_container(piece),
        )

    def _rows_for_container(self, piece: Piece) -> Columns:
        """Return a tomogram's rows of particles.star where its container is to be begun."""
        is_whole = piece.stop - piece.start == len(self.plan.tasks[piece.task])
        if not (self.options.hdf5 and is_whole):
            return {}
        alone = take_task(self.plan, piece.task)
        job = self.job
        return merge.merge_particles(self.options, job.particle_set, job.tomogram_set, alone)

    def _take(self, news: News) -> None:
        """Note what a rank reports."""
        if news.lost:
            logger.error("Rank %d was lost; its work goes to the other ranks", news.rank)
            self.summary.lost_ranks.append(news.rank)
            for piece in news.lost_pieces:
                name = self._name(piece)
                if writes_records(self.options):
                    self.directory.forget_range(name, piece.start, piece.stop)
            return
        self.signalled = self.signalled or news.stopping
        if news.private_memory:
            before = self.summary.private_memory.get(news.rank, 0)
            self.summary.private_memory[news.rank] = max(before, news.private_memory)
            self.busy[news.rank] = news.busy_seconds
        for outcome in news.outcomes:
            self._take_outcome(news.rank, outcome)

    def _name(self, piece: Piece) -> str:
        return self.job.tomogram_set.tomograms[self.plan.tasks[piece.task].tomogram].name

    def _take_outcome(self, rank: int, outcome: Outcome) -> None:
        name, piece = self._name(outcome.piece), outcome.piece
        if outcome.is_final:
            if rank not in self.unfit:
                logger.error("%s", outcome.error)
            self.unfit.add(rank)
            self.may_leave_out = False
        elif outcome.error:
            self.failed.add(piece.task)
            self.may_leave_out = self.may_leave_out and outcome.is_local
            self.summary.failures[name] = outcome.error
            logger.error("Tomogram %s failed: %s", name, outcome.error)
            if outcome.details:
                logger.debug("%s", outcome.details)
        elif outcome.n_done:
            self.completed.add(piece.task, piece.start, piece.start + outcome.n_done)
            self.summary.add(name, rank, outcome.result)
            _log_result(name, rank, self.summary.by_tomogram[name], outcome.result)
            if outcome.result.lost_prebin and name not in self.kept_exact:
                self.kept_exact.add(name)
                logger.warning(
                    "%s: pixels are NaN or infinite, so --prebin is not used for it", name
                )

    def stop_wanted(self, start: Start) -> bool:
        """Return whether a signal, RELION's interface or a rank that is unfit asks for an end."""
        return bool(self.unfit) or self.signalled or start.stopped() or start.control.abort_wanted()

    def settle_containers(self, plan: Plan, start: Start) -> bool:
        """Bring the containers of a plan's tasks where what is done says that they belong.

        Returns
        -------
        bool
            False where an end was asked for meanwhile.
        """
        stop = partial(self.stop_wanted, start)
        return self.directory.settle_containers(
            self.job.tomogram_set, plan.tasks, self.completed, start.threads, stop
        )

    def missing_tasks(self) -> set[int]:
        """Return the tasks of which particles are missing."""
        return {task.number for task in self.plan.tasks if self.completed.missing(task)}


def _log_result(name: str, rank: int, counts: dict[str, int], result: TaskResult) -> None:
    n_bad = result.n_not_finite + result.n_clipped  # warned about once, at the end
    logger.info(
        "%s on rank %d: %s (%d kept, %d dropped), %.1f s loading, %.1f s extracting, "
        "%.1f s writing%s",
        name,
        rank,
        counted(result.n_particles, "particle"),
        counts["kept"],
        counts["dropped"],
        result.seconds_loading,
        result.seconds_extracting,
        result.seconds_writing,
        f", {n_bad} bad values" if n_bad else "",
    )
