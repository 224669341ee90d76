"""What will be done, decided before any image is read: who survives, which file each particle gets.

Everything here follows from geometry alone, so a restarted, split or reordered run gives the same
answer, and workers only report what they did.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import deformation, geometry
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.model import ParticleSet, Task, Tomogram, TomogramSet, Trajectories
from relion_pseudosubtomo.options import JobOptions

OUTSIDE = "outside the image in all frames"
FEW_VISIBLE = "too few visible frames"
FEW_WITHIN_DOSE = "too few visible frames within the maximum dose"
UNKNOWN_TOMOGRAM = "tomogram not in the tomogram set"
#: Every reason for which a particle is left out; a particle gets the first that holds.
DROP_REASONS = (UNKNOWN_TOMOGRAM, OUTSIDE, FEW_VISIBLE, FEW_WITHIN_DOSE)


@dataclass(frozen=True)
class Plan:
    """The work of one job.

    Attributes
    ----------
    tasks : tuple of Task
        One a tomogram that keeps particles, in the tomogram set's order.
    dropped_rows : ndarray, shape (n_dropped,), int64
        Rows of the particle set that are left out, ascending.
    dropped_reasons : tuple of str
        One of `DROP_REASONS` for each.
    projected : ProjectedPositions
        Where all particles lie, dropped ones too.
    """

    tasks: tuple[Task, ...]
    dropped_rows: NDArray[np.int64]
    dropped_reasons: tuple[str, ...]
    projected: ProjectedPositions

    @property
    def kept_rows(self) -> NDArray[np.int64]:
        """Rows of the particle set that are extracted, in output order."""
        rows = [task.rows for task in self.tasks]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)


@dataclass(frozen=True)
class ProjectedPositions:
    """Where the particles lie, as shares: to tell coordinates that are binned or not centred.

    Attributes
    ----------
    median_point : tuple of float
        Median over particles and frames of the projected position, pixels (x, y).
    median_image_size : tuple of float
        Median image size, pixels (x, y).
    low, high : tuple of float
        5th and 95th percentile of the coordinates as shares of the tomogram size (x, y).
    """

    median_point: tuple[float, float]
    median_image_size: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]


def make_plan(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    trajectories: Trajectories | None,
) -> Plan:
    """Decide which particles survive and where their files go (spec 2.1 to 2.3, 3.1).

    Parameters
    ----------
    options : JobOptions
    tomogram_set : TomogramSet
    particle_set : ParticleSet
    trajectories : Trajectories or None
        One trajectory a particle.

    Raises
    ------
    InputError
        Where two particles would get the same file.
    """
    stems = output_stems(particle_set, tomogram_set)
    reasons: dict[int, str] = dict.fromkeys(
        np.flatnonzero(particle_set.tomogram < 0).tolist(), UNKNOWN_TOMOGRAM
    )
    tasks: list[Task] = []
    seen: list[tuple[NDArray, ...]] = []
    for index, tomogram in enumerate(tomogram_set.tomograms):
        rows = np.flatnonzero(particle_set.tomogram == index)
        if len(rows) == 0:
            continue
        candidate = _view_particles(options, tomogram, index, particle_set, trajectories, rows)
        inside = geometry.is_inside_image(
            candidate.image_point, tomogram.image_size_xy, options.binning * options.crop / 2
        )
        visible = inside & within_dose(options, tomogram)
        kept = _judge(options, rows, inside, visible, reasons)
        seen.append(_shares(tomogram, candidate))
        if kept.any():
            names = tuple(stems[row] for row in rows[kept])
            tasks.append(_select(candidate, len(tasks), kept, visible, names))
    dropped = sorted(reasons)
    return Plan(
        tuple(tasks),
        np.array(dropped, dtype=np.int64),
        tuple(reasons[row] for row in dropped),
        _projected_positions(seen),
    )


def output_stems(particle_set: ParticleSet, tomogram_set: TomogramSet) -> list[str]:
    """Return each particle's output path without suffix, inside the output directory (spec 3.1)."""
    names = particle_set.names
    if len(names) and "/" in names[0]:
        return [f"Subtomograms/{name}" for name in names]
    tomograms = tomogram_set.tomograms
    stems = [
        f"Subtomograms/{tomograms[t].name}/{name}" if t >= 0 else ""
        for t, name in zip(particle_set.tomogram, names, strict=True)
    ]
    wanted = [stem for stem in stems if stem]
    if len(set(wanted)) < len(wanted):
        raise InputError(
            f"Output files in {particle_set.path}: expected one file name a particle, found "
            "particles whose tomogram and particle names give the same file. Rename them."
        )
    return stems


def within_dose(options: JobOptions, tomogram: Tomogram) -> NDArray[np.bool_]:
    """Return which frames are within the maximum dose, shape (n_frames,)."""
    if options.max_dose <= 0:
        return np.ones(tomogram.n_frames, dtype=bool)
    return tomogram.pre_exposure <= options.max_dose


def _view_particles(
    options: JobOptions,
    tomogram: Tomogram,
    index: int,
    particle_set: ParticleSet,
    trajectories: Trajectories | None,
    rows: NDArray[np.int64],
) -> Task:
    """Return a task of all the rows of one tomogram, visible or not."""
    a_sub = geometry.euler_to_matrix(particle_set.subtomogram_angles[rows])
    a_full = a_sub @ geometry.euler_to_matrix(particle_set.angles[rows])
    position = particle_set.coordinate[rows]
    if options.offsets_applied:
        position = geometry.apply_offset(
            position, particle_set.offset[rows], a_sub, tomogram.pixel_size
        )
    moving = position
    if trajectories is not None and not options.real_subtomo:
        shifts = np.stack([trajectories.shifts[row] for row in rows])
        moving = position[:, None, :] + shifts / tomogram.pixel_size
    point = geometry.project_points(tomogram.projections, moving)[..., :2]
    if tomogram.deformation is not None:
        model = tomogram.deformation
        point = deformation.deform_points(
            model.kind, model.grid_xy, model.coefficients, point, tomogram.image_size_xy
        )
    return Task(
        number=0,
        tomogram=index,
        rows=rows,
        stems=(),
        visible=np.zeros(point.shape[:2], dtype=bool),
        position=position,
        image_point=point,
        box_rotation=a_full if options.apply_orientations else a_sub,
        particle_rotation=a_full,
        optics_row=particle_set.optics_row[rows],
    )


def _judge(
    options: JobOptions,
    rows: NDArray[np.int64],
    inside: NDArray[np.bool_],
    visible: NDArray[np.bool_],
    reasons: dict[int, str],
) -> NDArray[np.bool_]:
    """Return which rows are kept; note the reason of each that is not."""
    n_inside, n_visible = inside.sum(axis=1), visible.sum(axis=1)
    kept = n_visible >= options.min_frames
    for i in np.flatnonzero(~kept):
        if n_inside[i] == 0:
            reason = OUTSIDE
        elif n_inside[i] < options.min_frames:
            reason = FEW_VISIBLE
        else:
            reason = FEW_WITHIN_DOSE
        reasons[int(rows[i])] = reason
    return kept


def _select(
    task: Task,
    number: int,
    kept: NDArray[np.bool_],
    visible: NDArray[np.bool_],
    stems: tuple[str, ...],
) -> Task:
    return Task(
        number=number,
        tomogram=task.tomogram,
        rows=task.rows[kept],
        stems=stems,
        visible=visible[kept],
        position=task.position[kept],
        image_point=task.image_point[kept],
        box_rotation=task.box_rotation[kept],
        particle_rotation=task.particle_rotation[kept],
        optics_row=task.optics_row[kept],
    )


def _shares(tomogram: Tomogram, task: Task) -> tuple[NDArray, ...]:
    """Return median projected points, image sizes, and positions as shares of the tomogram."""
    point = np.median(task.image_point, axis=1)
    size = np.broadcast_to(np.asarray(tomogram.image_size_xy, np.float64), point.shape)
    extent = np.where(tomogram.size_xyz[:2] > 0, tomogram.size_xyz[:2], np.nan)
    return point, size, task.position[:, :2] / extent


def _projected_positions(seen: list[tuple[NDArray, ...]]) -> ProjectedPositions:
    if not seen:
        nothing = (np.nan, np.nan)
        return ProjectedPositions(nothing, nothing, nothing, nothing)
    point, size, share = (np.concatenate(parts) for parts in zip(*seen, strict=True))

    def pair(values: NDArray) -> tuple[float, float]:
        return float(values[0]), float(values[1])

    return ProjectedPositions(
        pair(np.median(point, axis=0)),
        pair(np.median(size, axis=0)),
        pair(np.percentile(share, 5, axis=0)),
        pair(np.percentile(share, 95, axis=0)),
    )
