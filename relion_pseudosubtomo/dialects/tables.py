"""What all dialects are made from, and the tables that several of them share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.io.optimisation_set import OPTIMISATION_SET, write_optimisation_set
from relion_pseudosubtomo.merge import output_path, text_column
from relion_pseudosubtomo.model import OptimisationSet, ParticleSet, Tomogram, TomogramSet
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import DIALECT_FOLDERS, JobOptions
from relion_pseudosubtomo.plan import Plan

Floats = NDArray[np.floating]

#: Files in the folder of every dialect.
PARTICLES, TOMOGRAMS = "particles.star", "tomograms.star"

#: Largest element by which a rotation times its transpose may differ from the identity.
_NOT_A_ROTATION = 1e-3


@dataclass(frozen=True)
class StandardTables:
    """The tables of the standard output, and what they were made from.

    Attributes
    ----------
    options : JobOptions
    particle_set : ParticleSet
        The input.
    tomogram_set : TomogramSet
    plan : Plan
    optimisation_set : OptimisationSet
    general : dict of str to str
    optics, particles : Columns
        `data_general`, `data_optics` and `data_particles` of particles.star.
    """

    options: JobOptions
    particle_set: ParticleSet
    tomogram_set: TomogramSet
    plan: Plan
    optimisation_set: OptimisationSet
    general: dict[str, str]
    optics: Columns
    particles: Columns

    @property
    def tomograms(self) -> list[Tomogram]:
        """Tomograms that keep particles, in the order of the set."""
        return kept_tomograms(self.tomogram_set, self.plan)

    @property
    def stems(self) -> list[str]:
        """Path without suffix of each particle, inside the output directory."""
        return [stem for task in self.plan.tasks for stem in task.stems]

    def has_ctf_scale(self, tomogram: Tomogram) -> bool:
        """Return whether the input tells the CTF scales of a tomogram, which are 1 else."""
        return tomogram.name not in self.tomogram_set.without_ctf_scale

    def folder(self, dialect: str) -> Path:
        """Return the folder of a dialect, which is there then."""
        folder = Path(self.options.output, DIALECT_FOLDERS[dialect])
        make_folder(folder)
        return folder

    def project_path(self, dialect: str, name: str) -> str:
        """Return the path of a dialect's file, which starts as the user gave `--o`."""
        return output_path(self.options, f"{DIALECT_FOLDERS[dialect]}/{name}")


def write_project_set(tables: StandardTables, dialect: str) -> None:
    """Write an optimisation set as RELION's, with paths from the project directory."""
    files = replace(
        tables.optimisation_set,
        particles=tables.project_path(dialect, PARTICLES),
        tomograms=tables.project_path(dialect, TOMOGRAMS),
    )
    write_optimisation_set(tables.folder(dialect) / OPTIMISATION_SET, files)


def kept_tomograms(tomogram_set: TomogramSet, plan: Plan) -> list[Tomogram]:
    """Return the tomograms that keep particles, in the order of the set."""
    return [tomogram_set.tomograms[task.tomogram] for task in plan.tasks]


def xyz_columns(names: tuple[str, ...], values: Floats) -> Columns:
    """Return one column of text an axis of `values`, shape (n, len(names))."""
    return {name: number_column(values[:, axis]) for axis, name in enumerate(names)}


def number_column(values: Floats) -> NDArray[np.object_]:
    """Return numbers as text, always with decimals: readers guess the kind from the first row."""
    return text_column(values.tolist(), "{:.6f}")


def vector_column(rows: Floats, form: str) -> NDArray[np.object_]:
    """Return rows of numbers as vectors, [1,2,3]."""
    return text_column(
        ["[" + ",".join(form.format(value) for value in row) + "]" for row in rows.tolist()]
    )


def global_columns(tomograms: list[Tomogram]) -> Columns:
    """Return what all dialects' `data_global` tables say of tomograms."""

    def numbers(attribute: str) -> NDArray[np.object_]:
        return number_column(np.array([getattr(t, attribute) for t in tomograms], np.float64))

    sizes = np.array([tomogram.size_xyz for tomogram in tomograms])
    columns: Columns = {labels.TOMO_NAME: text_column([t.name for t in tomograms])}
    columns[labels.FRAME_COUNT] = text_column([t.n_frames for t in tomograms])
    for axis, label in enumerate(labels.TOMO_SIZE_XYZ):
        columns[label] = text_column(sizes[:, axis].tolist(), "{:.0f}")
    columns[labels.HAND] = numbers("hand")
    columns[labels.OPTICS_GROUP_NAME] = text_column([t.optics_group_name for t in tomograms])
    columns[labels.TILT_SERIES_PIXEL_SIZE] = numbers("pixel_size")
    columns[labels.VOLTAGE] = numbers("voltage")
    columns[labels.SPHERICAL_ABERRATION] = numbers("spherical_aberration")
    columns[labels.AMPLITUDE_CONTRAST] = numbers("amplitude_contrast")
    return columns


def matrix_columns(projections: Floats) -> Columns:
    """Return the rows of projection matrices as columns of vectors."""
    return {
        label: vector_column(projections[:, i], "{:.10f}")
        for i, label in enumerate(labels.PROJECTION_ROWS)
    }


def ctf_columns(tomogram: Tomogram) -> Columns:
    """Return defocus, CTF scale and dose of each frame."""
    return {
        labels.DEFOCUS_U: number_column(tomogram.defocus_u),
        labels.DEFOCUS_V: number_column(tomogram.defocus_v),
        labels.DEFOCUS_ANGLE: number_column(tomogram.defocus_angle),
        labels.CTF_SCALE: number_column(tomogram.ctf_scale),
        labels.PRE_EXPOSURE: number_column(tomogram.pre_exposure),
    }


def check_rotations(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    plan: Plan,
    findings: Findings,
) -> None:
    """Add an error for projections that turn and scale, or mirror: angles cannot express them."""
    wrong = []
    for tomogram in kept_tomograms(tomogram_set, plan):
        a = tomogram.projections[:, :3, :3]
        product = a @ a.transpose(0, 2, 1)
        is_rotation = np.abs(product - np.eye(3)).max() < _NOT_A_ROTATION
        if not is_rotation or np.linalg.det(a).min() < 0:
            wrong.append(tomogram.name)
    if wrong:
        findings.error(
            "dialect-rotation",
            f"projection matrices for --for {' and '.join(options.dialects)}",
            file=tomogram_set.path,
            tomogram=list_first(wrong),
            expected="rotations and shifts alone",
            found="matrices that scale, shear or mirror",
        )


def check_ctf(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    plan: Plan,
    findings: Findings,
) -> None:
    """Warn of what is in the CTF that the programs which read stacks do not know."""
    kept = kept_tomograms(tomogram_set, plan)
    aberrated = [bool(values.any()) for values in particle_set.optics.even_zernike]
    is_aberrated = np.isin(particle_set.optics_row[plan.kept_rows], np.flatnonzero(aberrated))
    owners = set(particle_set.tomogram[plan.kept_rows[is_aberrated]].tolist())
    unknown = {
        (labels.PHASE_SHIFT, 0): [t.name for t in kept if t.phase_shift.any()],
        (labels.DEFOCUS_SLOPE, 1): [t.name for t in kept if t.defocus_slope != 1],
        (labels.CTF_BFACTOR, 0): [t.name for t in kept if t.ctf_bfactor.any()],
        (labels.BFACTOR_PER_DOSE, 0): [t.name for t in kept if t.bfactor_per_dose != 0],
        (labels.EVEN_ZERNIKE, 0): [tomogram_set.tomograms[i].name for i in sorted(owners)],
    }
    for (label, taken), names in unknown.items():
        if names:
            findings.warning(
                "dialect-ctf",
                f"{label}, which --for {' and '.join(options.dialects)} takes for {taken}",
                file=tomogram_set.path,
                tomogram=list_first(names),
                expected=taken,
                found="other values",
            )
