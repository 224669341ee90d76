"""Where particles are: positions, orientations and projected points (spec 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import deformation, geometry
from relion_pseudosubtomo.model import ParticleSet, Tomogram
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Placement:
    """Some particles of one tomogram in space and in its tilt images.

    Attributes
    ----------
    position : ndarray, shape (m, 3), float64
        Position p in unbinned pixels from the tomogram's corner, (x, y, z).
    image_point : ndarray, shape (m, n_frames, 2), float64
        Projected position q = (x, y) in pixels of each tilt image, trajectory and deformation
        included.
    box_rotation : ndarray, shape (m, 3, 3), float64
        Orientation of the box in the tomogram: A_sub, or A_full with `--apply_orientations`.
    particle_rotation : ndarray, shape (m, 3, 3), float64
        A_full, the orientation of the particle in the tomogram.
    """

    position: Floats
    image_point: Floats
    box_rotation: Floats
    particle_rotation: Floats


def place_particles(
    options: JobOptions,
    tomogram: Tomogram,
    particle_set: ParticleSet,
    shifts: Floats | None,
    rows: NDArray[np.int64],
) -> Placement:
    """Place particles of one tomogram.

    Parameters
    ----------
    options : JobOptions
    tomogram : Tomogram
        With its frames.
    particle_set : ParticleSet
        Its numbers; the columns of text are not used.
    shifts : ndarray, shape (m, n_frames, 3), or None
        Trajectories of these particles: (x, y, z) in Angstrom in the tomogram's axes.
    rows : ndarray, shape (m,), int64
        Rows of the particle set, all of this tomogram.
    """
    a_sub = geometry.euler_to_matrix(particle_set.subtomogram_angles[rows])
    a_full = a_sub @ geometry.euler_to_matrix(particle_set.angles[rows])
    position: Floats = particle_set.coordinate[rows]
    if options.offsets_applied:
        offset = particle_set.offset[rows]
        position = geometry.apply_offset(position, offset, a_sub, tomogram.pixel_size)
    moving = position
    if shifts is not None:
        moving = position[:, None, :] + shifts / tomogram.pixel_size
    point = geometry.project_points(tomogram.projections, moving)[..., :2]
    model = tomogram.deformation
    if model is not None:
        point = deformation.deform_points(
            model.kind, model.grid_xy, model.coefficients, point, tomogram.image_size_xy
        )
    return Placement(position, point, a_full if options.apply_orientations else a_sub, a_full)
