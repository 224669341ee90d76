"""The numbers of one tilt table: alignment, CTF, dose and deformation of each frame (spec 1.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core.geometry import projection_matrices
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.columns import has_columns, numbers, vectors
from relion_pseudosubtomo.io.star import StarTable
from relion_pseudosubtomo.model import Deformation

Floats = NDArray[np.float64]

_LINEAR_VALUES = 3
_SPLINE_VALUES_PER_NODE = 8
_FOURIER_VALUES_PER_FREQUENCY = 4


def read_projections(
    table: StarTable,
    z_rot: float | None,
    pixel_size: float,
    image_size_xy: tuple[int, int],
    size_xyz: Floats,
    findings: Findings,
    *,
    real_halves: bool = False,
) -> Floats:
    """Return the projection matrices of all frames, shape (n_frames, 4, 4) (spec 2.1).

    Matrices in the table win over alignment angles and shifts.

    Parameters
    ----------
    table : StarTable
        The tilt table.
    z_rot : float or None
        rlnTomoZRot of the global table, for a tilt table without it.
    pixel_size, image_size_xy, size_xyz, real_halves
        As `core.geometry.projection_matrices`.
    findings : Findings
        Gets an error for each value that is missing or wrong.
    """
    if has_matrices(table):
        return _read_matrices(table, findings)
    alignment = (labels.Y_TILT, labels.Z_ROT, labels.X_SHIFT, labels.Y_SHIFT)
    missing = [label for label in alignment if label not in table.columns]
    if missing == list(alignment):
        findings.error(
            "missing-column",
            "no alignment",
            file=table.path,
            table=table.name,
            expected=f"{', '.join(alignment)}, or {', '.join(labels.PROJECTION_ROWS)}",
        )
        return np.full((table.n_rows, 4, 4), np.nan, dtype=np.float64)
    shifts = [numbers(table, label, findings) for label in (labels.X_SHIFT, labels.Y_SHIFT)]
    matrices = projection_matrices(
        numbers(table, labels.X_TILT, findings, default=0.0),
        numbers(table, labels.Y_TILT, findings),
        numbers(table, labels.Z_ROT, findings, default=z_rot),
        np.stack(shifts, axis=1),
        pixel_size,
        image_size_xy,
        size_xyz,
        real_halves=real_halves,
    )
    return np.asarray(matrices, dtype=np.float64)


def has_matrices(table: StarTable) -> bool:
    """Return whether a tilt table has projection matrices; the last row is known without it."""
    return has_columns(table, labels.PROJECTION_ROWS[:3])


def _read_matrices(table: StarTable, findings: Findings) -> Floats:
    matrices = np.zeros((table.n_rows, 4, 4))
    matrices[:, 3, 3] = 1.0
    for i, label in enumerate(labels.PROJECTION_ROWS):
        if label not in table.columns:
            continue
        rows = vectors(table, label, findings, is_good=lambda n: n == 4, expected="4 values")
        if rows and all(len(row) == 4 for row in rows):
            matrices[:, i] = rows
    return matrices


def read_deformation(
    table: StarTable, kind: str, grid_xy: tuple[int, int], findings: Findings
) -> Deformation | None:
    """Return the 2D deformation model of a tilt series (spec 2.2).

    Parameters
    ----------
    table : StarTable
        The tilt table.
    kind : str
        One of the values of `DEFORMATION_KINDS`.
    grid_xy : tuple of int
        Grid size.
    findings : Findings
        Gets an error for vectors that are missing or have another number of values.
    """
    n_expected = count_coefficients(kind, grid_xy)
    is_fourier = kind == "Fourier"
    rows = vectors(
        table,
        labels.DEFORMATION_COEFFICIENTS,
        findings,
        is_good=lambda n: n >= n_expected if is_fourier else n == n_expected,
        expected=f"{n_expected} values{' or more' if is_fourier else ''} ({kind} deformation)",
    )
    if any(len(row) < n_expected for row in rows):
        return None
    return Deformation(kind, grid_xy, np.array([row[:n_expected] for row in rows]))


def count_coefficients(kind: str, grid_xy: tuple[int, int]) -> int:
    """Return how many coefficients a frame of a deformation model needs (spec 2.2)."""
    grid_x, grid_y = grid_xy
    if kind == "linear":
        return _LINEAR_VALUES
    if kind == "spline":
        return _SPLINE_VALUES_PER_NODE * grid_x * grid_y
    half_x, half_y = grid_x // 2, grid_y // 2
    n_frequencies = grid_y * half_x + max(0, half_y - 1)
    return _FOURIER_VALUES_PER_FREQUENCY * n_frequencies
