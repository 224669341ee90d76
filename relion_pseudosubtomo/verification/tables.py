"""What the tables say of the images, against what these are: RELION goes by the tables alone."""

from __future__ import annotations

import numpy as np

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.columns import numbers, report_missing_columns, report_rows
from relion_pseudosubtomo.verification.results import OPTICS_DEFAULTS, Results

_SHOWN = 3


def check_tables(results: Results, findings: Findings) -> None:
    """Check that the tables name the weights, and call the images what they are.

    Parameters
    ----------
    results : Results
    findings : Findings
        Gets `missing-column` and `result-optics`.
    """
    options = results.options
    if options.is_3d and not options.no_comb:
        report_missing_columns(results.particles, [labels.CTF_IMAGE], findings)
    used = set(results.optics_row[results.optics_row >= 0].tolist())
    own = used & set(results.optics_row[results.own_rows].tolist())
    # nothing but the options tells whether stacks were multiplied by the CTF
    known = own if options.stack2d else used
    rules = (
        (labels.IMAGE_DIMENSIONALITY, (3 if options.is_3d else 2,), used),
        (labels.CTF_PREMULTIPLIED, (int(options.is_premultiplied),), known),
        (labels.CTF_PREMULTIPLIED, (0, 1), used - known),
        (labels.CTF_CORRECTED, (1,), used if options.real_subtomo else set()),
    )
    for label, expected, rows in rules:
        _check_optics(results, label, expected, sorted(rows), findings)


def _check_optics(
    results: Results, label: str, expected: tuple[int, ...], rows: list[int], findings: Findings
) -> None:
    """Check a column of data_optics in these rows; where it may be anything it has to be there."""
    optics = results.table.optics
    if optics is None:
        return
    default = OPTICS_DEFAULTS[label] if len(expected) == 1 else np.nan
    values = numbers(optics, label, Findings(), default=default)
    bad = [row for row in rows if values[row] not in expected]
    column = optics.columns.get(label)
    found = "no such column" if column is None else list_first((column[r] for r in bad), _SHOWN)
    wanted = " or ".join(map(str, expected))
    report_rows(findings, "result-optics", label, optics, bad, expected=wanted, found=found)
