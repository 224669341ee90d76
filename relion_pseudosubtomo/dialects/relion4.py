"""RELION 4: coordinates from the corner, and all tilt tables in one file.

RELION 4 has no centred coordinates, no alignment angles and no 2D stacks. It wants the tilt images
of a series in one file: where they are not, it can refine the pseudo-subtomograms, but read no tilt
image (docs/dialects.md).
"""

from __future__ import annotations

import numpy as np

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.dialects.tables import (
    PARTICLES,
    TOMOGRAMS,
    StandardTables,
    ctf_columns,
    global_columns,
    matrix_columns,
    number_column,
    vector_column,
    write_project_set,
    xyz_columns,
)
from relion_pseudosubtomo.io.particles import write_particle_file
from relion_pseudosubtomo.io.star import StarTable, write_star
from relion_pseudosubtomo.merge import text_column
from relion_pseudosubtomo.model import Deformation, Tomogram
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.positions import image_names

NAME = "relion4"


def write(tables: StandardTables) -> None:
    """Write the tables of RELION 4; the images are those of the standard output."""
    folder = tables.folder(NAME)
    particles = {
        label: values
        for label, values in tables.particles.items()
        if label not in labels.CENTERED_COORDINATE_XYZ
    }
    particles |= xyz_columns(labels.COORDINATE_XYZ, tables.plan.position)
    write_particle_file(folder / PARTICLES, tables.general, tables.optics, particles)
    tomograms = tables.tomograms
    is_deformed = any(tomogram.deformation is not None for tomogram in tomograms)
    write_star(
        folder / TOMOGRAMS,
        [
            StarTable("global", _global_columns(tomograms, is_deformed=is_deformed)),
            *(StarTable(t.name, _tilt_columns(t, is_deformed=is_deformed)) for t in tomograms),
        ],
    )
    write_project_set(tables, NAME)


def _global_columns(tomograms: list[Tomogram], *, is_deformed: bool) -> Columns:
    columns = global_columns(tomograms)
    columns[labels.TILT_SERIES_NAME] = text_column([_stack_of(t) or "None" for t in tomograms])
    columns[labels.DEFOCUS_SLOPE] = number_column(np.array([t.defocus_slope for t in tomograms]))
    per_dose = np.array([t.bfactor_per_dose for t in tomograms])
    if per_dose.any():
        columns[labels.BFACTOR_PER_DOSE] = number_column(per_dose)
    if is_deformed:
        models = [_deformation(tomogram) for tomogram in tomograms]
        columns[labels.DEFORMATION_TYPE] = text_column([model.kind for model in models])
        for axis, label in enumerate(labels.DEFORMATION_GRID_XY):
            columns[label] = text_column([model.grid_xy[axis] for model in models])
    return columns


def _tilt_columns(tomogram: Tomogram, *, is_deformed: bool) -> Columns:
    columns = matrix_columns(tomogram.projections) | ctf_columns(tomogram)
    columns[labels.CTF_BFACTOR] = number_column(tomogram.ctf_bfactor)
    columns[labels.PHASE_SHIFT] = number_column(tomogram.phase_shift)
    if _stack_of(tomogram) is None:
        columns[labels.MICROGRAPH_NAME] = text_column(image_names(tomogram.frames))
    if is_deformed:
        rows = _deformation(tomogram).coefficients
        columns[labels.DEFORMATION_COEFFICIENTS] = vector_column(rows, "{:.10g}")
    return columns


def _deformation(tomogram: Tomogram) -> Deformation:
    """Return the model of a tomogram; one that moves no point where others alone have one."""
    nothing = Deformation("linear", (1, 1), np.zeros((tomogram.n_frames, 3)))
    return tomogram.deformation or nothing


def _stack_of(tomogram: Tomogram) -> str | None:
    """Return the file that holds exactly these frames in this order, as far as their names tell."""
    paths = {frame.path for frame in tomogram.frames}
    in_order = [frame.index for frame in tomogram.frames] == list(range(tomogram.n_frames))
    return paths.pop() if len(paths) == 1 and in_order else None
