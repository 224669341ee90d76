"""The whole path of a job: check, plan, extract, merge, write."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from relion_pseudosubtomo import merge
from relion_pseudosubtomo.average_results import write_average
from relion_pseudosubtomo.errors import PseudoSubtomoError
from relion_pseudosubtomo.estimate import (
    task_bytes,
    task_seconds,
)
from relion_pseudosubtomo.extraction import Extraction, Start, memory_text, sums_to_write
from relion_pseudosubtomo.findings import bytes_text, counted, shorten
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.io.lock import DirectoryLock
from relion_pseudosubtomo.io.records import Record, add_up
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.output_directory import OutputDirectory
from relion_pseudosubtomo.parallel.schedule import TaskCost
from relion_pseudosubtomo.parallel.world import Pool
from relion_pseudosubtomo.plan import Plan, leave_out_tasks
from relion_pseudosubtomo.positions import project_particles
from relion_pseudosubtomo.preflight import JobInput, check_unchanged, read_and_check
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
    drop_lines,
    plan_lines,
    start_summary,
)
from relion_pseudosubtomo.task_work import writes_records

logger = logging.getLogger("relion_pseudosubtomo")

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 75


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
    shown, more = shorten(job.findings)
    if more:
        more.append("relion_pseudosubtomo check lists them all")
    for text in (*(finding.text for finding in shown), *more, *drop_lines(plan)):
        logger.warning("%s", text)
    summary = start_summary(plan, job.tomogram_set, job.particle_set, pool.size, start.threads)
    if options.dry_run:
        run = Extraction(options, job, plan, summary, OutputDirectory(options))
        left = replace(plan, tasks=run.tasks_left())
        n_kept, n_left = len(plan.kept_rows), len(left.kept_rows)
        if n_left < n_kept:
            logger.info(
                "%d of %d particles are done already; this is left:", n_kept - n_left, n_kept
            )
        _print_plan(options, job, left, summary)
        return EXIT_DONE
    summary.failures.update(job.tomogram_set.failed)
    make_folder(Path(options.output))
    with DirectoryLock(options.output, _describe_job(pool.size)):
        start.control.take_over()
        check_unchanged(options)
        for line in summary.nothing_kept_lines():
            logger.info("%s", line)
        run = Extraction(options, job, plan, summary, OutputDirectory(options))
        if not run.extract(pool, start):
            return _say_nothing_was_changed(start)
        summary.close(time.perf_counter() - started, run.seconds, run.busy)
        return _finish(options, start, run)


def _describe_job(ranks: int) -> str:
    """Return what a second job in the same directory is told of this one."""
    number = os.environ.get("SLURM_JOB_ID", "")
    return counted(ranks, "rank") + (f", SLURM job {number}" if number else "")


def _print_plan(options: JobOptions, job: JobInput, plan: Plan, summary: RunSummary) -> None:
    tomograms = [job.tomogram_set.tomograms[task.tomogram] for task in plan.tasks]
    pairs = list(zip(tomograms, plan.tasks, strict=True))
    work, costs = [], []
    for tomogram, task in pairs:
        begin, each = task_seconds(options, tomogram, task)
        work.append(begin + each * len(task))
        costs.append(TaskCost(begin, each / summary.threads, ((0, len(task)),)))
    n_bytes = [task_bytes(options, tomogram, task) for tomogram, task in pairs]
    for line in plan_lines(plan, [t.name for t in tomograms], n_bytes, work, summary):
        logger.info("%s", line)
    if options.hdf5_compression:
        logger.info("The containers will be smaller: these are bytes before compression")
    n_files = len(plan.kept_rows) * len(options.image_suffixes)
    n_files += len(plan.tasks) if options.hdf5 else 0
    memory = memory_text(options, job, tomograms, summary.threads)
    logger.info("%d image files; private memory %s", n_files, memory)
    folder = Path(options.output).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if sum(n_bytes) + sums_to_write(options, costs, summary.ranks) > free:
        logger.warning("Disk space: only %s are free", bytes_text(free))
    logger.info("Dry run: nothing was written.")


def _finish(options: JobOptions, start: Start, run: Extraction) -> int:
    """Merge what is complete, or say why nothing is merged."""
    summary, missing = run.summary, run.missing_tasks()
    skipping = options.allow_failures and run.may_leave_out and missing <= run.failed
    merging = not missing or skipping
    if merging and missing == {task.number for task in run.plan.tasks}:
        merging = False
    if merging:
        plan = leave_out_tasks(run.plan, missing)
        # the ranks have done so, unless they were stopped or did not see each other's records
        merging = not options.hdf5 or run.settle_containers(plan, start)
    if merging:
        summary.count_again(plan, run.job.tomogram_set, run.job.particle_set)
        _merge(options, start, run, plan)
    for line in summary.lines():
        logger.info("%s", line)
    for text in summary.warnings():
        logger.warning("%s", text)
    _write_summary(options, summary)
    if merging:
        if summary.failures:
            logger.warning("Merged without failed tomograms: %s", ", ".join(summary.failures))
        if not options.no_writing:
            logger.info("Wrote %s", merge.output_path(options, "particles.star"))
        if options.no_mrc:
            logger.info(
                "The images are in containers alone: relion_pseudosubtomo unpack %s makes the MRC "
                "files that RELION reads",
                options.output,
            )
        if options.report:
            _make_report(options)
        return EXIT_DONE
    return _say_why_not_merged(options, start, run)


def _write_summary(options: JobOptions, summary: RunSummary) -> None:
    """Write run_summary.json; what it tells is in the log, and the results are good without it."""
    try:
        write_summary(options, summary)
    except (PseudoSubtomoError, OSError) as error:
        logger.warning("%s", error)


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
        if not sums["weight"].any():
            logger.warning(
                "No particle could be added up, each has pixels that are NaN or infinite: "
                "sum_*.mrc hold zeros"
            )
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
    """Make the page; the results are good without it, whatever goes wrong."""
    try:
        from relion_pseudosubtomo.report.page import make_report  # its packages are an extra

        logger.info("Wrote %s", make_report(options.output))
    except Exception as error:
        is_clear = isinstance(error, (PseudoSubtomoError, OSError))
        logger.error(
            "The results are whole, but the report was not made: %s. Try it again with "
            "relion_pseudosubtomo report %s",
            error if is_clear else f"{type(error).__name__}: {error}",
            options.output,
            exc_info=options.debug,
        )


def _say_nothing_was_changed(start: Start) -> int:
    is_abort = start.control.abort_wanted()
    by = "Aborted by RELION's interface" if is_abort else "Stopped by a signal"
    logger.error("%s before anything was changed: start again with the same options", by)
    return EXIT_FAILED if is_abort else EXIT_STOPPED


def _say_why_not_merged(options: JobOptions, start: Start, run: Extraction) -> int:
    hint = "start again with --only_do_unfinished to continue"
    if start.control.abort_wanted():
        logger.error("Aborted by RELION's interface; no particles.star was written: %s", hint)
        return EXIT_FAILED
    if run.signalled or start.stopped():
        logger.error("Stopped by a signal; no particles.star was written: %s", hint)
        return EXIT_STOPPED
    if run.unfit:
        logger.error("No particles.star was written: mend that, and %s", hint)
        return EXIT_FAILED
    may_leave_out = run.may_leave_out and not options.allow_failures  # else all of them failed
    logger.error(
        "%d tomograms failed, so no particles.star was written: %s. Mend them and %s%s",
        len(run.summary.failures),
        ", ".join(run.summary.failures),
        hint,
        ", or leave them out with --allow_failures" if may_leave_out else "",
    )
    return EXIT_FAILED
