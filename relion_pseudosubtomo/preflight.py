"""Read and check all input of a job before any image is read (spec 1.6)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from relion_pseudosubtomo.dialects import check_dialects
from relion_pseudosubtomo.errors import InputError, LockedError
from relion_pseudosubtomo.findings import Findings, format_findings, list_first
from relion_pseudosubtomo.io.containers import CONTAINER_SUFFIX, container_name
from relion_pseudosubtomo.io.fingerprint import FLAGS, NUMBER, describe_job, fill_in_defaults
from relion_pseudosubtomo.io.lock import find_holder
from relion_pseudosubtomo.io.optimisation_set import resolve
from relion_pseudosubtomo.io.particles import make_particle_set, read_particle_table
from relion_pseudosubtomo.io.records import RecordStore
from relion_pseudosubtomo.io.tomograms import read_tomogram_set
from relion_pseudosubtomo.io.trajectories import check_trajectory_file, read_trajectories
from relion_pseudosubtomo.model import (
    OptimisationSet,
    ParticleSet,
    Tomogram,
    TomogramSet,
    Trajectories,
)
from relion_pseudosubtomo.options import DIALECT_FOLDERS, TOP_FILES, JobOptions, check_options
from relion_pseudosubtomo.plan import Plan, make_plan
from relion_pseudosubtomo.positions import FOLDER as POSITIONS_FOLDER
from relion_pseudosubtomo.report.packages import missing_packages
from relion_pseudosubtomo.summary import drop_lines, judge_coordinates

_IMAGE_FOLDER = "Subtomograms"

#: No results by themselves: RELION's own jobs have a note, and a run with `--no_writing` that adds
#: nothing up leaves a summary, but nothing that could be continued or replaced.
_NO_RESULTS = ("note.txt", "run_summary.json")

#: Relative difference of pixel sizes from which particles do not fit each other.
_SUM_PIXEL_SIZES = 0.01


@dataclass(frozen=True)
class JobInput:
    """Everything a job was given, checked; there are no errors among the findings.

    Attributes
    ----------
    optimisation_set : OptimisationSet
        The files.
    tomogram_set : TomogramSet
        All tomograms; those without particles have no frames.
    particle_set : ParticleSet
        The particles, with `--only_tomogram` of that tomogram alone.
    trajectories : Trajectories or None
        Where the particles moved.
    findings : Findings
        Warnings.
    """

    optimisation_set: OptimisationSet
    tomogram_set: TomogramSet
    particle_set: ParticleSet
    trajectories: Trajectories | None
    findings: Findings


def check_job(options: JobOptions) -> tuple[Findings, JobInput | None, Plan | None]:
    """Read all STAR files and image headers of a job, and plan it; nothing is written.

    Every start does this, and the command `check` nothing else.

    Parameters
    ----------
    options : JobOptions
        The job.

    Returns
    -------
    findings : Findings
        All that is wrong or doubtful.
    job : JobInput or None
        None where it could not be read.
    plan : Plan or None
        None where what was read is not good enough to plan with.
    """
    findings = check_options(options)
    are_options_good = not findings.errors
    missing = missing_packages() if options.report else []
    if missing:
        findings.error("missing-package", f"--report needs {', '.join(missing)}", found="none")
    check_output_directory(options, findings)
    n_errors = len(findings.errors)
    job = _read(options, findings)
    plan = None
    if job is not None and are_options_good and len(findings.errors) == n_errors:
        plan = _plan(options, job, findings)
    return findings, job, plan


def read_and_check(options: JobOptions) -> tuple[JobInput, Plan]:
    """Return a job and its plan as from `check_job`.

    Raises
    ------
    InputError
        Where there is an error; the message lists everything that was found. A LockedError where
        another job writes to the output directory.
    """
    findings, job, plan = check_job(options)
    if findings.errors or job is None or plan is None:
        is_locked = any(finding.code == "output-locked" for finding in findings.errors)
        kind = LockedError if is_locked else InputError
        raise kind("the input cannot be used\n" + format_findings(findings))
    return job, plan


def _plan(options: JobOptions, job: JobInput, findings: Findings) -> Plan | None:
    """Return the plan, and judge by it where the particles are; None where there can be none."""
    path = job.particle_set.path
    try:
        plan = make_plan(options, job.tomogram_set, job.particle_set, job.trajectories)
    except InputError as error:
        findings.error("same-file", str(error))
        return None
    clash = _find_file_for_folder(options, job.tomogram_set.tomograms, plan)
    if clash is not None:
        findings.error("same-file", f"{clash} has to be a file and a folder", file=path)
    looks = judge_coordinates(plan, len(job.particle_set))
    if looks is not None:
        findings.warning("coordinates", looks, file=path)
    if options.makes_sums:
        _check_sums(options, job, plan, findings)
    if plan.tasks:
        check_dialects(options, job.tomogram_set, job.particle_set, plan, findings)
    else:
        found = "; ".join(drop_lines(plan))
        findings.error("nothing-left", "no particle is left to extract", file=path, found=found)
    return plan


def _check_sums(options: JobOptions, job: JobInput, plan: Plan, findings: Findings) -> None:
    """Check that one volume can hold all particles."""
    tomograms = [job.tomogram_set.tomograms[task.tomogram] for task in plan.tasks]
    sizes = sorted({tomogram.pixel_size for tomogram in tomograms})
    if sizes and sizes[-1] > sizes[0] * (1 + _SUM_PIXEL_SIZES):
        wanted = {"--sum": options.sum, "--average": options.average}
        findings.error(
            "sum-pixel-size",
            f"{' and '.join(name for name, on in wanted.items() if on)} of tomograms with several "
            "pixel sizes",
            file=job.tomogram_set.path,
            expected="one",
            found=list_first(f"{size:g}" for size in sizes),
        )


def _find_file_for_folder(
    options: JobOptions, tomograms: tuple[Tomogram, ...], plan: Plan
) -> str | None:
    """Return a path that is one particle's file and the folder of others; None for sound names."""
    stems = [stem for task in plan.tasks for stem in task.stems]
    endings = tuple(suffix.rpartition("/")[2] for suffix in options.unpacked_suffixes)
    joined = "\n".join(stems)
    if not any(f"{ending}/" in joined for ending in (*endings, CONTAINER_SUFFIX)):
        return None
    folders: set[str] = set()
    for folder in {stem.rpartition("/")[0] for stem in stems}:
        while folder not in folders and folder:
            folders.add(folder)
            folder = os.path.dirname(folder)
    suspects = {folder for folder in folders if folder.endswith((*endings, CONTAINER_SUFFIX))}
    files = {stem + ending for stem in stems for ending in endings}
    if options.hdf5:
        files |= {container_name(tomograms[task.tomogram].name) for task in plan.tasks}
    return min(suspects & files, default=None)


def check_output_directory(options: JobOptions, findings: Findings) -> None:
    """Check that results can be written to the output directory, and fit what it holds.

    Parameters
    ----------
    options : JobOptions
        The directory need not exist. RELION's own job files in it do not count.
    findings : Findings
        Gets an error `output-directory`, `output-exists`, `output-version` or `output-options`.
    """
    path = options.output
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        findings.error(
            "output-directory",
            f"output {path}",
            expected="a directory",
            found=f"{existing}, a file",
        )
    elif not os.access(existing, os.W_OK | os.X_OK):
        findings.error(
            "output-directory",
            f"output {path}",
            expected="a directory that can be written to",
            found=f"{existing} without permission to write",
        )
    else:
        found = Findings()
        holder = find_holder(path)
        if holder:
            found.error("output-locked", f"output {path}", expected="no other job", found=holder)
        else:
            _check_results(options, found)
        findings.extend(found.as_warnings() if options.dry_run else found)


def check_unchanged(options: JobOptions) -> None:
    """Look again once the directory's lock is held: another job may have come and gone.

    Raises
    ------
    InputError
    """
    findings = Findings()
    _check_results(options, findings)
    if findings.errors:
        raise InputError("another job has used the directory\n" + format_findings(findings))


def _check_results(options: JobOptions, findings: Findings) -> None:
    """Check that results of an earlier run are continued with its options, or to be replaced."""
    path = options.output
    former = RecordStore(path).read_job()
    if former is None:
        results = list(_list_results(path))
        if results:
            findings.error(
                "output-foreign",
                f"output {path}",
                expected="no results, or those of a run that can be continued",
                found=list_first(results),
            )
    elif not (options.only_do_unfinished or options.overwrite):
        findings.error(
            "output-exists",
            f"output {path}",
            expected="no results, or --only_do_unfinished to continue, or --overwrite",
            found="results of another run",
        )
    elif not options.overwrite or _keeps_others(options):
        _compare_jobs(path, fill_in_defaults(former), describe_job(options), findings)


def _compare_jobs(
    path: str, former: dict[str, str], now: dict[str, str], findings: Findings
) -> None:
    """Check that results are continued by a version, and with options, that give the same."""
    if former.get(NUMBER) != now[NUMBER]:
        findings.error(
            "output-version",
            "results of a version of this program that computes other images",
            file=path,
            expected=f"{NUMBER} {now[NUMBER]}",
            found=former.get(NUMBER, "none"),
        )
        return
    for name in sorted(now.keys() | former.keys()):
        if now.get(name) != former.get(name):
            findings.error(
                "output-options",
                f"--{FLAGS.get(name, name)} is not that of the results in {path}",
                expected=former.get(name, "nothing"),
                found=now.get(name, "nothing"),
            )


def _keeps_others(options: JobOptions) -> bool:
    """Return whether results stay that are not of `--only_tomogram`: those have to fit its own."""
    name = options.only_tomogram
    return name is not None and not RecordStore(options.output).tomograms() <= {name}


def _list_results(path: str) -> Iterator[str]:
    """Yield what lies where results will be."""
    for name in TOP_FILES:
        if name not in _NO_RESULTS and os.path.lexists(os.path.join(path, name)):
            yield name
    for folder in (_IMAGE_FOLDER, POSITIONS_FOLDER, *DIALECT_FOLDERS.values()):
        if any(files for _, _, files in os.walk(os.path.join(path, folder))):
            yield f"files in {folder}"


def _check_inputs_stay(options: JobOptions, files: OptimisationSet, findings: Findings) -> None:
    """Check that no input lies where results will be, which are removed before they are made."""
    given = (options.optimisation_set, files.particles, files.tomograms, files.trajectories)
    names = (*TOP_FILES, POSITIONS_FOLDER, *DIALECT_FOLDERS.values())
    outputs = {os.path.realpath(os.path.join(options.output, name)) for name in names}
    for path in dict.fromkeys(filter(None, given)):
        real = Path(os.path.realpath(path))
        if not outputs.isdisjoint(map(str, (real, *real.parents))):
            findings.error(
                "input-replaced",
                "input that this run would remove or replace",
                file=path,
                expected=f"files outside {options.output}",
            )


def _read(options: JobOptions, findings: Findings) -> JobInput | None:
    """Read file after file, each as far as possible; None where one could not be read."""
    files = resolve(options, findings)
    if files is None:
        return None
    _check_inputs_stay(options, files, findings)
    table = read_particle_table(files.particles, findings)
    wanted = None if table is None else table.tomogram_names()
    if options.only_tomogram is not None:
        wanted = {options.only_tomogram}
    tomogram_set = read_tomogram_set(files.tomograms, findings, wanted=wanted, options=options)
    if not _has_only_tomogram(options, tomogram_set, findings):
        tomogram_set = None
    particle_set = None
    if table is not None:
        particle_set = make_particle_set(
            table,
            tomogram_set,
            findings,
            only_tomogram=options.only_tomogram,
            rename_duplicates=options.rename_duplicates,
        )
    if particle_set is None or tomogram_set is None:
        if files.trajectories is not None:
            check_trajectory_file(files.trajectories, findings)
        return None
    trajectories = None
    if files.trajectories is not None and particle_set.former_names is not None:
        findings.error(
            "trajectory-renamed",
            "trajectories go by names that several particles have",
            file=files.trajectories,
        )
    elif files.trajectories is not None:
        trajectories = read_trajectories(files.trajectories, particle_set, tomogram_set, findings)
    job = JobInput(files, tomogram_set, particle_set, trajectories, findings)
    return job if options.only_tomogram is None else _leave_out_others(job)


def _has_only_tomogram(
    options: JobOptions, tomogram_set: TomogramSet | None, findings: Findings
) -> bool:
    name = options.only_tomogram
    if name is None or tomogram_set is None or name in tomogram_set.index_by_name():
        return True
    near = difflib.get_close_matches(name, tomogram_set.index_by_name(), n=1, cutoff=0.0)
    findings.error(
        "only-tomogram",
        "--only_tomogram",
        file=tomogram_set.path,
        expected=f"a tomogram of the set{f', as {near[0]}' if near else ''}",
        found=name,
    )
    return False


def _leave_out_others(job: JobInput) -> JobInput:
    """Return the input without particles that have no tomogram."""
    rows = np.flatnonzero(job.particle_set.tomogram >= 0)
    trajectories = job.trajectories
    if trajectories is not None:
        trajectories = replace(trajectories, shifts=tuple(trajectories.shifts[i] for i in rows))
    return replace(job, particle_set=job.particle_set.take(rows), trajectories=trajectories)
