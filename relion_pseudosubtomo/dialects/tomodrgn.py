"""tomoDRGN: stacks of all tilts, and one folder that can be moved as a whole.

It finds the images of a stack by the number of the tilt in the series, and takes the folder of the
optimisation set as that of all other paths. It knows the origin of a particle file by its columns,
which have to be exactly those of `_COLUMNS`, in this order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.dialects.tables import (
    PARTICLES,
    TOMOGRAMS,
    Floats,
    StandardTables,
    ctf_columns,
    global_columns,
    kept_tomograms,
    matrix_columns,
    number_column,
    xyz_columns,
)
from relion_pseudosubtomo.findings import Findings, counted, list_first
from relion_pseudosubtomo.io.optimisation_set import OPTIMISATION_SET, write_optimisation_set
from relion_pseudosubtomo.io.particles import write_particle_file
from relion_pseudosubtomo.io.star import StarTable, write_star
from relion_pseudosubtomo.merge import text_column
from relion_pseudosubtomo.model import OptimisationSet, ParticleSet, Tomogram, TomogramSet
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import ALL_TILTS, JobOptions
from relion_pseudosubtomo.plan import Plan

NAME = "tomodrgn"

_OPTICS = (
    labels.OPTICS_GROUP,
    labels.OPTICS_GROUP_NAME,
    labels.SPHERICAL_ABERRATION,
    labels.VOLTAGE,
    labels.TILT_SERIES_PIXEL_SIZE,
    labels.CTF_PREMULTIPLIED,
    labels.IMAGE_DIMENSIONALITY,
    labels.SUBTOMOGRAM_BINNING,
    labels.IMAGE_PIXEL_SIZE,
    labels.IMAGE_SIZE,
    labels.AMPLITUDE_CONTRAST,
)
_COLUMNS = (
    labels.TOMO_NAME,
    labels.PARTICLE_ID,
    *labels.COORDINATE_XYZ,
    *labels.ANGLES,
    labels.PARTICLE_NAME,
    labels.OPTICS_GROUP,
    labels.IMAGE_NAME,
    *labels.ORIGIN_XYZ,
    labels.VISIBLE_FRAMES,
)
#: Columns of a refinement by RELION, which it knows as a second kind; all of them or none.
_REFINED = (
    labels.GROUP_NUMBER,
    labels.CLASS_NUMBER,
    labels.NORM_CORRECTION,
    labels.RANDOM_SUBSET,
    labels.LOG_LIKELIHOOD,
    labels.MAX_PROBABILITY,
    labels.SIGNIFICANT_SAMPLES,
)


def write(tables: StandardTables) -> None:
    """Write the tables of tomoDRGN, whose images are stacks of its own."""
    folder = tables.folder(NAME)
    kept = _has_positive_coordinates(tables.plan)
    particles = {label: values[kept] for label, values in _particle_columns(tables).items()}
    optics = {label: tables.optics[label] for label in _OPTICS}
    general = {labels.ARE_2D_STACKS: "1"}
    write_particle_file(folder / PARTICLES, general, optics, particles)
    tomograms = tables.tomograms
    write_star(
        folder / TOMOGRAMS,
        [
            StarTable("global", global_columns(tomograms)),
            *(StarTable(t.name, _tilt_columns(t, tables.has_ctf_scale(t))) for t in tomograms),
        ],
    )
    write_optimisation_set(folder / OPTIMISATION_SET, OptimisationSet(PARTICLES, TOMOGRAMS))


def _particle_columns(tables: StandardTables) -> Columns:
    plan, given = tables.plan, tables.particles
    ending = ALL_TILTS.rpartition("/")[2]
    columns = {
        **given,
        labels.PARTICLE_ID: text_column([*range(1, len(plan.position) + 1)]),
        **xyz_columns(labels.COORDINATE_XYZ, plan.position / tables.options.binning),
        # it knows no orientation of the box
        **xyz_columns(labels.ANGLES, geometry.matrix_to_euler(plan.particle_rotation)),
        labels.IMAGE_NAME: text_column(tables.stems, "{}" + ending),
        **xyz_columns(labels.ORIGIN_XYZ, _origins(tables)),
    }
    refined = _REFINED if all(label in given for label in _REFINED) else ()
    return {label: columns[label] for label in (*_COLUMNS, *refined)}


def _origins(tables: StandardTables) -> Floats:
    """Return the offsets that were not applied, in the tomogram's axes, Angstrom."""
    particle_set, rows = tables.particle_set, tables.plan.kept_rows
    if tables.options.offsets_applied:
        return np.zeros((len(rows), 3))
    a_sub = geometry.euler_to_matrix(particle_set.subtomogram_angles[rows])
    return np.asarray(np.einsum("nij,nj->ni", a_sub, particle_set.offset[rows]))


def _tilt_columns(tomogram: Tomogram, has_ctf_scale: bool) -> Columns:
    columns = matrix_columns(tomogram.projections) | ctf_columns(tomogram)
    # it takes the arc cosine of the scale for the tilt, and for nothing else
    scale = tomogram.ctf_scale if has_ctf_scale else _tilt_cosine(tomogram.projections)
    columns[labels.CTF_SCALE] = number_column(np.minimum(scale, 1.0))
    return columns


def _tilt_cosine(projections: Floats) -> Floats:
    """Return the cosine of the angle between the beam and the tomogram's z axis, of each frame."""
    beam = projections[:, 2, :3]
    return np.asarray(np.abs(beam[:, 2]) / np.linalg.norm(beam, axis=1))


def _has_positive_coordinates(plan: Plan) -> NDArray[np.bool_]:
    """Return which kept particles have no negative coordinate: it stops at one."""
    return np.asarray((plan.position >= 0).all(axis=1))


def check_coordinates(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    plan: Plan,
    findings: Findings,
) -> None:
    """Warn of particles that its table cannot have; an error where none is left."""
    n_left_out = int((~_has_positive_coordinates(plan)).sum())
    if not n_left_out:
        return
    add = findings.error if n_left_out == len(plan.position) else findings.warning
    add(
        "dialect-coordinates",
        f"{counted(n_left_out, 'particle')} at negative coordinates, which --for {NAME} leaves out",
        file=tomogram_set.path,
        expected=f"positions inside {', '.join(labels.TOMO_SIZE_XYZ)}",
    )


def check_names(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    plan: Plan,
    findings: Findings,
) -> None:
    """Add an error for names with spaces: it splits rows at each."""
    of_tomograms = [
        name
        for tomogram in kept_tomograms(tomogram_set, plan)
        for name in (tomogram.name, tomogram.optics_group_name)
    ]
    of_tomograms += [stem for task in plan.tasks for stem in task.stems]
    of_optics = list(particle_set.optics.columns.get(labels.OPTICS_GROUP_NAME, ()))
    for path, names in ((tomogram_set.path, of_tomograms), (particle_set.path, of_optics)):
        spaced = [name for name in dict.fromkeys(names) if name and name.split() != [name]]
        if spaced:
            findings.error(
                "dialect-name",
                f"names for --for {NAME}",
                file=path,
                expected="no spaces",
                found=list_first((repr(name) for name in spaced), 3),
            )
