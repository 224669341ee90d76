"""The files that end a job: tables, sums and the note, each whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import socket
import time
from pathlib import Path

import numpy as np

from relion_pseudosubtomo import __version__, merge
from relion_pseudosubtomo.core import volumes
from relion_pseudosubtomo.dialects import write_dialects
from relion_pseudosubtomo.dialects.tables import StandardTables
from relion_pseudosubtomo.io import atomic, mrc, particles, star
from relion_pseudosubtomo.io.container_content import Tables
from relion_pseudosubtomo.io.containers import JOINED, container_name
from relion_pseudosubtomo.io.optimisation_set import OPTIMISATION_SET, write_optimisation_set
from relion_pseudosubtomo.io.trajectories import write_trajectories
from relion_pseudosubtomo.model import Sums, TomogramSet
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.plan import Plan
from relion_pseudosubtomo.positions import FOLDER, position_columns, project_particles
from relion_pseudosubtomo.preflight import JobInput
from relion_pseudosubtomo.summary import RunSummary


def write_sums(options: JobOptions, voxel_size: float, sums: Sums) -> None:
    """Write the sums of all particles (`--sum`, spec 2.10).

    Parameters
    ----------
    options : JobOptions
    voxel_size : float
        Of the pseudo-subtomograms, Angstrom.
    sums : Sums
        Of all particles.
    """
    summed, weights = (np.asarray(sums[name], np.float32) for name in ("data", "weight"))
    for name, volume in (
        ("sum_data.mrc", summed),
        ("sum_weight.mrc", volumes.expand_centred(weights)),
        ("sum_div.mrc", volumes.divide_by_weight(summed, weights, options.snr)),
    ):
        path = Path(options.output, name)
        mrc.write_mrc(path, volume, voxel_size=voxel_size, is_stack=False, float16=False)


def write_tables(options: JobOptions, job: JobInput, plan: Plan) -> None:
    """Write the STAR files, the ones that the next job reads last (spec 3.3, 3.4)."""
    output = Path(options.output)
    particle_set, tomogram_set = job.particle_set, job.tomogram_set
    rows = merge.merge_particles(options, particle_set, tomogram_set, plan)
    general = merge.merge_general(options, particle_set)
    optics = merge.merge_optics(options, particle_set, tomogram_set)
    dropped = merge.merge_dropped(particle_set, plan)
    star.write_star(output / "dropped.star", [star.StarTable("particles", dropped)])
    renamed = merge.merge_renamed(particle_set)
    if renamed is not None:
        star.write_star(output / "renamed_particles.star", [star.StarTable("particles", renamed)])
    own_trajectories = merge.needs_trajectory_file(job.trajectories, plan)
    if own_trajectories:
        _write_kept_trajectories(output, job, plan)
    if options.real_subtomo:
        class2d = merge.merge_class2d(tomogram_set, plan, rows)
        path = output / "particles_for_class2d.star"
        particles.write_particle_file(path, general, optics, class2d)
    if options.hdf5:
        _join_containers(options, tomogram_set, plan, (general, optics, rows))
    merged = merge.merge_optimisation_set(options, job.optimisation_set, own_trajectories)
    write_dialects(
        StandardTables(options, particle_set, tomogram_set, plan, merged, general, optics, rows)
    )
    particles.write_particle_file(output / "particles.star", general, optics, rows)
    write_optimisation_set(output / OPTIMISATION_SET, merged)


def _write_kept_trajectories(output: Path, job: JobInput, plan: Plan) -> None:
    assert job.trajectories is not None
    kept = plan.kept_rows
    shifts = [job.trajectories.shifts[row] for row in kept]
    write_trajectories(output / "motion.star", job.particle_set.names[kept], shifts)


def write_positions(options: JobOptions, job: JobInput, plan: Plan) -> None:
    """Write where each particle lies in each tilt image, a file a tomogram (`--positions2d`)."""
    folder = Path(options.output, FOLDER)
    names = job.particle_set.names
    for projected in project_particles(
        options, job.tomogram_set, job.particle_set, job.trajectories, plan
    ):
        path = folder / f"{projected.tomogram.name}.star"
        atomic.make_folder(path.parent)
        columns = position_columns(projected, names[projected.rows])
        star.write_star(path, [star.StarTable("positions", columns)])


def _join_containers(
    options: JobOptions,
    tomogram_set: TomogramSet,
    plan: Plan,
    tables: tuple[dict[str, str], Columns, Columns],
) -> None:
    """Write particles.h5, which joins the containers of whole tomograms (spec 3.5)."""
    from relion_pseudosubtomo.io import hdf5  # most jobs need not wait for the library

    general, optics, rows = tables
    names = [container_name(tomogram_set.tomograms[task.tomogram].name) for task in plan.tasks]
    joined = Tables(general, optics, tuple(rows))
    hdf5.join(Path(options.output, JOINED), names, joined)


def write_note(options: JobOptions, command: list[str], ranks: int, threads: int) -> None:
    """Write note.txt: the command line, versions, host, date, resolved options."""
    lines = [
        shlex.join(command),
        "",
        f"relion_pseudosubtomo {__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}",
        f"host {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, "
        f"{ranks} ranks x {threads} threads",
        f"in {os.getcwd()}",
        "",
        "Resolved options:",
        *(f"  {k} = {v}" for k, v in dataclasses.asdict(options).items()),
    ]
    atomic.write_text(Path(options.output, "note.txt"), "\n".join(lines) + "\n")


def write_summary(options: JobOptions, summary: RunSummary) -> None:
    """Write run_summary.json."""
    text = json.dumps(dataclasses.asdict(summary), indent=1) + "\n"
    atomic.write_text(Path(options.output, "run_summary.json"), text)
