"""What will be done, decided before any image is read: who survives, which file each particle gets.

Everything here follows from geometry alone, so a restarted, split or reordered run gives the same
answer, and workers only report what they did.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core.geometry import is_inside_image
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.model import ParticleSet, Task, Tomogram, TomogramSet, Trajectories
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.placement import Placement, place_particles

OUTSIDE = "outside the image in all frames"
FEW_VISIBLE = "too few visible frames"
FEW_WITHIN_DOSE = "too few visible frames within the maximum dose"
MANY_MISSING = "invisible in too many frames within the maximum dose"
NOT_COMMON = "not visible in all of the common tilts"
UNKNOWN_TOMOGRAM = "tomogram not in the tomogram set"
FAILED_TOMOGRAM = "tomogram failed"
#: Every reason for which a particle is left out; a particle gets the first that holds.
DROP_REASONS = (
    UNKNOWN_TOMOGRAM,
    FAILED_TOMOGRAM,
    OUTSIDE,
    FEW_VISIBLE,
    FEW_WITHIN_DOSE,
    MANY_MISSING,
    NOT_COMMON,
)


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
    position : ndarray, shape (n_kept, 3), float64
        Position of each kept particle in unbinned pixels, in output order.
    particle_rotation : ndarray, shape (n_kept, 3, 3), float64
        A_full of each kept particle, in output order.
    projected : ProjectedPositions
        Where all particles lie, dropped ones too.
    """

    tasks: tuple[Task, ...]
    dropped_rows: NDArray[np.int64]
    dropped_reasons: tuple[str, ...]
    position: NDArray[np.floating]
    particle_rotation: NDArray[np.floating]
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
    n_particles : int
        How many were placed.
    share_outside : float
        Share of them whose median projected position lies outside its tilt images.
    """

    median_point: tuple[float, float]
    median_image_size: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]
    n_particles: int = 0
    share_outside: float = 0.0


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
    positions: list[NDArray] = [np.zeros((0, 3))]
    rotations: list[NDArray] = [np.zeros((0, 3, 3))]
    for index, tomogram in enumerate(tomogram_set.tomograms):
        rows = np.flatnonzero(particle_set.tomogram == index)
        if len(rows) == 0:
            continue
        if tomogram.name in tomogram_set.failed:
            reasons.update(dict.fromkeys(rows.tolist(), FAILED_TOMOGRAM))
            continue
        shifts = None if trajectories is None else trajectories.stack(rows)
        placed = place_particles(options, tomogram, particle_set, shifts, rows)
        inside = inside_frames(options, tomogram, placed)
        visible = inside & usable_frames(options, tomogram)
        kept = _judge(options, tomogram, rows, inside, reasons)
        seen.append(_shares(tomogram, placed))
        if kept.any():
            names = tuple(stems[row] for row in rows[kept])
            tasks.append(Task(len(tasks), index, 0, rows[kept], names, visible[kept]))
            positions.append(placed.position[kept])
            rotations.append(placed.particle_rotation[kept])
    dropped = sorted(reasons)
    return Plan(
        tuple(tasks),
        np.array(dropped, dtype=np.int64),
        tuple(reasons[row] for row in dropped),
        np.concatenate(positions),
        np.concatenate(rotations),
        _projected_positions(seen),
    )


def leave_out_tasks(plan: Plan, numbers: set[int]) -> Plan:
    """Return a plan without the tasks that failed; their particles are dropped."""
    if not numbers:
        return plan
    failed = [task.rows for task in plan.tasks if task.number in numbers]
    reasons = dict(zip(plan.dropped_rows.tolist(), plan.dropped_reasons, strict=True))
    reasons.update(dict.fromkeys(np.concatenate(failed).tolist(), FAILED_TOMOGRAM))
    dropped = sorted(reasons)
    kept = np.concatenate([np.full(len(t), t.number not in numbers) for t in plan.tasks])
    return replace(
        plan,
        tasks=tuple(task for task in plan.tasks if task.number not in numbers),
        dropped_rows=np.array(dropped, dtype=np.int64),
        dropped_reasons=tuple(reasons[row] for row in dropped),
        position=plan.position[kept],
        particle_rotation=plan.particle_rotation[kept],
    )


def take_task(plan: Plan, number: int) -> Plan:
    """Return the plan of one task alone; nothing is dropped in it."""
    first = sum(len(task) for task in plan.tasks[:number])
    rows = slice(first, first + len(plan.tasks[number]))
    return replace(
        plan,
        tasks=(plan.tasks[number],),
        dropped_rows=np.zeros(0, np.int64),
        dropped_reasons=(),
        position=plan.position[rows],
        particle_rotation=plan.particle_rotation[rows],
    )


def output_stems(particle_set: ParticleSet, tomogram_set: TomogramSet) -> list[str]:
    """Return each particle's output path without suffix, inside the output directory (spec 3.1)."""
    names = particle_set.names
    if "/" in (particle_set.first_name or next(iter(names), "")):
        return [f"Subtomograms/{name}" for name in names]
    tomograms = tomogram_set.tomograms
    stems = [
        f"Subtomograms/{tomograms[t].name}/{name}" if t >= 0 else ""
        for t, name in zip(particle_set.tomogram, names, strict=True)
    ]
    wanted = [stem for stem in stems if stem]
    if len(set(wanted)) < len(wanted):
        raise InputError(
            f"output files in {particle_set.path}: expected one file name a particle, found "
            "particles whose tomogram and particle names give the same file"
        )
    return stems


def inside_frames(options: JobOptions, tomogram: Tomogram, placed: Placement) -> NDArray[np.bool_]:
    """Return in which frames the cropped box is inside, shape (m, n_frames) (spec 2.3)."""
    radius = options.binning * options.crop / 2
    return is_inside_image(placed.image_point, tomogram.image_size_xy, radius)


def within_dose(options: JobOptions, tomogram: Tomogram) -> NDArray[np.bool_]:
    """Return which frames are within the maximum dose, shape (n_frames,)."""
    if options.max_dose <= 0:
        return np.ones(tomogram.n_frames, dtype=bool)
    return tomogram.pre_exposure <= options.max_dose


def common_tilts(options: JobOptions, tomogram: Tomogram) -> NDArray[np.bool_]:
    """Return the frames of `--common_tilts`, shape (n_frames,): those of the lowest dose, or all.

    Of frames with the same dose the first in the series count.
    """
    chosen = np.ones(tomogram.n_frames, dtype=bool)
    if options.common_tilts is not None:
        chosen[np.argsort(tomogram.pre_exposure, kind="stable")[options.common_tilts :]] = False
    return chosen


def usable_frames(options: JobOptions, tomogram: Tomogram) -> NDArray[np.bool_]:
    """Return the frames that are used wherever the particle is inside them, shape (n_frames,)."""
    return within_dose(options, tomogram) & common_tilts(options, tomogram)


def _judge(
    options: JobOptions,
    tomogram: Tomogram,
    rows: NDArray[np.int64],
    inside: NDArray[np.bool_],
    reasons: dict[int, str],
) -> NDArray[np.bool_]:
    """Return which rows are kept; note the reason of each that is not."""
    within = within_dose(options, tomogram)
    visible = inside & within
    n_inside, n_visible = inside.sum(axis=1), visible.sum(axis=1)
    failed = {
        OUTSIDE: n_inside == 0,
        FEW_VISIBLE: n_inside < options.min_frames,
        FEW_WITHIN_DOSE: n_visible < options.min_frames,
    }
    if options.max_missing is not None:
        failed[MANY_MISSING] = within.sum() - n_visible > options.max_missing
    if options.common_tilts is not None:
        # also where the tomogram has fewer frames than that
        n_common = (visible & common_tilts(options, tomogram)).sum(axis=1)
        failed[NOT_COMMON] = n_common < options.common_tilts
    kept = ~np.any(list(failed.values()), axis=0)
    for i in np.flatnonzero(~kept):
        reasons[int(rows[i])] = next(reason for reason, holds in failed.items() if holds[i])
    return kept


def _shares(tomogram: Tomogram, placed: Placement) -> tuple[NDArray, ...]:
    """Return median projected points, image sizes, and positions as shares of the tomogram."""
    point = np.median(placed.image_point, axis=1)
    size = np.broadcast_to(np.asarray(tomogram.image_size_xy, np.float64), point.shape)
    extent = np.where(tomogram.size_xyz[:2] > 0, tomogram.size_xyz[:2], np.nan)
    return point, size, placed.position[:, :2] / extent


def _projected_positions(seen: list[tuple[NDArray, ...]]) -> ProjectedPositions:
    if not seen:
        nothing = (np.nan, np.nan)
        return ProjectedPositions(nothing, nothing, nothing, nothing)
    point, size, share = (np.concatenate(parts) for parts in zip(*seen, strict=True))

    outside = ((point < 0) | (point > size - 1)).any(axis=1)

    def pair(values: NDArray) -> tuple[float, float]:
        return float(values[0]), float(values[1])

    return ProjectedPositions(
        pair(np.median(point, axis=0)),
        pair(np.median(size, axis=0)),
        pair(np.percentile(share, 5, axis=0)),
        pair(np.percentile(share, 95, axis=0)),
        len(point),
        float(outside.mean()),
    )
