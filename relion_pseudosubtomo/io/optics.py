"""Optics groups of a particle set: read, or made from the tomograms (spec 1.4)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.columns import (
    has_columns,
    numbers,
    report_missing_columns,
    report_rows,
    texts,
    vectors,
)
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

#: Copied to the output alone, so that they may be absent: CTFs are those of the tomograms.
_MAY_BE_ABSENT = (labels.VOLTAGE, labels.SPHERICAL_ABERRATION, labels.AMPLITUDE_CONTRAST)


def read_optics(table: StarTable, findings: Findings) -> OpticsGroups:
    """Return the groups of an optics table.

    Parameters
    ----------
    table : StarTable
        `data_optics`, one row or more.
    findings : Findings
        Gets errors for missing columns, repeated group numbers, values that are no finite numbers
        and malformed vectors.
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
    for label in _MAY_BE_ABSENT:
        numbers(table, label, findings, default=np.nan)
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


def fill_optics(
    optics: StarTable,
    particles: StarTable,
    tomogram_set: TomogramSet,
    tomogram: Integers,
    findings: Findings,
) -> tuple[StarTable, StarTable]:
    """Fill what an optics table, or the particles' group numbers, lack and the tomograms have.

    Parameters
    ----------
    optics, particles : StarTable
        `data_optics` with its rows, and the particles.
    tomogram_set : TomogramSet
        The tomograms.
    tomogram : ndarray, shape (n,), int64
        Place of each particle's tomogram; -1 where it has none.
    findings : Findings
        Gets a warning `optics-filled` for each column that was filled.

    Returns
    -------
    optics, particles : StarTable
        The same tables, or copies with more values.
    """
    particles = _fill_group_numbers(optics, particles, tomogram_set, tomogram, findings)
    owners = _find_owners(optics, particles, tomogram_set, tomogram)
    columns = dict(optics.columns)
    for label, attribute in {**_SHARED, labels.OPTICS_GROUP_NAME: "optics_group_name"}.items():
        column = texts(optics, label)
        filled = [
            _as_text(getattr(owner, attribute)) if value is None and owner is not None else value
            for value, owner in zip(column, owners, strict=True)
        ]
        rows = [i for i, pair in enumerate(zip(column, filled, strict=True)) if len(set(pair)) > 1]
        if not rows:
            continue
        columns[label] = np.array([value or "None" for value in filled], dtype=object)
        findings.warning(
            "optics-filled",
            f"no {label}",
            file=optics.path,
            table=optics.name,
            row=list_first(row + 1 for row in rows),
            found=f"{list_first(dict.fromkeys(filled[row] for row in rows), 3)} in "
            f"{tomogram_set.path}, filled in",
        )
    return replace(optics, columns=columns), particles


def _as_text(value: str | float) -> str | None:
    """Return a tomogram's value as it stands in an optics table; None where it has none."""
    if isinstance(value, str):
        return value
    return f"{value:.6f}" if np.isfinite(value) else None


def _fill_group_numbers(
    optics: StarTable,
    particles: StarTable,
    tomogram_set: TomogramSet,
    tomogram: Integers,
    findings: Findings,
) -> StarTable:
    """Give particles without rlnOpticsGroup the group of their tomogram's rlnOpticsGroupName."""
    needed = (labels.OPTICS_GROUP, labels.OPTICS_GROUP_NAME)
    if labels.OPTICS_GROUP in particles.columns or optics.n_rows == 1:
        return particles
    if not has_columns(optics, needed):
        return particles
    number_of = dict(zip(*(optics.columns[label] for label in reversed(needed)), strict=True))
    names = [tomogram_set.tomograms[t].optics_group_name if t >= 0 else "" for t in tomogram]
    unknown = next(iter(number_of.values()))
    if len(number_of) < optics.n_rows or not set(names) - {""} <= set(number_of):
        return particles
    column = np.array([number_of.get(name, unknown) for name in names], dtype=object)
    findings.warning(
        "optics-filled",
        f"no {labels.OPTICS_GROUP}",
        file=particles.path,
        table=particles.name,
        found=f"the groups by {labels.OPTICS_GROUP_NAME} in {tomogram_set.path}, filled in",
    )
    return replace(particles, columns={**particles.columns, labels.OPTICS_GROUP: column})


def _find_owners(
    optics: StarTable, particles: StarTable, tomogram_set: TomogramSet, tomogram: Integers
) -> list[Tomogram | None]:
    """Return the tomogram of the first particle of each group; for groups without one any."""
    known = np.flatnonzero(tomogram >= 0)
    if len(known) == 0:
        return [None] * optics.n_rows
    # by number: other programs write 1.0 for 1; what is no number is told when groups are found
    groups, of_particles = (
        numbers(table, labels.OPTICS_GROUP, Findings(), default=0.0)
        for table in (optics, particles)
    )
    values, first = np.unique(of_particles[known], return_index=True)
    row_of = dict(zip(values.tolist(), known[first].tolist(), strict=True))
    rows = [row_of.get(number, known[0]) for number in groups.tolist()]
    return [tomogram_set.tomograms[tomogram[row]] for row in rows]


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
    particles: StarTable, tomogram_set: TomogramSet, tomogram: Integers
) -> tuple[OpticsGroups, Integers, NDArray[np.object_]]:
    """Make one group a distinct rlnOpticsGroupName of the tomograms with wanted particles.

    Parameters
    ----------
    particles : StarTable
        The particles: groups are numbered by their appearance among all of them, so that
        `--only_tomogram` does not change a group's number.
    tomogram_set : TomogramSet
        The tomograms.
    tomogram : ndarray, shape (n,), int64
        Place of each particle's tomogram; -1 where it has none, or is not wanted.

    Returns
    -------
    optics : OpticsGroups
        The groups, in order of appearance; numbers count from 1.
    row : ndarray, shape (n,), int64
        Row of each particle's group; 0 for particles without a tomogram.
    column : ndarray, shape (n,), object
        rlnOpticsGroup as text.
    """
    number_of = _number_groups(particles, tomogram_set)
    owners: dict[str, Tomogram] = {}
    row_of_tomogram = np.zeros(len(tomogram_set.tomograms), dtype=np.int64)
    for place in _in_order_of_appearance(tomogram):
        owner = tomogram_set.tomograms[place]
        owners.setdefault(owner.optics_group_name, owner)
        row_of_tomogram[place] = list(owners).index(owner.optics_group_name)
    columns = {
        label: np.array([f"{getattr(o, name):.6f}" for o in owners.values()], dtype=object)
        for label, name in _SHARED.items()
    }
    group_numbers = np.array([number_of[name] for name in owners])
    columns[labels.OPTICS_GROUP] = group_numbers.astype(str).astype(object)
    columns[labels.OPTICS_GROUP_NAME] = np.array(list(owners), dtype=object)
    none = (np.empty(0),) * len(owners)
    optics = OpticsGroups(
        columns, group_numbers, np.array([o.pixel_size for o in owners.values()]), none, none
    )
    row = np.where(tomogram >= 0, row_of_tomogram[tomogram], 0)
    return optics, row, group_numbers[row].astype(str).astype(object)


def _number_groups(particles: StarTable, tomogram_set: TomogramSet) -> dict[str, int]:
    """Return a number for each group name of the particles' tomograms, from 1 on."""
    index = tomogram_set.index_by_name()
    owners = (index.get(name) for name in dict.fromkeys(particles.columns[labels.TOMO_NAME]))
    tomograms = (tomogram_set.tomograms[place] for place in owners if place is not None)
    names = dict.fromkeys(tomogram.optics_group_name for tomogram in tomograms)
    return {name: number for number, name in enumerate(names, 1)}


def _in_order_of_appearance(tomogram: Integers) -> Integers:
    """Return each place of a tomogram that has particles once."""
    places, first = np.unique(tomogram[tomogram >= 0], return_index=True)
    return places[np.argsort(first)]


def check_made_optics(tomogram_set: TomogramSet, tomogram: Integers, findings: Findings) -> None:
    """Check that the tomograms of each rlnOpticsGroupName can be one group.

    Parameters
    ----------
    tomogram_set : TomogramSet
        The tomograms, of which the groups were made.
    tomogram : ndarray, shape (n,), int64
        Place of each particle's tomogram; -1 where it has none.
    findings : Findings
        Gets one error `optics-mixed` a group and label.
    """
    groups: defaultdict[str, list[Tomogram]] = defaultdict(list)
    for place in _in_order_of_appearance(tomogram):
        owner = tomogram_set.tomograms[place]
        groups[owner.optics_group_name].append(owner)
    for group, owners in groups.items():
        for label, attribute in _SHARED.items():
            values = np.array([getattr(owner, attribute) for owner in owners])
            if not (np.abs(values - values[0]) > _TOLERANCE).any():
                continue
            names: defaultdict[str, list[str]] = defaultdict(list)
            for owner, value in zip(owners, values, strict=True):
                names[f"{value:g}"].append(owner.name)
            findings.error(
                "optics-mixed",
                f"{label} of {labels.OPTICS_GROUP_NAME} {group}",
                file=tomogram_set.path,
                expected="one value",
                found="; ".join(f"{value} for {list_first(of, 3)}" for value, of in names.items()),
            )


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
    n_tomograms = len(tomogram_set.tomograms)
    # one number a pair: rows of two take twenty times as long to sort
    pairs = np.unique(optics_row[is_known] * n_tomograms + tomogram[is_known])
    for label, attribute in _SHARED.items():
        if label not in optics.columns:
            continue
        table = StarTable("optics", optics.columns, path=path)
        values = numbers(table, label, Findings())  # read_optics has said what is no number
        bad = []
        for row, place in zip(*divmod(pairs, n_tomograms), strict=True):
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
