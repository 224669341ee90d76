"""Where particles are, how each frame sees them, and what their images were multiplied by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, format_findings
from relion_pseudosubtomo.io.columns import numbers
from relion_pseudosubtomo.io.extracted import read_extracted_sets
from relion_pseudosubtomo.io.particles import ParticleTable
from relion_pseudosubtomo.model import OptimisationSet, ParticleSet, TomogramSet, Trajectories
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.particle_ctf import weighted_ctf
from relion_pseudosubtomo.placement import place_particles

Floats = NDArray[np.floating]


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
        pixels of the tilt image.
    image_point : ndarray, shape (n_frames, 2), float64
        Where the particle lies in each tilt image, (x, y) in pixels; trajectory and deformation
        included.
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
    """Computes the geometry of one particle after the other."""

    options: JobOptions
    tomogram_set: TomogramSet
    particle_set: ParticleSet
    trajectories: Trajectories | None

    def of_particle(self, row: int, visible: NDArray[np.bool_] | None) -> ParticleGeometry:
        """Return the geometry of a particle.

        Parameters
        ----------
        row : int
            Of particles.star.
        visible : ndarray, shape (n_frames,), bool, or None
        """
        rows = np.array([row])
        tomogram = self.tomogram_set.tomograms[self.particle_set.tomogram[row]]
        moving = self.trajectories
        shifts = None if moving is None else moving.stack(rows)
        placed = place_particles(self.options, tomogram, self.particle_set, shifts, rows)
        frames = np.arange(tomogram.n_frames) if visible is None else np.flatnonzero(visible)
        options = self.options
        pixel_size = options.binning * tomogram.pixel_size
        ctf = weighted_ctf(tomogram, self.particle_set, row, frames, options.crop, pixel_size)
        return ParticleGeometry(
            placed.position[0],
            placed.particle_rotation[0],
            tomogram.projections,
            placed.image_point[0],
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
    size, binning = (
        numbers(table.optics, label, findings)[0]
        for label in (labels.IMAGE_SIZE, labels.SUBTOMOGRAM_BINNING)
    )
    if findings.errors:
        raise InputError(format_findings(findings))
    options = JobOptions("", int(size), int(size), float(binning))
    motion = None if files.trajectories is None else str(project / files.trajectories)
    tomogram_set, particle_set, trajectories = read_extracted_sets(
        table, str(project / files.tomograms), motion, options, findings
    )
    if tomogram_set is None or particle_set is None or findings.errors:
        raise InputError(format_findings(findings))
    return GeometrySource(options, tomogram_set, particle_set, trajectories)
