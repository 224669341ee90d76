"""cryoDRGN-ET: images without CTF, and tilt tables with all alignment angles.

`cryodrgn_utils parse_relion` makes one row a tilt image of them. It needs rlnTomoXTilt, which older
projects lack, and the angles and shifts themselves, also where the project has matrices.
"""

from __future__ import annotations

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.dialects.tables import (
    PARTICLES,
    TOMOGRAMS,
    StandardTables,
    ctf_columns,
    global_columns,
    number_column,
    write_project_set,
    xyz_columns,
)
from relion_pseudosubtomo.findings import Findings, counted, list_first
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.io.particles import write_particle_file
from relion_pseudosubtomo.io.star import StarTable, write_star
from relion_pseudosubtomo.merge import output_path, text_column
from relion_pseudosubtomo.model import ParticleSet, Tomogram, TomogramSet
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import WITHOUT_CTF, JobOptions, particle_file
from relion_pseudosubtomo.plan import Plan
from relion_pseudosubtomo.positions import image_names

NAME = "cryodrgn"


def write(tables: StandardTables) -> None:
    """Write the tables of cryoDRGN; paths start in the project directory, where it is started."""
    folder, options = tables.folder(NAME), tables.options
    particles, optics = dict(tables.particles), dict(tables.optics)
    if WITHOUT_CTF in options.image_suffixes:
        paths = [output_path(options, particle_file(s, WITHOUT_CTF)) for s in tables.stems]
        particles[labels.IMAGE_NAME] = text_column(paths)
        optics[labels.CTF_PREMULTIPLIED] = text_column(["0"] * len(optics[labels.OPTICS_GROUP]))
    write_particle_file(folder / PARTICLES, tables.general, optics, particles)
    tomograms = tables.tomograms
    for tomogram in tomograms:
        path = folder / _tilt_file(tomogram)
        make_folder(path.parent)
        columns = _tilt_columns(options, tomogram)
        if not tables.has_ctf_scale(tomogram):
            del columns[labels.CTF_SCALE]  # it takes the cosine of the tilt then
        write_star(path, [StarTable(tomogram.name, columns)])
    columns = global_columns(tomograms)
    columns[labels.TILT_SERIES_STAR_FILE] = text_column(
        [tables.project_path(NAME, _tilt_file(tomogram)) for tomogram in tomograms]
    )
    write_star(folder / TOMOGRAMS, [StarTable("global", columns)])
    write_project_set(tables, NAME)


def check_offsets(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    plan: Plan,
    findings: Findings,
) -> None:
    """Add an error for offsets that are not applied.

    It subtracts them from the positions alone, as if no box was turned, and shifts no image.
    """
    if options.offsets_applied:
        return
    rows = plan.kept_rows
    moved = rows[particle_set.offset[rows].any(axis=1)]
    if len(moved):
        findings.error(
            "dialect-offsets",
            f"{counted(len(moved), 'particle')} with offsets that --for {NAME} would lose",
            file=particle_set.path,
            particle=list_first(particle_set.names[moved], 3),
            expected=f"0 in {', '.join(labels.ORIGIN_XYZ)}",
        )


def check_names(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    plan: Plan,
    findings: Findings,
) -> None:
    """Add an error for names with @: it calls images n@path, and splits that at each."""
    split = [stem for task in plan.tasks for stem in task.stems if "@" in stem]
    if split:
        findings.error(
            "dialect-name",
            f"names of images for --for {NAME}",
            file=tomogram_set.path,
            expected="no @",
            found=list_first((repr(stem) for stem in split), 3),
        )


def _tilt_file(tomogram: Tomogram) -> str:
    return f"tilt_series/{tomogram.name}.star"


def _tilt_columns(options: JobOptions, tomogram: Tomogram) -> Columns:
    shifts = geometry.alignment_shifts(
        tomogram.projections,
        tomogram.pixel_size,
        tomogram.image_size_xy,
        tomogram.size_xyz,
        real_halves=options.exact_centre,
    )
    angles = geometry.alignment_angles(tomogram.projections)
    return {
        labels.MICROGRAPH_NAME: text_column(image_names(tomogram.frames)),
        **xyz_columns((labels.X_TILT, labels.Y_TILT, labels.Z_ROT), angles),
        **xyz_columns((labels.X_SHIFT, labels.Y_SHIFT), shifts),
        **ctf_columns(tomogram),
        labels.CTF_BFACTOR: number_column(tomogram.ctf_bfactor),
        labels.PHASE_SHIFT: number_column(tomogram.phase_shift),
    }
