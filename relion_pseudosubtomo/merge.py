"""The output tables, from the input tables and the plan alone (spec 3.3, 3.4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.model import OptimisationSet, ParticleSet, TomogramSet, Trajectories
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions, real_box_size
from relion_pseudosubtomo.plan import Plan


def output_path(options: JobOptions, name: str) -> str:
    """Return a path in the output directory, which starts as the user gave it (spec 3.3)."""
    return f"{options.output.rstrip('/') or '/'}/{name}"


def text_column(values: NDArray | list, form: str = "{}") -> NDArray[np.object_]:
    """Return values as a column of text."""
    out = np.empty(len(values), dtype=object)
    # plain numbers: NumPy's own take twice as long to write
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    out[:] = list(map(form.format, plain))
    return out


def merge_particles(
    options: JobOptions, particle_set: ParticleSet, tomogram_set: TomogramSet, plan: Plan
) -> Columns:
    """Return `data_particles` of the kept particles, in output order (spec 3.3)."""
    rows = plan.kept_rows
    columns = {label: values[rows] for label, values in particle_set.columns.items()}
    for label in (*labels.COORDINATE_XYZ, labels.VISIBLE_FRAMES):
        columns.pop(label, None)
    if options.stack2d:
        columns.pop(labels.MICROGRAPH_NAME, None)
        columns.pop(labels.CTF_IMAGE, None)
        visible = [flags for task in plan.tasks for flags in task.visible]
        columns[labels.VISIBLE_FRAMES] = text_column([vector_text(flags) for flags in visible])
    stems = [output_path(options, stem) for task in plan.tasks for stem in task.stems]
    suffix = "_stack2d.mrcs" if options.stack2d else "_data.mrc"
    columns[labels.IMAGE_NAME] = text_column(stems, "{}" + suffix)
    if not options.stack2d:
        columns[labels.CTF_IMAGE] = text_column(stems, "{}_weights.mrc")
    _set_coordinates(options, columns, tomogram_set, plan)
    _set_origins_and_angles(options, columns, plan)
    return columns


def vector_text(flags: NDArray[np.bool_]) -> str:
    """Return flags as they stand in rlnTomoVisibleFrames."""
    return "[" + ",".join("1" if flag else "0" for flag in flags) + "]"


def _set_coordinates(
    options: JobOptions, columns: Columns, tomogram_set: TomogramSet, plan: Plan
) -> None:
    """Centred coordinates are always there; they stay as they were where no offset is applied."""
    if not options.offsets_applied and all(c in columns for c in labels.CENTERED_COORDINATE_XYZ):
        return
    half_size = np.zeros((len(plan.position), 3))
    pixel_size = np.zeros((len(plan.position), 1))
    first = 0
    for task in plan.tasks:
        tomogram, here = tomogram_set.tomograms[task.tomogram], slice(first, first + len(task))
        half_size[here], pixel_size[here] = tomogram.size_xyz / 2, tomogram.pixel_size
        first += len(task)
    values = (plan.position - half_size) * pixel_size
    for axis, label in enumerate(labels.CENTERED_COORDINATE_XYZ):
        columns[label] = text_column(values[:, axis], "{:.6f}")


def _set_origins_and_angles(options: JobOptions, columns: Columns, plan: Plan) -> None:
    zero = np.full(len(plan.kept_rows), f"{0:.6f}", dtype=object)
    if options.offsets_applied:
        for label in labels.ORIGIN_XYZ:
            columns[label] = zero
    if options.apply_orientations:
        angles = geometry.matrix_to_euler(plan.particle_rotation)
        for axis, label in enumerate(labels.SUBTOMOGRAM_ANGLES):
            columns[label] = text_column(angles[:, axis], "{:.6f}")
        for label in labels.ANGLES:
            columns[label] = zero


def merge_general(options: JobOptions, particle_set: ParticleSet) -> dict[str, str]:
    """Return `data_general`: the input's, and whether the images are 2D stacks."""
    return {**particle_set.general, labels.ARE_2D_STACKS: "1" if options.stack2d else "0"}


def merge_optics(
    options: JobOptions, particle_set: ParticleSet, tomogram_set: TomogramSet
) -> Columns:
    """Return `data_optics`: the input's, with what is true of the new images (spec 3.3, 2.11)."""
    groups = particle_set.optics
    n = len(groups.numbers)
    columns = dict(groups.columns)
    binning, size = options.binning, options.crop
    if options.real_subtomo:
        binning = tomogram_binning(tomogram_set)
        size = real_box_size(options.crop, options.binning, binning)
        columns[labels.CTF_CORRECTED] = text_column(["1"] * n)
    constant = {
        labels.CTF_PREMULTIPLIED: "1" if options.is_premultiplied else "0",
        labels.IMAGE_DIMENSIONALITY: "3" if options.is_3d else "2",
        labels.SUBTOMOGRAM_BINNING: f"{binning:.6f}",
        labels.IMAGE_SIZE: str(size),
    }
    for label, value in constant.items():
        columns[label] = text_column([value] * n)
    columns[labels.IMAGE_PIXEL_SIZE] = text_column(binning * groups.pixel_size, "{:.6f}")
    return columns


def tomogram_binning(tomogram_set: TomogramSet) -> float:
    """Return the binning of the reconstructed volumes, the same for all (spec 2.11)."""
    return next(t.tomogram_binning for t in tomogram_set.tomograms if t.tomogram_binning)


def merge_class2d(tomogram_set: TomogramSet, plan: Plan, particles: Columns) -> Columns:
    """Return the table of particles_for_class2d.star: the least tilted projection (spec 2.11)."""
    images = []
    for task in plan.tasks:
        nominal = tomogram_set.tomograms[task.tomogram].nominal_tilt
        assert nominal is not None  # the checks made sure
        tilt = np.abs(nominal)
        for visible in task.visible:
            images.append(int(np.argmin(tilt[visible])) + 1)
    columns = {k: v for k, v in particles.items() if k != labels.CTF_IMAGE}
    names = [f"{i}@{name}" for i, name in zip(images, particles[labels.IMAGE_NAME], strict=True)]
    columns[labels.IMAGE_NAME] = text_column(names)
    return columns


def merge_dropped(particle_set: ParticleSet, plan: Plan) -> Columns:
    """Return the table of dropped.star: tomogram, particle name and one reason."""
    rows = plan.dropped_rows
    return {
        labels.TOMO_NAME: particle_set.columns[labels.TOMO_NAME][rows],
        labels.PARTICLE_NAME: particle_set.names[rows],
        labels.DROP_REASON: text_column(list(plan.dropped_reasons)),
    }


def merge_renamed(particle_set: ParticleSet) -> Columns | None:
    """Return the table of renamed_particles.star, new and former names; None without any."""
    if particle_set.former_names is None:
        return None
    rows = np.flatnonzero(particle_set.names != particle_set.former_names)
    return {
        labels.TOMO_NAME: particle_set.columns[labels.TOMO_NAME][rows],
        labels.PARTICLE_NAME: particle_set.names[rows],
        labels.FORMER_NAME: particle_set.former_names[rows],
    }


def needs_trajectory_file(trajectories: Trajectories | None, plan: Plan) -> bool:
    """Return whether the kept particles need trajectories of their own (spec 3.4).

    Programs that read a file of more particles refuse it. One that goes by order does not fit the
    order of tomograms, in which the output is.
    """
    if trajectories is None:
        return False
    is_same_set = not len(plan.dropped_rows) and trajectories.n_tables == len(plan.kept_rows)
    return trajectories.by_order or not is_same_set


def merge_optimisation_set(
    options: JobOptions, optimisation_set: OptimisationSet, own_trajectories: bool
) -> OptimisationSet:
    """Return the optimisation set of the output (spec 3.4)."""
    trajectories = optimisation_set.trajectories
    if own_trajectories:
        trajectories = output_path(options, "motion.star")
    return replace(
        optimisation_set,
        particles=output_path(options, "particles.star"),
        trajectories=trajectories,
    )
