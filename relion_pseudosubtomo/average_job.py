"""The average of a finished job, from the files it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.core.average import FourierAverage
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, format_findings
from relion_pseudosubtomo.io.columns import report_missing_columns, triples, vectors
from relion_pseudosubtomo.io.extracted import read_extracted_sets
from relion_pseudosubtomo.io.mrc import read_volume
from relion_pseudosubtomo.io.optimisation_set import OPTIMISATION_SET, resolve
from relion_pseudosubtomo.io.particles import ParticleTable, find_halves, read_particle_table
from relion_pseudosubtomo.model import OptimisationSet
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.particle_ctf import weighted_ctf

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class JobAverage:
    """The average of a job's particles in the axes of the structure.

    Attributes
    ----------
    volume, half_a, half_b : ndarray, shape (n, n, n), float64, [z, y, x]
        All particles, and each half of them: by rlnRandomSubset, else every other particle.
    pixel_size : float
        Angstrom.
    n_particles : int
        Particles averaged.
    """

    volume: Floats
    half_a: Floats
    half_b: Floats
    pixel_size: float
    n_particles: int


@dataclass(frozen=True)
class _Layout:
    """What the particle file says of all its images (spec 3.3)."""

    box: int
    binning: float
    pixel_size: float
    is_stack: bool
    is_premultiplied: bool


def average_directory(path: str | Path) -> JobAverage:
    """Average what an extraction wrote, 3D pseudo-subtomograms or 2D stacks.

    Parameters
    ----------
    path : str or Path
        The output directory, or its optimisation_set.star. Paths inside the STAR files count from
        the present directory, as in RELION.

    Returns
    -------
    JobAverage
        By rlnAngleRot/Tilt/Psi, and shifted by rlnOriginX/Y/ZAngst where offsets were not applied.

    Raises
    ------
    InputError
        Where files are missing or are not what an extraction writes.
    """
    file = Path(path) / OPTIMISATION_SET if Path(path).is_dir() else Path(path)
    findings = Findings()
    files = resolve(JobOptions("", 2, 2, optimisation_set=str(file)), findings)
    table = None if files is None else read_particle_table(files.particles, findings)
    if files is None or table is None or findings.errors:
        raise InputError(format_findings(findings))
    layout = _read_layout(table)
    halves = FourierAverage(layout.box), FourierAverage(layout.box)
    add = _add_stacks if layout.is_stack else _add_subtomograms
    add(files, table, layout, halves)
    total = FourierAverage(layout.box)
    for half in halves:
        total += half
    return JobAverage(
        volume=total.finish(),
        half_a=halves[0].finish(),
        half_b=halves[1].finish(),
        pixel_size=layout.pixel_size,
        n_particles=table.particles.n_rows,
    )


def _read_layout(table: ParticleTable) -> _Layout:
    """Return the box and kind of the images; they have to be those of one extraction."""
    needed = (labels.IMAGE_SIZE, labels.SUBTOMOGRAM_BINNING, labels.IMAGE_PIXEL_SIZE)
    findings = Findings()
    if table.optics is None:
        raise InputError(f"{table.path}: expected a table data_optics. Give extracted particles.")
    box, binning, pixel_size = triples(table.optics, needed, findings).T
    premultiplied = table.optics.columns.get(labels.CTF_PREMULTIPLIED, np.array(["0"], object))
    if findings.errors:
        raise InputError(format_findings(findings))
    if np.ptp(box) or np.ptp(binning) or np.ptp(pixel_size) or len(set(premultiplied)) > 1:
        raise InputError(
            f"Optics groups in {table.path}: expected one box, binning and pixel size, found "
            "several. Average the groups one by one."
        )
    layout = _Layout(
        box=int(box[0]),
        binning=float(binning[0]),
        pixel_size=float(pixel_size[0]),
        is_stack=table.general.get(labels.ARE_2D_STACKS) == "1",
        is_premultiplied=premultiplied[0] == "1",
    )
    if not (layout.is_stack or layout.is_premultiplied):
        raise InputError(
            f"Images of {table.path}: expected 2D stacks or pseudo-subtomograms, found true "
            "subtomograms, which come without weights"
        )
    return layout


def _add_subtomograms(
    files: OptimisationSet,
    table: ParticleTable,
    layout: _Layout,
    halves: tuple[FourierAverage, FourierAverage],
) -> None:
    particles, findings = table.particles, Findings()
    rotations = geometry.euler_to_matrix(triples(particles, labels.ANGLES, findings, default=0.0))
    offsets = triples(particles, labels.ORIGIN_XYZ, findings, default=0.0)
    report_missing_columns(particles, (labels.IMAGE_NAME, labels.CTF_IMAGE), findings)
    if findings.errors:
        raise InputError(format_findings(findings))
    for i, half in enumerate(find_halves(particles, findings)):
        volume = read_volume(particles.columns[labels.IMAGE_NAME][i])
        weight = read_volume(particles.columns[labels.CTF_IMAGE][i])[: layout.box]
        shift = -offsets[i] / layout.pixel_size
        halves[half].add_subtomogram(volume, weight, rotations[i], shift if shift.any() else None)


def _add_stacks(
    files: OptimisationSet,
    table: ParticleTable,
    layout: _Layout,
    halves: tuple[FourierAverage, FourierAverage],
) -> None:
    findings = Findings()
    options = JobOptions("", layout.box, layout.box, binning=layout.binning)
    # without trajectories, which images have followed
    tomogram_set, particle_set, _ = read_extracted_sets(
        table, files.tomograms, None, options, findings
    )
    report_missing_columns(table.particles, (labels.IMAGE_NAME,), findings)
    visible = vectors(
        table.particles,
        labels.VISIBLE_FRAMES,
        findings,
        is_good=lambda n: n > 0,
        expected="one flag a frame",
    )
    if particle_set is None or tomogram_set is None or findings.errors:
        raise InputError(format_findings(findings))
    a_sub = geometry.euler_to_matrix(particle_set.subtomogram_angles)
    a_full = a_sub @ geometry.euler_to_matrix(particle_set.angles)
    for i, half in enumerate(particle_set.half):
        tomogram = tomogram_set.tomograms[particle_set.tomogram[i]]
        frames = np.flatnonzero(visible[i])
        images = np.asarray(read_volume(table.particles.columns[labels.IMAGE_NAME][i]))
        ctf_of_frames = weighted_ctf(
            tomogram, particle_set, i, frames, layout.box, layout.pixel_size
        )
        ctf = np.stack(list(ctf_of_frames))
        if not layout.is_premultiplied:
            images = np.fft.irfft2(np.fft.rfft2(images.astype(np.float64)) * ctf, images.shape[1:])
        projections = tomogram.projections[frames, :3, :3]
        shifts = projections[:, :2] @ a_sub[i] @ -particle_set.offset[i] / layout.pixel_size
        halves[half].add_stack(
            images, ctf**2, projections @ a_full[i], shifts if shifts.any() else None
        )
