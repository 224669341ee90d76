"""The whole path of a job: check, plan, extract, merge, write."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from relion_pseudosubtomo import merge
from relion_pseudosubtomo.average_results import write_average
from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.errors import PseudoSubtomoError
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
from relion_pseudosubtomo.findings import bytes_text
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.io.fingerprint import fingerprint_task
from relion_pseudosubtomo.io.lock import DirectoryLock
from relion_pseudosubtomo.io.records import Record, add_up
from relion_pseudosubtomo.model import Task, TaskResult, Tomogram
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.output_directory import Completed, OutputDirectory
from relion_pseudosubtomo.parallel.coordinate import News
from relion_pseudosubtomo.parallel.schedule import TaskCost
from relion_pseudosubtomo.parallel.work import Outcome, Piece
from relion_pseudosubtomo.parallel.world import Pool
from relion_pseudosubtomo.pipeline import PipelineControl
from relion_pseudosubtomo.plan import Plan, leave_out_tasks, take_task
from relion_pseudosubtomo.positions import project_particles
from relion_pseudosubtomo.preflight import JobInput, check_unchanged, read_and_check
from relion_pseudosubtomo.progress import Progress
from relion_pseudosubtomo.report.geometry import write_facts, write_geometry
from relion_pseudosubtomo.results import (
    write_note,
    write_positions,
    write_summary,
    write_sums,
    write_tables,
)
from relion_pseudosubtomo.summary import (
    RunSummary,
    count_dropped,
    drop_lines,
    plan_lines,
    start_summary,
)
from relion_pseudosubtomo.task_work import writes_records
from relion_pseudosubtomo.worker import SharedJob, TaskInput

logger = logging.getLogger("relion_pseudosubtomo")

NO_PREBIN = (
    "--prebin is not used: it needs a whole factor of 2 or more, at most half of --bin, that "
    "divides the window of --b times --bin pixels into 14 or more, and no --circle_precrop"
)

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 75


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


def run_job(options: JobOptions, start: Start, pool: Pool) -> int:
    """Run an extraction from start to end.

    Parameters
    ----------
    options : JobOptions
    start : Start
    pool : Pool
        The ranks that do the work.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed or aborted, 75 stopped by a signal (spec 4.5).

    Raises
    ------
    InputError
        Where the input cannot be used; nothing has been written then.
    """
    started = time.perf_counter()
    job, plan = read_and_check(options)
    for text in (*(finding.text for finding in job.findings), *drop_lines(plan)):
        logger.warning("%s", text)
    summary = start_summary(plan, job.particle_set, pool.size, start.threads)
    if options.dry_run:
        run = Extraction(options, job, plan, summary, OutputDirectory(options))
        left = replace(plan, tasks=run.tasks_left())
        _print_plan(options, job, left, pool.size, start.threads)
        return EXIT_DONE
    summary.failures.update(job.tomogram_set.failed)
    make_folder(Path(options.output))
    with DirectoryLock(options.output, job=f"{pool.size} ranks"):
        check_unchanged(options)
        run = Extraction(options, job, plan, summary, OutputDirectory(options))
        run.extract(pool, start)
        summary.close(time.perf_counter() - started, run.seconds, run.busy)
        return _finish(options, start, run)


def _print_plan(options: JobOptions, job: JobInput, plan: Plan, ranks: int, threads: int) -> None:
    tomograms = [job.tomogram_set.tomograms[task.tomogram] for task in plan.tasks]
    pairs = list(zip(tomograms, plan.tasks, strict=True))
    work = []
    for tomogram, task in pairs:
        begin, each = task_seconds(options, tomogram, task)
        work.append(begin + each * len(task))
    n_bytes = [task_bytes(options, tomogram, task) for tomogram, task in pairs]
    for line in plan_lines(plan, [t.name for t in tomograms], n_bytes, work, ranks):
        logger.info("%s", line)
    if options.hdf5_compression:
        logger.info("The containers will be smaller: these are bytes before compression")
    n_files = len(plan.kept_rows) * len(options.image_suffixes)
    n_files += len(plan.tasks) if options.hdf5 else 0
    memory = _memory_text(options, job, tomograms, threads)
    logger.info("%d image files; private memory %s", n_files, memory)
    folder = Path(options.output).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if sum(n_bytes) + all_sums_bytes(options, len(plan.tasks), ranks) > free:
        logger.warning("Disk space: only %s are free", bytes_text(free))
    logger.info("Dry run: nothing was written.")


def _memory_text(
    options: JobOptions, job: JobInput, tomograms: list[Tomogram], threads: int
) -> str:
    """Return how much memory of their own the ranks need."""
    memory = rank_memory(options, tomograms, threads)
    tables = table_memory(job.particle_set, job.trajectories)
    text = f"{memory / 1e9:.2f} GB a rank"
    return f"{text}, {tables / 1e9:.2f} GB more on rank 0 for the tables" if tables > 5e7 else text


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
    blameless : bool
        Whether nothing failed for another reason than its input.
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
    blameless: bool = True

    def extract(self, pool: Pool, start: Start) -> None:
        """Do what no record says is done; failures are noted, not raised."""
        if not kernels.IS_COMPILED:
            logger.warning("The compiled kernels are missing: the NumPy versions are far slower.")
        fingerprints = self._fingerprint()
        self.completed, records = self.directory.examine(
            self.job.tomogram_set, self.plan.tasks, fingerprints
        )
        self.summary.n_done_before = sum(len(record.stems) for record in records)
        self._tell_prebin()
        costs = self._costs(start.threads)
        self.directory.check_space(self._bytes_to_write(pool.size))
        self.directory.begin()
        if self.options.hdf5:
            self.settle_containers(self.plan, start)
        memory = _memory_text(self.options, self.job, self._tomograms(), start.threads)
        logger.info("Private memory: about %s", memory)
        began = time.perf_counter()

        def describe(piece: Piece) -> TaskInput:
            return self._describe(piece, fingerprints[piece.task])

        stop = partial(self.stop_wanted, start)
        shared = SharedJob(self.options, self.job.tomogram_set, self.job.particle_set.optics)
        left = len(self.plan.kept_rows) - self.summary.n_done_before
        run = pool.run(shared, costs, describe, split=self.options.may_split, stop=stop)
        # closed before the lock goes: nothing is written behind it
        with Progress(left) as progress, closing(run):
            for news in run:
                progress.advance(news.n_items)
                self._take(news)
        self.seconds = time.perf_counter() - began

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

    def _bytes_to_write(self, ranks: int) -> int:
        pairs = list(zip(self._tomograms(), self.plan.tasks, strict=True))
        ranges = [
            (tomogram, task.part(first, stop))
            for tomogram, task in pairs
            for first, stop in self.completed.missing(task)
        ]
        n_bytes = sum(task_bytes(self.options, tomogram, part) for tomogram, part in ranges)
        n_bytes += all_sums_bytes(self.options, len(ranges), ranks)
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
        return TaskInput(
            task,
            self.job.particle_set.take_numbers(task.rows),
            None if moving is None else moving.stack(task.rows),
            np.any(whole.visible, axis=0),
            fingerprint,
            choose_prebin(self.options, self.job.tomogram_set.tomograms[whole.tomogram], whole),
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
        if outcome.error:
            self.failed.add(piece.task)
            self.blameless = self.blameless and outcome.is_input
            self.summary.failures[name] = outcome.error
            logger.error("Tomogram %s failed: %s", name, outcome.error)
            if outcome.details:
                logger.debug("%s", outcome.details)
        elif outcome.n_done:
            self.completed.add(piece.task, piece.start, piece.start + outcome.n_done)
            self.summary.add(name, rank, outcome.result)
            _log_result(name, rank, len(self.plan.tasks[piece.task]), outcome.result)

    def stop_wanted(self, start: Start) -> bool:
        """Return whether a signal to any rank, or RELION's interface, asked for an end."""
        return self.signalled or start.stopped() or start.control.abort_wanted()

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


def _log_result(name: str, rank: int, n_kept: int, result: TaskResult) -> None:
    logger.info(
        "%s on rank %d: %d of %d particles, %.1f s loading, %.1f s extracting, %.1f s writing",
        name,
        rank,
        result.n_particles,
        n_kept,
        result.seconds_loading,
        result.seconds_extracting,
        result.seconds_writing,
    )
    if result.n_not_finite:
        logger.warning(
            "%s: %d pixels read were NaN or infinite; --average leaves out images with such "
            "pixels, --sum their particles",
            name,
            result.n_not_finite,
        )
    if result.n_clipped:
        logger.warning("%s: %d values beyond float16's range were clipped", name, result.n_clipped)


def _finish(options: JobOptions, start: Start, run: Extraction) -> int:
    """Merge what is complete, or say why nothing is merged."""
    summary, missing = run.summary, run.missing_tasks()
    skipping = options.allow_failures and run.blameless and missing <= run.failed
    merging = not missing or skipping
    if merging and missing == {task.number for task in run.plan.tasks}:
        merging = False
    if merging:
        plan = leave_out_tasks(run.plan, missing)
        # the ranks have done so, unless they were stopped or did not see each other's records
        merging = not options.hdf5 or run.settle_containers(plan, start)
    if merging:
        summary.n_kept, summary.dropped = len(plan.kept_rows), count_dropped(plan)
        _merge(options, start, run, plan)
    write_summary(options, summary)
    for line in summary.lines():
        logger.info("%s", line)
    if merging:
        if summary.failures:
            logger.warning("Merged without failed tomograms: %s", ", ".join(summary.failures))
        if not options.no_writing:
            logger.info("Wrote %s", merge.output_path(options, "particles.star"))
        if options.report:
            _make_report(options)
        return EXIT_DONE
    return _say_why_not_merged(start, run)


def _merge(options: JobOptions, start: Start, run: Extraction, plan: Plan) -> None:
    """Write everything that needs all ranks' work, the STAR files last."""
    if run.summary.lost_ranks:
        run.directory.remove_temporary_files()
    records: list[Record] = []
    if writes_records(options):
        records = run.directory.join_records(run.job.tomogram_set, plan.tasks)
        if options.makes_sums:
            _write_sums(options, run, plan, records)
    if not options.no_writing:
        if not start.control.active:
            write_note(options, start.command, run.summary.ranks, start.threads)
        if options.positions2d:
            write_positions(options, run.job, plan)
        if options.report:
            _write_for_report(options, start, run, plan, records)
        write_tables(options, run.job, plan)


def _write_sums(options: JobOptions, run: Extraction, plan: Plan, records: list[Record]) -> None:
    """Add up the partial sums beside the records, and write what comes of them."""
    sums = add_up(run.directory.records.read_sums(record) for record in records)
    tomogram = run.job.tomogram_set.tomograms[plan.tasks[0].tomogram]
    voxel_size = options.binning * tomogram.pixel_size
    if options.sum:
        write_sums(options, voxel_size, sums)
    if options.average:
        run.summary.average = write_average(options, voxel_size, sums)


def _write_for_report(
    options: JobOptions, start: Start, run: Extraction, plan: Plan, records: list[Record]
) -> None:
    """Leave beside what the workers collected what the report tells of the run and its plan."""
    job = run.job
    write_facts(options, start.command, [finding.text for finding in job.findings])
    projected = project_particles(
        options, job.tomogram_set, job.particle_set, job.trajectories, plan
    )
    fingerprints = {record.tomogram: record.fingerprint for record in records}
    write_geometry(options, projected, fingerprints)


def _make_report(options: JobOptions) -> None:
    """Make the page; the results are good without it."""
    from relion_pseudosubtomo.report.page import make_report  # its packages are an extra

    try:
        logger.info("Wrote %s", make_report(options.output))
    except (PseudoSubtomoError, OSError) as error:
        logger.warning(
            "No report: %s. Make it with relion_pseudosubtomo report %s", error, options.output
        )


def _say_why_not_merged(start: Start, run: Extraction) -> int:
    hint = "start again with --only_do_unfinished to continue"
    if start.control.abort_wanted():
        logger.error("Aborted by RELION's interface; no particles.star was written: %s", hint)
        return EXIT_FAILED
    if run.signalled or start.stopped():
        logger.error("Stopped by a signal; no particles.star was written: %s", hint)
        return EXIT_STOPPED
    logger.error(
        "%d tomograms failed, so no particles.star was written: %s. Mend them and %s%s",
        len(run.summary.failures),
        ", ".join(run.summary.failures),
        hint,
        ", or leave them out with --allow_failures" if run.blameless else "",
    )
    return EXIT_FAILED
