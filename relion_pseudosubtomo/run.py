"""The whole path of a job: check, plan, extract, merge, write."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import resource
import shlex
import socket
import time
from pathlib import Path

import numpy as np

from relion_pseudosubtomo import __version__, merge
from relion_pseudosubtomo.core import kernels, volumes
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.io import atomic, mrc, particles, star
from relion_pseudosubtomo.io.optimisation_set import write_optimisation_set
from relion_pseudosubtomo.io.trajectories import write_trajectories
from relion_pseudosubtomo.model import TaskResult
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.parallel.serial import SerialExecutor
from relion_pseudosubtomo.parallel.threads import resolve_threads, usable_cores
from relion_pseudosubtomo.pipeline import PipelineControl
from relion_pseudosubtomo.plan import Plan, make_plan
from relion_pseudosubtomo.preflight import JobInput, read_and_check
from relion_pseudosubtomo.progress import Progress
from relion_pseudosubtomo.summary import RunSummary, drop_lines, start_summary
from relion_pseudosubtomo.worker import Worker

logger = logging.getLogger("relion_pseudosubtomo")

EXIT_DONE, EXIT_FAILED = 0, 1


def run_job(options: JobOptions, command: list[str], control: PipelineControl) -> int:
    """Run an extraction from start to end.

    Parameters
    ----------
    options : JobOptions
    command : list of str
        The command line, for note.txt.
    control : PipelineControl
        RELION's job control files.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed or aborted (spec 4.5).

    Raises
    ------
    InputError
        Where the input cannot be used; nothing has been written then.
    """
    started = time.perf_counter()
    threads, warning = resolve_threads(options.threads, os.environ, usable_cores())
    if warning:
        logger.warning(warning)
    job = read_and_check(options)
    for finding in job.findings:
        logger.warning("%s", finding)
    plan = make_plan(options, job.tomogram_set, job.particle_set, job.trajectories)
    summary = start_summary(plan, job.particle_set, threads)
    for line in drop_lines(plan, len(job.particle_set)):
        logger.warning("%s", line)
    if not plan.tasks:
        raise InputError("No particle is left to extract: see the reasons above.")
    if not options.no_writing:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    sums = _extract(options, job, plan, summary, control)
    summary.seconds = time.perf_counter() - started
    summary.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    complete = not summary.failures and not control.abort_wanted()
    if complete:
        _write_sums(options, job, plan, sums)
        if not options.no_writing:
            _write_tables(options, job, plan)
            if not control.active:
                _write_note(options, command, threads)
    if not options.no_writing:
        report = json.dumps(dataclasses.asdict(summary), indent=1) + "\n"
        atomic.write_text(Path(options.output, "run_summary.json"), report)
    return _conclude(options, summary, control, complete)


def _extract(
    options: JobOptions, job: JobInput, plan: Plan, summary: RunSummary, control: PipelineControl
) -> list[TaskResult]:
    """Do all tasks; return the results in the plan's order."""
    if not kernels.IS_COMPILED:
        logger.warning("The compiled kernels are missing: the NumPy versions are far slower.")
    results: dict[int, TaskResult] = {}
    with Progress(len(plan.kept_rows)) as progress:
        worker = Worker(
            options,
            job.tomogram_set,
            job.particle_set.optics,
            summary.threads,
            progress.advance,
            control.abort_wanted,
        )
        for outcome in SerialExecutor().run(plan.tasks, worker.do_task, control.abort_wanted):
            name = job.tomogram_set.tomograms[outcome.task.tomogram].name
            if outcome.result is None:
                summary.failures[name] = outcome.error
                logger.error("Tomogram %s failed: %s", name, outcome.error)
                logger.debug("%s", outcome.details)
                continue
            results[outcome.task.number] = outcome.result
            summary.add(name, outcome.result)
            _log_tomogram(name, len(outcome.task.rows), outcome.result)
    return [results[number] for number in sorted(results)]


def _log_tomogram(name: str, n_kept: int, result: TaskResult) -> None:
    logger.info(
        "%s: %d particles, %.1f s loading, %.1f s extracting (of it %.1f s of threads writing)",
        name,
        n_kept,
        result.seconds_loading,
        result.seconds_extracting,
        result.seconds_writing,
    )
    if result.n_not_finite:
        logger.warning("%s: %d pixels read were NaN or infinite", name, result.n_not_finite)
    if result.n_clipped:
        logger.warning("%s: %d values beyond float16's range were clipped", name, result.n_clipped)


def _write_sums(options: JobOptions, job: JobInput, plan: Plan, results: list[TaskResult]) -> None:
    """Write the sums of all particles (`--sum`, spec 2.10)."""
    sums = [result.sums for result in results if result.sums is not None]
    if not options.sum or not sums:
        return
    data = np.sum([s[0] for s in sums], axis=0).astype(np.float32)
    weight = np.sum([s[1] for s in sums], axis=0).astype(np.float32)
    voxel = options.binning * job.tomogram_set.tomograms[plan.tasks[0].tomogram].pixel_size
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    for name, volume in (
        ("sum_data.mrc", data),
        ("sum_weight.mrc", volumes.expand_centred(weight)),
        ("sum_div.mrc", volumes.divide_by_weight(data, weight, options.snr)),
    ):
        mrc.write_mrc(output / name, volume, voxel_size=voxel, is_stack=False, float16=False)


def _write_tables(options: JobOptions, job: JobInput, plan: Plan) -> None:
    """Write the STAR files, the one that others wait for last (spec 3)."""
    output = Path(options.output)
    particle_set, tomogram_set = job.particle_set, job.tomogram_set
    rows = merge.merge_particles(options, particle_set, tomogram_set, plan)
    general = merge.merge_general(options, particle_set)
    optics = merge.merge_optics(options, particle_set, tomogram_set)
    dropped = merge.merge_dropped(particle_set, plan)
    star.write_star(output / "dropped.star", [star.StarTable("particles", dropped)])
    if job.trajectories is not None and len(plan.dropped_rows):
        kept = plan.kept_rows
        shifts = [job.trajectories.shifts[row] for row in kept]
        write_trajectories(output / "motion.star", particle_set.names[kept], shifts)
    if options.real_subtomo:
        class2d = merge.merge_class2d(tomogram_set, plan, rows)
        particles.write_particle_file(
            output / "particles_for_class2d.star", general, optics, class2d
        )
    particles.write_particle_file(output / "particles.star", general, optics, rows)
    merged = merge.merge_optimisation_set(options, job.optimisation_set, plan)
    write_optimisation_set(output / "optimisation_set.star", merged)


def _write_note(options: JobOptions, command: list[str], threads: int) -> None:
    """Write note.txt: the command line, versions, host, date, resolved options."""
    lines = [
        shlex.join(command),
        "",
        f"relion_pseudosubtomo {__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}",
        f"host {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, {threads} threads",
        f"in {os.getcwd()}",
        "",
        "Resolved options:",
        *(f"  {k} = {v}" for k, v in dataclasses.asdict(options).items()),
    ]
    atomic.write_text(Path(options.output, "note.txt"), "\n".join(lines) + "\n")


def _conclude(
    options: JobOptions, summary: RunSummary, control: PipelineControl, complete: bool
) -> int:
    for line in summary.lines():
        logger.info("%s", line)
    if complete:
        if not options.no_writing:
            logger.info("Wrote %s", merge.output_path(options, "particles.star"))
        return EXIT_DONE
    if control.abort_wanted():
        logger.error("Aborted by RELION's interface; no particles.star was written.")
    else:
        logger.error(
            "%d tomograms failed, so no particles.star was written: %s",
            len(summary.failures),
            ", ".join(summary.failures),
        )
    return EXIT_FAILED
