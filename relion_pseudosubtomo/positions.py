"""Where every particle lies in every tilt image, kept or not: for `--positions2d`, the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core.geometry import depths_from_centre
from relion_pseudosubtomo.merge import text_column
from relion_pseudosubtomo.model import FrameImage, ParticleSet, Tomogram, TomogramSet, Trajectories
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.placement import place_particles
from relion_pseudosubtomo.plan import Plan, inside_frames, usable_frames

Floats = NDArray[np.floating]

#: Where the files of `--positions2d` are, inside the output directory.
FOLDER = "positions2d"


@dataclass(frozen=True)
class ProjectedParticles:
    """All particles of one tomogram in its tilt images, in input order.

    Attributes
    ----------
    tomogram : Tomogram
    number : int or None
        Number of its task in the plan; None where it keeps no particle.
    rows : ndarray, shape (m,), int64
        Rows of the particle set.
    kept : ndarray, shape (m,), bool
        Which are extracted.
    image_point : ndarray, shape (m, n_frames, 2), float64
        Projected position q = (x, y) in pixels of each tilt image, counted from 0 (spec 2.1).
    visible : ndarray, shape (m, n_frames), bool
        Frames that are used, or would be if the particle were kept.
    depth : ndarray, shape (m, n_frames), float64
        From the tomogram's centre along the beam, unbinned pixels.
    """

    tomogram: Tomogram
    number: int | None
    rows: NDArray[np.int64]
    kept: NDArray[np.bool_]
    image_point: Floats
    visible: NDArray[np.bool_]
    depth: Floats


def project_particles(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    trajectories: Trajectories | None,
    plan: Plan,
) -> Iterator[ProjectedParticles]:
    """Yield the particles of one tomogram after the other, from the geometry of the plan.

    Tomograms without particles, and those whose images could not be read at the start, have none.
    """
    is_kept = np.zeros(len(particle_set), dtype=bool)
    is_kept[plan.kept_rows] = True
    numbers = {task.tomogram: task.number for task in plan.tasks}
    for index, tomogram in enumerate(tomogram_set.tomograms):
        rows = np.flatnonzero(particle_set.tomogram == index)
        if len(rows) == 0 or tomogram.name in tomogram_set.failed:
            continue
        shifts = None if trajectories is None else trajectories.stack(rows)
        placed = place_particles(options, tomogram, particle_set, shifts, rows)
        yield ProjectedParticles(
            tomogram,
            numbers.get(index),
            rows,
            is_kept[rows],
            placed.image_point,
            inside_frames(options, tomogram, placed) & usable_frames(options, tomogram),
            depths_from_centre(tomogram.projections, placed.position, tomogram.size_xyz),
        )


def position_columns(particles: ProjectedParticles, names: NDArray[np.object_]) -> Columns:
    """Return the table of `--positions2d`: one row a particle and frame, particle by particle.

    Parameters
    ----------
    particles : ProjectedParticles
    names : ndarray, shape (m,), object
        Their names.
    """
    m, n_frames = particles.visible.shape
    points = particles.image_point.reshape(-1, 2)
    return {
        labels.PARTICLE_NAME: np.repeat(names, n_frames),
        labels.MICROGRAPH_NAME: np.tile(text_column(image_names(particles.tomogram.frames)), m),
        labels.COORDINATE_XYZ[0]: text_column(points[:, 0].tolist(), "{:.4f}"),
        labels.COORDINATE_XYZ[1]: text_column(points[:, 1].tolist(), "{:.4f}"),
        labels.VISIBLE: text_column(particles.visible.ravel().astype(int).tolist()),
    }


def image_names(frames: tuple[FrameImage, ...]) -> list[str]:
    """Return how tilt images are named in STAR files: `number@stack`, or a file of its own."""
    paths = {frame.path for frame in frames}
    if len(paths) == len(frames) and all(frame.index == 0 for frame in frames):
        return [frame.path for frame in frames]
    return [f"{frame.index + 1:06d}@{frame.path}" for frame in frames]
