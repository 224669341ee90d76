"""The global table of a tomogram set, one row a tomogram (spec 1.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.columns import numbers, report_missing_columns, report_rows, texts
from relion_pseudosubtomo.io.names import find_duplicates, report_unsafe_names
from relion_pseudosubtomo.io.star import StarFile, StarTable

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: What RELION takes for a tomogram size that it is not given.
MISSING_SIZE = -999.0

_TABLE_NAME = "global"
#: That of particles, which have tomograms' names too: the wrong file was given.
_OTHER_TABLE_NAME = "particles"

#: Deformation models by their name in lower case.
_DEFORMATION_KINDS = {"linear": "linear", "spline": "spline", "fourier": "Fourier"}

#: Nodes that the grid of the spline model needs along x and y.
_LEAST_SPLINE_GRID = 2


@dataclass(frozen=True)
class GlobalTable:
    """The values of the global table that the program uses, one a tomogram in file order.

    Numbers are NaN, and texts None, where a value is absent and has no default. Attributes are
    named as those of `model.Tomogram`; the others are `rlnTomoTiltSeriesName` (stack),
    `rlnTomoTiltSeriesStarFile` (tilt_file), `rlnTomoFrameCount`, `rlnTomoZRot`, the deformation
    model with its grid, and the reconstructed volume with its two halves.
    """

    table: StarTable
    names: list[str]
    is_wanted: Flags
    size_xyz: Floats
    pixel_size: Floats
    hand: Floats
    voltage: Floats
    spherical_aberration: Floats
    amplitude_contrast: Floats
    defocus_slope: Floats
    bfactor_per_dose: Floats
    optics_group_name: list[str | None]
    stack: list[str | None]
    tilt_file: list[str | None]
    frame_count: Floats
    z_rot: Floats | None
    deformation_kind: list[str | None]
    deformation_grid_xy: NDArray[np.int64]


def read_global_table(
    star: StarFile, wanted: set[str] | None, findings: Findings, *, warn_of_odd_sizes: bool = True
) -> GlobalTable | None:
    """Read and check the values of the wanted tomograms.

    Parameters
    ----------
    star : StarFile
        The tomogram set.
    wanted : set of str or None
        Names of the tomograms whose values are checked; None for all.
    findings : Findings
        Gets everything that is wrong or doubtful.
    warn_of_odd_sizes : bool
        Whether odd sizes put anything off (not with `--exact_centre`).

    Returns
    -------
    GlobalTable or None
        None where there are no names.
    """
    table = _find_table(star, findings)
    if table is None:
        return None
    names = [name or "" for name in texts(table, labels.TOMO_NAME)]
    _check_names(table, names, findings)
    rows = np.array([wanted is None or name in wanted for name in names], dtype=bool)

    def read(label: str, default: float | None = None) -> Floats:
        return numbers(table, label, findings, default=default, rows=rows)

    values = GlobalTable(
        table=table,
        names=names,
        is_wanted=rows,
        size_xyz=np.stack([read(label, MISSING_SIZE) for label in labels.TOMO_SIZE_XYZ], axis=1),
        pixel_size=read(labels.TILT_SERIES_PIXEL_SIZE),
        hand=read(labels.HAND),
        voltage=read(labels.VOLTAGE),
        spherical_aberration=read(labels.SPHERICAL_ABERRATION),
        amplitude_contrast=read(labels.AMPLITUDE_CONTRAST),
        defocus_slope=read(labels.DEFOCUS_SLOPE, 1.0),
        bfactor_per_dose=read(labels.BFACTOR_PER_DOSE, 0.0),
        optics_group_name=texts(table, labels.OPTICS_GROUP_NAME),
        stack=texts(table, labels.TILT_SERIES_NAME),
        tilt_file=texts(table, labels.TILT_SERIES_STAR_FILE),
        frame_count=read(labels.FRAME_COUNT, np.nan),
        z_rot=read(labels.Z_ROT) if labels.Z_ROT in table.columns else None,
        deformation_kind=_read_deformation_kinds(table, rows, findings),
        deformation_grid_xy=_read_deformation_grids(table, rows, findings),
    )
    _check_ranges(values, findings)
    _warn_of_sizes(values, findings, warn_of_odd_sizes)
    return values


def _find_table(star: StarFile, findings: Findings) -> StarTable | None:
    table = star.tables.get(_TABLE_NAME)
    if table is None:
        with_names = [t for t in star.tables.values() if labels.TOMO_NAME in t.columns]
        if len(with_names) != 1 or with_names[0].name == _OTHER_TABLE_NAME:
            findings.error(
                "missing-table",
                "no table of tomograms",
                file=star.path,
                expected=f"a table data_{_TABLE_NAME}",
                found=f"tables {list_first(name or '(unnamed)' for name in star.tables)}",
            )
            return None
        table = with_names[0]
        findings.warning(
            "table-name",
            "name of the table of tomograms",
            file=star.path,
            expected=f"data_{_TABLE_NAME}",
            found=f"data_{table.name}",
        )
    if labels.TOMO_NAME not in table.columns:
        report_missing_columns(table, [labels.TOMO_NAME], findings)
        return None
    if table.n_rows == 0:
        findings.error("no-tomograms", "no tomogram", file=star.path, table=table.name)
    return table


def _check_names(table: StarTable, names: list[str], findings: Findings) -> None:
    nameless = [row for row, name in enumerate(names) if not name]
    report_rows(findings, "missing-value", f"no {labels.TOMO_NAME}", table, nameless)
    repeated = find_duplicates([name for name in names if name])
    if repeated:
        findings.error(
            "duplicate-tomogram",
            "tomogram name repeated",
            file=table.path,
            table=table.name,
            found=list_first(repeated),
        )
    report_unsafe_names(table, "tomogram", names, findings)


def _read_deformation_kinds(table: StarTable, rows: Flags, findings: Findings) -> list[str | None]:
    given = texts(table, labels.DEFORMATION_TYPE)
    kinds = [_DEFORMATION_KINDS.get((text or "").lower()) for text in given]
    unknown = [row for row in np.flatnonzero(rows) if given[row] and kinds[row] is None]
    report_rows(
        findings,
        "bad-value",
        labels.DEFORMATION_TYPE,
        table,
        unknown,
        expected=", ".join(_DEFORMATION_KINDS.values()),
        found=list_first(dict.fromkeys(given[row] for row in unknown), 3),
    )
    return kinds


def _read_deformation_grids(table: StarTable, rows: Flags, findings: Findings) -> NDArray[np.int64]:
    """Return grid sizes, shape (n, 2); needed by the spline and the Fourier model."""
    kinds = [(text or "").lower() for text in texts(table, labels.DEFORMATION_TYPE)]
    needs_grid = np.array([kind in ("spline", "fourier") for kind in kinds], dtype=bool) & rows
    if not needs_grid.any():
        return np.zeros((table.n_rows, 2), dtype=np.int64)
    grid = np.stack(
        [numbers(table, label, findings, rows=needs_grid) for label in labels.DEFORMATION_GRID_XY],
        axis=1,
    )
    is_whole = (grid == np.floor(grid)).all(axis=1) & (grid >= 1).all(axis=1)
    is_enough = np.array([kind != "spline" for kind in kinds]) | (grid >= _LEAST_SPLINE_GRID).all(1)
    bad = np.flatnonzero(needs_grid & np.isfinite(grid).all(axis=1) & ~(is_whole & is_enough))
    report_rows(
        findings,
        "bad-value",
        " and ".join(labels.DEFORMATION_GRID_XY),
        table,
        bad,
        expected=f"whole numbers of 1 or more, of {_LEAST_SPLINE_GRID} or more for spline",
        found=list_first((f"{x:g} and {y:g}" for x, y in grid[bad]), 3),
    )
    return np.nan_to_num(grid, nan=1.0).clip(1).astype(np.int64)


def _check_ranges(values: GlobalTable, findings: Findings) -> None:
    """Report values that cannot be, and replace them by NaN."""
    contrast = values.amplitude_contrast
    for label, column, is_good, expected in (
        (labels.TILT_SERIES_PIXEL_SIZE, values.pixel_size, values.pixel_size > 0, "more than 0 A"),
        (labels.VOLTAGE, values.voltage, values.voltage > 0, "more than 0 kV"),
        (
            labels.AMPLITUDE_CONTRAST,
            contrast,
            (contrast >= 0) & (contrast <= 1),
            "a fraction in [0, 1]",
        ),
        (labels.HAND, values.hand, np.abs(values.hand) == 1, "1 or -1"),
    ):
        bad = np.flatnonzero(np.isfinite(column) & ~is_good & values.is_wanted)
        report_rows(
            findings,
            "bad-value",
            label,
            values.table,
            bad,
            expected=expected,
            found=list_first((f"{column[row]:g}" for row in bad), 3),
        )
        column[bad] = np.nan


def _warn_of_sizes(values: GlobalTable, findings: Findings, warn_of_odd_sizes: bool) -> None:
    sizes = values.size_xyz
    is_missing = (sizes <= 0).any(axis=1)
    is_odd = (sizes % 2 != 0).any(axis=1) & ~is_missing & np.isfinite(sizes).all(axis=1)
    for code, what, rows, expected, found in (
        (
            "missing-size",
            "no size",
            is_missing & values.is_wanted,
            "positive",
            f"none, taken as {MISSING_SIZE:g}, or a negative one, taken as it is",
        ),
        ("odd-size", "odd size", is_odd & values.is_wanted & warn_of_odd_sizes, "even", None),
    ):
        if rows.any():
            findings.warning(
                code,
                what,
                file=values.table.path,
                table=values.table.name,
                tomogram=list_first(values.names[row] for row in np.flatnonzero(rows)),
                expected=f"{expected} {', '.join(labels.TOMO_SIZE_XYZ)}",
                found=found,
            )
