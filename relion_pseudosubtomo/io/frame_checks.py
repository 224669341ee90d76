"""Values of a tilt table that can be read but can hardly be right: dose, CTF, alignment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.columns import report_rows
from relion_pseudosubtomo.io.star import StarTable
from relion_pseudosubtomo.model import Tomogram

#: Defocus in Angstrom beyond which the unit or the fit is wrong: 0.1 to 20 micrometres.
_DEFOCUS_RANGE = (1_000.0, 200_000.0)

#: Matrices closer than this are those of one direction.
_SAME_DIRECTION = 1e-6


def check_frames(tomogram: Tomogram, table: StarTable, findings: Findings) -> None:
    """Check the doses, the CTF and the alignment of a tilt series.

    Parameters
    ----------
    tomogram : Tomogram
        Its values as they will be used; those that are NaN have been reported.
    table : StarTable
        The tilt table they come from.
    findings : Findings
        Gets an error for negative doses, and warnings for what looks wrong.
    """
    if tomogram.n_frames:
        _check_doses(tomogram.pre_exposure, table, findings)
        _check_ctf(tomogram, table, findings)
        _check_directions(tomogram.projections, table, findings)


def _check_doses(dose: NDArray[np.floating], table: StarTable, findings: Findings) -> None:
    negative = np.flatnonzero(dose < 0)
    report_rows(
        findings,
        "bad-value",
        labels.PRE_EXPOSURE,
        table,
        negative,
        expected="0 e/A^2 or more",
        found=list_first((f"{dose[row]:g}" for row in negative), 3),
    )
    if len(dose) == 1 or np.isnan(dose).any():  # NaN: reported already
        return
    if not dose.any():
        _warn(findings, "dose-zero", f"{labels.PRE_EXPOSURE} is 0 in all rows", table)
        return
    values, counts = np.unique(dose, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    if len(repeated):
        rows = sorted(
            int(row) + 1 for value in values[repeated] for row in np.flatnonzero(dose == value)
        )
        _warn(
            findings,
            "dose-repeated",
            f"the same {labels.PRE_EXPOSURE}",
            table,
            row=list_first(rows),
            found=list_first((f"{value:g}" for value in values[repeated]), 3),
        )


def _check_ctf(tomogram: Tomogram, table: StarTable, findings: Findings) -> None:
    if not tomogram.ctf_scale.any():
        _warn(findings, "ctf-zero", f"{labels.CTF_SCALE} is 0 in all rows", table)
    defocus = np.stack([tomogram.defocus_u, tomogram.defocus_v])
    if not defocus.any():
        what = f"{labels.DEFOCUS_U} and {labels.DEFOCUS_V} are 0 in all rows"
        _warn(findings, "ctf-zero", what, table)
        return
    low, high = _DEFOCUS_RANGE
    is_outside = ((defocus < low) | (defocus > high)).any(axis=0) & (tomogram.ctf_scale != 0)
    rows = np.flatnonzero(is_outside)
    if len(rows):
        u, v = defocus[:, rows[0]]
        _warn(
            findings,
            "defocus-range",
            f"{labels.DEFOCUS_U} or {labels.DEFOCUS_V}",
            table,
            row=list_first(rows + 1),
            expected=f"{low:g} to {high:g} A",
            found=f"{u:g} and {v:g}",
        )


def _check_directions(
    projections: NDArray[np.floating], table: StarTable, findings: Findings
) -> None:
    """Warn where all frames look along one direction: nothing was aligned, or not even tilted."""
    if len(projections) == 1 or not np.isfinite(projections).all():
        return
    if np.ptp(projections[:, :3, :3], axis=0).max() < _SAME_DIRECTION:
        what = f"{labels.Y_TILT} and the other alignment is the same in all rows"
        if labels.Y_TILT in table.columns and not projections[0, 2, :2].any():
            what = f"{labels.X_TILT} and {labels.Y_TILT} are 0 in all rows"
        _warn(findings, "alignment-zero", what, table)


def _warn(findings: Findings, code: str, what: str, table: StarTable, **place: object) -> None:
    findings.warning(code, what, file=table.path, table=table.name, **place)
