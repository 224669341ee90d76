"""Fingerprints of everything a result depends on, so that no old file is taken for a new one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.model import ParticleSet, Task, Tomogram, Trajectories
from relion_pseudosubtomo.options import JobOptions

#: To be raised by every change of the program that gives other bytes of images, sums or containers
#: for the same input and options, or that gives an option another default: what an older version
#: has finished is not continued then. A new option whose default changes nothing needs no number.
MATHEMATICS = 1

#: Its name among the options in job.json.
NUMBER = "mathematics"

#: Options that change how a job runs, but none of its numbers or file names.
WITHOUT_EFFECT = frozenset(
    {
        "output",
        "optimisation_set",
        "particles",
        "tomograms",
        "trajectories",
        "threads",
        "preload",
        "pipeline_control",
        "debug",
        "log_level",
        "only_do_unfinished",
        "overwrite",
        "allow_failures",
        "no_split",
        "ignore_disk_space",
        "dry_run",
        "only_tomogram",
        "report",
        "positions2d",
    }
)


#: Options whose name on the command line is another one.
FLAGS = {"box": "b", "binning": "bin", "snr": "SNR", "dialects": "for"}


def describe_options(options: JobOptions) -> dict[str, str]:
    """Return the options that results depend on, as text."""
    values = dataclasses.asdict(options)
    return {name: repr(value) for name, value in values.items() if name not in WITHOUT_EFFECT}


def describe_job(options: JobOptions) -> dict[str, str]:
    """Return what a directory notes of the job that its results are made with."""
    return {NUMBER: str(MATHEMATICS), **describe_options(options)}


def fill_in_defaults(noted: dict[str, str]) -> dict[str, str]:
    """Return what a directory notes of a job, with the options that its version did not have."""
    return {**_describe_defaults(JobOptions), **noted}


def _describe_defaults(options: JobOptions | type[JobOptions]) -> dict[str, str]:
    """Return the options that results depend on as they are where they are not given."""
    return {
        field.name: repr(field.default)
        for field in dataclasses.fields(options)
        if field.name not in WITHOUT_EFFECT and field.default is not dataclasses.MISSING
    }


def fingerprint_task(
    options: JobOptions,
    tomogram: Tomogram,
    particle_set: ParticleSet,
    trajectories: Trajectories | None,
    task: Task,
) -> str:
    """Return a fingerprint of a whole tomogram's task: options, tables, and its image files.

    Options count where they are not at their default, so that new ones change no fingerprint.
    Image files count by path, size and time of change; their pixels are not read.
    """
    digest = hashlib.sha256()
    _add(digest, MATHEMATICS)
    given = describe_options(options).items() - _describe_defaults(options).items()
    _add(digest, sorted(given))
    _add(digest, dataclasses.astuple(tomogram))
    rows = task.rows
    for name in ("coordinate", "offset", "subtomogram_angles", "angles"):
        _add(digest, getattr(particle_set, name)[rows])
    _add_optics(digest, particle_set, rows)
    if options.average:
        _add(digest, particle_set.half[rows])
    if trajectories is not None:
        for row in rows:
            _add(digest, trajectories.shifts[row])
    _add(digest, task.stems)
    _add(digest, task.visible)
    if options.hdf5:  # the container holds the particles' rows as well
        for label, values in particle_set.columns.items():
            _add(digest, (label, *values[rows]))
    paths = tomogram.reconstructions if options.real_subtomo else [f.path for f in tomogram.frames]
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
            _add(digest, (path, status.st_size, status.st_mtime_ns))
        except OSError:  # gone since the checks: its task fails alone, when it is read
            _add(digest, (path, "missing"))
    return digest.hexdigest()


def _add_optics(digest: Any, particle_set: ParticleSet, rows: NDArray[np.int64]) -> None:
    """Add the groups of these particles in order of appearance, and which each belongs to.

    Their rows in the table do not count: groups that these particles do not use may come and go.
    """
    optics = particle_set.optics
    groups, first, which = np.unique(
        particle_set.optics_row[rows], return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    for group in groups[order]:
        _add(
            digest,
            (optics.pixel_size[group], optics.even_zernike[group], optics.odd_zernike[group]),
        )
    _add(digest, np.argsort(order)[which])


def _add(digest: Any, value: Any) -> None:
    """Add a value, with its kind and size, so that no two different inputs run together."""
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, tuple | list):
        digest.update(f"{len(value)} items;".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r};".encode())
