"""Optics groups of a particle set: read, or made from the tomograms (spec 1.4)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.columns import numbers, report_missing_columns, report_rows, vectors
from relion_pseudosubtomo.io.star import StarTable
from relion_pseudosubtomo.model import OpticsGroups, Tomogram, TomogramSet

Integers = NDArray[np.int64]

#: Largest difference between the optics of a group and of its tomograms.
_TOLERANCE = 1e-3

#: Label in the optics table -> attribute of a tomogram that has to agree with it.
_SHARED = {
    labels.VOLTAGE: "voltage",
    labels.SPHERICAL_ABERRATION: "spherical_aberration",
    labels.AMPLITUDE_CONTRAST: "amplitude_contrast",
    labels.TILT_SERIES_PIXEL_SIZE: "pixel_size",
}


def read_optics(table: StarTable, findings: Findings) -> OpticsGroups:
    """Return the groups of an optics table.

    Parameters
    ----------
    table : StarTable
        `data_optics`, one row or more.
    findings : Findings
        Gets errors for missing columns, repeated group numbers and malformed vectors.
    """
    group = numbers(table, labels.OPTICS_GROUP, findings)
    not_whole = np.flatnonzero(np.isfinite(group) & (group != np.floor(group)))
    report_rows(
        findings, "not-a-number", labels.OPTICS_GROUP, table, not_whole, expected="a whole number"
    )
    repeated = [int(n) for n, count in Counter(group[np.isfinite(group)]).items() if count > 1]
    if repeated:
        findings.error(
            "optics-group",
            "number of an optics group repeated",
            file=table.path,
            table=table.name,
            found=list_first(repeated),
        )
    return OpticsGroups(
        columns=table.columns,
        numbers=np.nan_to_num(group).astype(np.int64),
        pixel_size=numbers(table, labels.TILT_SERIES_PIXEL_SIZE, findings),
        even_zernike=_read_coefficients(table, labels.EVEN_ZERNIKE, findings),
        odd_zernike=_read_coefficients(table, labels.ODD_ZERNIKE, findings),
    )


def _read_coefficients(
    table: StarTable, label: str, findings: Findings
) -> tuple[NDArray[np.float64], ...]:
    return tuple(
        vectors(
            table, label, findings, is_good=lambda n: True, expected="[c0,c1,...]", required=False
        )
    )


def find_groups(
    table: StarTable, optics: OpticsGroups, rows: NDArray[np.bool_], findings: Findings
) -> tuple[Integers, NDArray[np.object_]]:
    """Match particles with optics groups by number.

    Parameters
    ----------
    table : StarTable
        The particles.
    optics : OpticsGroups
        The groups; where there is but one, particles without a number belong to it.
    rows : ndarray, shape (n,), bool
        Particles that are checked.
    findings : Findings
        Gets errors for numbers without a group.

    Returns
    -------
    row : ndarray, shape (n,), int64
        Row of each particle's group; -1 where there is none.
    column : ndarray, shape (n,), object
        rlnOpticsGroup as text.
    """
    n = table.n_rows
    if labels.OPTICS_GROUP not in table.columns:
        if len(optics.numbers) > 1:
            report_missing_columns(table, [labels.OPTICS_GROUP], findings)
        return np.zeros(n, dtype=np.int64), np.full(n, str(optics.numbers[0]), dtype=object)
    number = numbers(table, labels.OPTICS_GROUP, findings, rows=rows)
    row = np.full(n, -1, dtype=np.int64)
    for i, group in enumerate(optics.numbers):
        row[number == group] = i
    unknown = np.flatnonzero((row < 0) & np.isfinite(number) & rows)
    report_rows(
        findings,
        "optics-group",
        labels.OPTICS_GROUP,
        table,
        unknown,
        expected=f"a group of data_optics ({list_first(optics.numbers)})",
        found=list_first(dict.fromkeys(f"{number[i]:g}" for i in unknown)),
    )
    return row, table.columns[labels.OPTICS_GROUP]


def make_optics(
    tomogram_set: TomogramSet, tomogram: Integers
) -> tuple[OpticsGroups, Integers, NDArray[np.object_]]:
    """Make one group a distinct rlnOpticsGroupName, in order of appearance among particles.

    Parameters
    ----------
    tomogram_set : TomogramSet
        The tomograms.
    tomogram : ndarray, shape (n,), int64
        Place of each particle's tomogram; -1 where it has none.

    Returns
    -------
    optics : OpticsGroups
        The groups, numbered from 1.
    row : ndarray, shape (n,), int64
        Row of each particle's group; 0 for particles without a tomogram.
    column : ndarray, shape (n,), object
        rlnOpticsGroup as text.
    """
    places, first = np.unique(tomogram[tomogram >= 0], return_index=True)
    owners: dict[str, Tomogram] = {}
    row_of_tomogram = np.zeros(len(tomogram_set.tomograms), dtype=np.int64)
    for place in places[np.argsort(first)]:
        owner = tomogram_set.tomograms[place]
        owners.setdefault(owner.optics_group_name, owner)
        row_of_tomogram[place] = list(owners).index(owner.optics_group_name)
    columns = {
        label: np.array([f"{getattr(o, name):.6f}" for o in owners.values()], dtype=object)
        for label, name in _SHARED.items()
    }
    group_numbers = np.arange(1, len(owners) + 1)
    columns[labels.OPTICS_GROUP] = group_numbers.astype(str).astype(object)
    columns[labels.OPTICS_GROUP_NAME] = np.array(list(owners), dtype=object)
    none = (np.empty(0),) * len(owners)
    optics = OpticsGroups(
        columns, group_numbers, np.array([o.pixel_size for o in owners.values()]), none, none
    )
    row = np.where(tomogram >= 0, row_of_tomogram[tomogram], 0)
    return optics, row, (row + 1).astype(str).astype(object)


def check_optics(
    path: str,
    optics: OpticsGroups,
    optics_row: Integers,
    tomogram_set: TomogramSet,
    tomogram: Integers,
    findings: Findings,
) -> None:
    """Compare the optics of each group with those of the tomograms of its particles.

    Parameters
    ----------
    path : str
        The particle file.
    optics : OpticsGroups
        The groups.
    optics_row, tomogram : ndarray, shape (n,), int64
        Row of each particle's group and place of its tomogram; negative where there is none.
    tomogram_set : TomogramSet
        The tomograms.
    findings : Findings
        Gets one error `optics-disagree` a label.
    """
    is_known = (tomogram >= 0) & (optics_row >= 0)
    pairs = np.unique(np.stack([optics_row[is_known], tomogram[is_known]], axis=1), axis=0)
    for label, attribute in _SHARED.items():
        if label not in optics.columns:
            continue
        values = numbers(StarTable("optics", optics.columns, path=path), label, Findings())
        bad = []
        for row, place in pairs:
            owner = tomogram_set.tomograms[place]
            value = getattr(owner, attribute)
            if abs(values[row] - value) > _TOLERANCE:
                bad.append((optics.numbers[row], values[row], owner.name, value))
        if bad:
            number, in_group, name, in_tomogram = bad[0]
            findings.error(
                "optics-disagree",
                f"{label} of optics group {number}",
                file=path,
                tomogram=list_first(name for _, _, name, _ in bad),
                expected=f"{in_tomogram:g} as in {tomogram_set.path} for {name}",
                found=f"{in_group:g}",
            )
