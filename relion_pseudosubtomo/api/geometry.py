"""Where particles are, how each frame sees them, and what their images were multiplied by."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, format_findings
from relion_pseudosubtomo.io import hdf5
from relion_pseudosubtomo.io.columns import numbers
from relion_pseudosubtomo.io.containers import JOINED
from relion_pseudosubtomo.io.extracted import read_extracted_sets
from relion_pseudosubtomo.io.particles import ParticleTable
from relion_pseudosubtomo.io.records import RecordStore
from relion_pseudosubtomo.model import OptimisationSet, ParticleSet, TomogramSet, Trajectories
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.particle_ctf import weighted_ctf
from relion_pseudosubtomo.placement import place_particles

Floats = NDArray[np.floating]
Sets: TypeAlias = tuple[TomogramSet, ParticleSet, Trajectories | None]

_IMAGE_FOLDER = "/Subtomograms/"


@dataclass(frozen=True)
class ParticleGeometry:
    """One particle in its tomogram and its tilt images; all frames, in the tilt series' order.

    Attributes
    ----------
    position : ndarray, shape (3,), float64
        (x, y, z) in unbinned pixels from the tomogram's corner.
    rotation : ndarray, shape (3, 3), float64
        A_full: from the particle's axes to the tomogram's (x, y, z).
    projections : ndarray, shape (n_frames, 4, 4), float64
        From (x, y, z, 1) in unbinned pixels from the tomogram's corner to (x, y, depth, 1) in
        pixels of the tilt image. The shift along x and y is NaN where the alignment is by angles
        and the tilt images, whose size it needs, cannot be read any more.
    image_point : ndarray, shape (n_frames, 2), float64
        Where the particle lies in each tilt image, (x, y) in pixels; trajectory and deformation
        included. NaN where that needs the size of images that cannot be read.
    dose : ndarray, shape (n_frames,), float64
        Before each frame, e/A^2.
    frames : ndarray, shape (n_visible,), int64
        The visible frames; all where nothing tells.
    ctf : ndarray, shape (n_visible, n, n/2 + 1), float32
        CTF times dose weight of the visible frames, half-complex [ky, kx] in FFT order, for the
        size and pixel size of the images.
    """

    position: Floats
    rotation: Floats
    projections: Floats
    image_point: Floats
    dose: Floats
    frames: NDArray[np.int64]
    ctf: NDArray[np.float32]


@dataclass(frozen=True)
class GeometrySource:
    """Computes the geometry of one particle after the other.

    Attributes
    ----------
    boxes : list of (int, float)
        Image size in pixels, and binning, of each optics group.
    sets : dict of bool to (TomogramSet, ParticleSet, Trajectories or None)
        As with and without `--exact_centre`, as far as particles need them.
    is_exact : ndarray, shape (n_particles,), bool
        Which particles were extracted with `--exact_centre`.
    """

    boxes: list[tuple[int, float]]
    sets: dict[bool, Sets]
    is_exact: NDArray[np.bool_]

    def of_particle(self, row: int, visible: NDArray[np.bool_] | None) -> ParticleGeometry:
        """Return the geometry of a particle.

        Parameters
        ----------
        row : int
            Of particles.star.
        visible : ndarray, shape (n_frames,), bool, or None
        """
        rows = np.array([row])
        tomogram_set, particle_set, moving = self.sets[bool(self.is_exact[row])]
        tomogram = tomogram_set.tomograms[particle_set.tomogram[row]]
        shifts = None if moving is None else moving.stack(rows)
        has_images = any(tomogram.image_size_xy)
        here = tomogram if has_images else replace(tomogram, deformation=None)
        size, binning = self.boxes[particle_set.optics_row[row]]
        options = JobOptions("", size, size, binning)
        placed = place_particles(options, here, particle_set, shifts, rows)
        is_known = has_images or tomogram.deformation is None
        frames = np.arange(tomogram.n_frames) if visible is None else np.flatnonzero(visible)
        pixel_size = binning * tomogram.pixel_size
        ctf = weighted_ctf(tomogram, particle_set, row, frames, size, pixel_size)
        return ParticleGeometry(
            placed.position[0],
            placed.particle_rotation[0],
            tomogram.projections,
            placed.image_point[0] if is_known else np.full((tomogram.n_frames, 2), np.nan),
            tomogram.pre_exposure,
            frames,
            np.array(list(ctf), dtype=np.float32),
        )


def read_geometry(table: ParticleTable, files: OptimisationSet, project: Path) -> GeometrySource:
    """Read the other tables of an optimisation set; tilt images need not be there any more.

    Parameters
    ----------
    table : ParticleTable
        Its particle file.
    files : OptimisationSet
    project : Path
        Directory that paths count from.

    Raises
    ------
    InputError
        Where tables are missing or wrong.
    """
    if table.optics is None:
        raise InputError(f"{table.path}: expected a table data_optics. Give extracted particles.")
    findings = Findings()
    sizes, binnings = (
        numbers(table.optics, label, findings)
        for label in (labels.IMAGE_SIZE, labels.SUBTOMOGRAM_BINNING)
    )
    if findings.errors:
        raise InputError(format_findings(findings))
    boxes = list(zip(sizes.astype(int).tolist(), binnings.tolist(), strict=True))
    motion = None if files.trajectories is None else str(project / files.trajectories)
    is_exact = _find_exact(table, project)
    sets: dict[bool, Sets] = {}
    size, binning = boxes[0]  # which matter for no table
    for kind in sorted(set(is_exact.tolist())) or [False]:
        tomogram_set, particle_set, trajectories = read_extracted_sets(
            table,
            str(project / files.tomograms),
            motion,
            JobOptions("", size, size, binning, exact_centre=kind),
            findings,
        )
        if tomogram_set is None or particle_set is None or findings.errors:
            raise InputError(format_findings(findings))
        sets[kind] = tomogram_set, particle_set, trajectories
    return GeometrySource(boxes, sets, is_exact)


def _find_exact(table: ParticleTable, project: Path) -> NDArray[np.bool_]:
    """Return which particles were extracted with `--exact_centre`, as their jobs have noted.

    The job is the one whose images they are; where that is not there, it is that of the table.
    """
    images = table.particles.columns.get(labels.IMAGE_NAME, [""] * table.particles.n_rows)
    jobs = [f"/{name}".rpartition(_IMAGE_FOLDER)[0][1:] for name in images]
    known = {}
    for job in set(jobs):
        folders = (project / job, Path(table.path).parent)
        noted = next((found for found in map(_read_job, folders) if found is not None), {})
        known[job] = noted.get("exact_centre") == repr(True)
    return np.array([known[job] for job in jobs], dtype=bool)


def _read_job(folder: Path) -> dict[str, str] | None:
    """Return the options of a job as text; None where its directory does not tell."""
    noted = RecordStore(str(folder)).read_job()
    container = folder / JOINED
    if noted is None and container.exists():
        with hdf5.open_container(container) as file:
            noted = json.loads(file.attrs.get("options", "{}"))
    return noted
