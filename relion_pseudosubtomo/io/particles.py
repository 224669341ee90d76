"""Particle sets: STAR tables to a `ParticleSet`, and back (spec 1.4, 3.3)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, counted, list_first
from relion_pseudosubtomo.io.columns import (
    has_columns,
    is_absent,
    numbers,
    report_missing_columns,
    report_rows,
    texts,
    triples,
)
from relion_pseudosubtomo.io.names import find_duplicates, make_unique, report_unsafe_names
from relion_pseudosubtomo.io.optics import (
    check_made_optics,
    check_optics,
    fill_optics,
    find_groups,
    make_optics,
    read_optics,
)
from relion_pseudosubtomo.io.star import (
    StarFile,
    StarTable,
    list_table,
    read_star,
    write_star,
)
from relion_pseudosubtomo.model import OpticsGroups, ParticleSet, TomogramSet
from relion_pseudosubtomo.model.particle_set import Columns

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_GENERAL = "general"
_OPTICS = "optics"
_PARTICLES = "particles"
#: That of tomograms, which has their names too: the wrong file was given.
_OTHER_TABLE_NAME = "global"


@dataclass(frozen=True)
class ParticleTable:
    """The tables of a particle file as text, before they are matched with tomograms.

    Attributes
    ----------
    path : str
        The file.
    particles : StarTable
        One row a particle, one row at least.
    general : dict of str to str
        `data_general`; empty where there is none.
    optics : StarTable or None
        `data_optics`, where it has rows.
    """

    path: str
    particles: StarTable
    general: dict[str, str]
    optics: StarTable | None

    def tomogram_names(self) -> set[str] | None:
        """Return the names of all tomograms that particles belong to; None without the column."""
        if labels.TOMO_NAME not in self.particles.columns:
            return None
        return set(self.particles.columns[labels.TOMO_NAME])


def read_particle_table(path: str, findings: Findings) -> ParticleTable | None:
    """Read the tables of a particle file.

    Parameters
    ----------
    path : str
        The STAR file.
    findings : Findings
        Gets an error where there are no particles, and a warning for a table of another name.

    Returns
    -------
    ParticleTable or None
        None where there is no table of particles.
    """
    star = read_star(path, findings)
    particles = None if star is None else _find_particles(star, findings)
    if star is None or particles is None:
        return None
    if particles.n_rows == 0:
        findings.error("no-particles", "no particles", file=path, table=particles.name)
        return None
    general, optics = star.tables.get(_GENERAL), star.tables.get(_OPTICS)
    return ParticleTable(
        path,
        particles,
        general.first_row() if general is not None else {},
        optics if optics is not None and optics.n_rows else None,
    )


def _find_particles(star: StarFile, findings: Findings) -> StarTable | None:
    if _PARTICLES in star.tables:
        return star.tables[_PARTICLES]
    with_names = [t for t in star.tables.values() if labels.TOMO_NAME in t.columns]
    if len(with_names) != 1 or with_names[0].name == _OTHER_TABLE_NAME:
        names = list_first(name or "(unnamed)" for name in star.tables)
        findings.error(
            "missing-table",
            "no table of particles",
            file=star.path,
            expected=f"a table data_{_PARTICLES}",
            found=f"tables {names}",
        )
        return None
    findings.warning(
        "table-name",
        "name of the table of particles",
        file=star.path,
        expected=f"data_{_PARTICLES}",
        found=f"data_{with_names[0].name}",
    )
    return with_names[0]


def make_particle_set(
    table: ParticleTable,
    tomogram_set: TomogramSet | None,
    findings: Findings,
    *,
    only_tomogram: str | None = None,
    rename_duplicates: bool = False,
) -> ParticleSet | None:
    """Match particles with their tomograms and optics groups.

    Parameters
    ----------
    table : ParticleTable
        What was read of the particle file.
    tomogram_set : TomogramSet or None
        The tomograms; with None only what stands in the file itself is checked.
    findings : Findings
        Gets everything that is wrong or doubtful.
    only_tomogram : str, optional
        Leave the particles of all other tomograms without one.
    rename_duplicates : bool
        Give particles of one name names of their own, and say so; else they are an error.

    Returns
    -------
    ParticleSet or None
        None without tomograms. Values that are wrong are NaN in it, and errors among the findings.
    """
    particles = table.particles
    tomogram = _find_tomograms(particles, tomogram_set, only_tomogram, findings)
    rows = np.ones(particles.n_rows, dtype=bool) if tomogram_set is None else tomogram >= 0
    former = _read_names(particles, findings)
    names = _name_apart(particles, former, findings, rename=rename_duplicates)
    coordinate = _read_coordinates(particles, tomogram_set, tomogram, rows, findings)
    offset = triples(particles, labels.ORIGIN_XYZ, findings, default=0.0, rows=rows)
    box = triples(particles, labels.SUBTOMOGRAM_ANGLES, findings, default=0.0, rows=rows)
    angles = triples(particles, labels.ANGLES, findings, default=0.0, rows=rows)
    groups = _read_groups(table, tomogram_set, tomogram, rows, findings)
    if groups is None:
        return None
    optics, optics_row, group_column = groups
    columns = dict(particles.columns)
    columns[labels.PARTICLE_NAME] = names
    columns[labels.OPTICS_GROUP] = group_column
    return ParticleSet(
        path=table.path,
        columns=columns,
        general=table.general,
        optics=optics,
        tomogram=tomogram,
        names=names,
        coordinate=coordinate,
        offset=offset,
        subtomogram_angles=box,
        angles=angles,
        optics_row=optics_row,
        half=find_halves(particles, findings),
        first_name=str(names[0]),
        former_names=None if names is former else former,
    )


def _find_tomograms(
    table: StarTable,
    tomogram_set: TomogramSet | None,
    only_tomogram: str | None,
    findings: Findings,
) -> Integers:
    """Return the place of each particle's tomogram, -1 where it is unknown or not wanted."""
    if labels.TOMO_NAME not in table.columns:
        report_missing_columns(table, [labels.TOMO_NAME], findings)
        return np.full(table.n_rows, -1, dtype=np.int64)
    owners = table.columns[labels.TOMO_NAME]
    report_unsafe_names(table, "tomogram", list(dict.fromkeys(owners)), findings)
    if tomogram_set is None:
        return np.full(table.n_rows, -1, dtype=np.int64)
    index = tomogram_set.index_by_name()
    tomogram = np.array([index.get(name, -1) for name in owners], dtype=np.int64)
    if only_tomogram is not None:
        tomogram[tomogram != index.get(only_tomogram, -1)] = -1
    else:
        _warn_of_strangers(table, tomogram_set, tomogram, findings)
    if (tomogram < 0).all():
        findings.error(
            "no-particles",
            "no particle belongs to a tomogram",
            file=table.path,
            table=table.name,
            expected=f"{labels.TOMO_NAME} as in {tomogram_set.path} "
            f"({list_first([only_tomogram] if only_tomogram else index, 3)})",
            found=list_first(dict.fromkeys(owners), 3),
        )
    return tomogram


def _warn_of_strangers(
    table: StarTable, tomogram_set: TomogramSet, tomogram: Integers, findings: Findings
) -> None:
    """Warn of particles without a tomogram, and of tomograms without a particle."""
    unknown = Counter(table.columns[labels.TOMO_NAME][tomogram < 0])
    if unknown and (tomogram >= 0).any():
        findings.warning(
            "unknown-tomogram",
            f"{counted(unknown.total(), 'particle')} of unknown tomograms",
            file=table.path,
            table=table.name,
            expected=f"{labels.TOMO_NAME} as in {tomogram_set.path}",
            found=list_first(unknown),
        )
    has_particles = np.zeros(len(tomogram_set.tomograms), dtype=bool)
    has_particles[tomogram[tomogram >= 0]] = True
    if has_particles.any() and not has_particles.all():
        without = [tomogram_set.tomograms[i].name for i in np.flatnonzero(~has_particles)]
        findings.warning(
            "unused-tomogram",
            f"{counted(len(without), 'tomogram')} without particles",
            file=tomogram_set.path,
            found=list_first(without),
        )


def _read_names(table: StarTable, findings: Findings) -> NDArray[np.object_]:
    """Return the particle names; where there are none, numbers within each tomogram."""
    if labels.PARTICLE_NAME not in table.columns:
        return _make_names(table)
    names = table.columns[labels.PARTICLE_NAME]
    given = texts(table, labels.PARTICLE_NAME)
    absent = [row for row, name in enumerate(given) if name is None]
    report_rows(findings, "missing-value", f"no {labels.PARTICLE_NAME}", table, absent)
    report_unsafe_names(table, "particle", [name for name in given if name is not None], findings)
    return names


def _name_apart(
    table: StarTable, names: NDArray[np.object_], findings: Findings, *, rename: bool
) -> NDArray[np.object_]:
    """Return the names, those that come again renamed where that is wanted, else reported."""
    present = [name for name in names if not is_absent(name)]
    repeated = find_duplicates(present)
    if not repeated:
        return names
    where = {"file": table.path, "table": table.name, "found": list_first(repeated)}
    if not rename:
        findings.error(
            "duplicate-particle",
            f"{counted(len(repeated), 'particle name')} repeated",
            expected=f"unique {labels.PARTICLE_NAME}",
            **where,
        )
        return names
    unique = np.array(make_unique(names.tolist()), dtype=object)
    n_renamed = int(np.count_nonzero(unique != names))
    findings.warning("renamed-particle", f"{counted(n_renamed, 'particle')} renamed", **where)
    return unique


def _make_names(table: StarTable) -> NDArray[np.object_]:
    counts: Counter[str] = Counter()
    names = np.empty(table.n_rows, dtype=object)
    for row, owner in enumerate(table.columns.get(labels.TOMO_NAME, ())):
        counts[owner] += 1
        names[row] = f"{owner}/{counts[owner]}"
    return names


def _read_coordinates(
    table: StarTable,
    tomogram_set: TomogramSet | None,
    tomogram: Integers,
    rows: Flags,
    findings: Findings,
) -> Floats:
    """Return positions in pixels from the tomogram's corner; centred coordinates win."""
    is_centred = has_columns(table, labels.CENTERED_COORDINATE_XYZ)
    if not is_centred and not has_columns(table, labels.COORDINATE_XYZ):
        findings.error(
            "missing-column",
            "no coordinates",
            file=table.path,
            table=table.name,
            expected=f"{', '.join(labels.CENTERED_COORDINATE_XYZ)}, "
            f"or {', '.join(labels.COORDINATE_XYZ)}",
        )
        return np.full((table.n_rows, 3), np.nan)
    which = labels.CENTERED_COORDINATE_XYZ if is_centred else labels.COORDINATE_XYZ
    values = triples(table, which, findings, rows=rows)
    if not is_centred or tomogram_set is None or not tomogram_set.tomograms:
        return values
    pixel_size = np.array([t.pixel_size for t in tomogram_set.tomograms])
    half = np.array([t.size_xyz for t in tomogram_set.tomograms]) / 2
    positions = values / pixel_size[tomogram][:, None] + half[tomogram]
    positions[tomogram < 0] = np.nan
    return positions


def _read_groups(
    table: ParticleTable,
    tomogram_set: TomogramSet | None,
    tomogram: Integers,
    rows: Flags,
    findings: Findings,
) -> tuple[OpticsGroups, Integers, NDArray[np.object_]] | None:
    """Return the optics groups, the row of each particle's, and rlnOpticsGroup as text."""
    if table.optics is not None:
        given, particles = table.optics, table.particles
        if tomogram_set is not None:
            given, particles = fill_optics(given, particles, tomogram_set, tomogram, findings)
        optics = read_optics(given, findings)
        row, column = find_groups(particles, optics, rows, findings)
        if tomogram_set is None:
            return None
        check_optics(table.path, optics, row, tomogram_set, tomogram, findings)
    elif tomogram_set is not None and (tomogram >= 0).any():
        optics, row, column = make_optics(table.particles, tomogram_set, tomogram)
        check_made_optics(tomogram_set, tomogram, findings)
    else:
        return None
    return optics, row, column


def find_halves(table: StarTable, findings: Findings) -> Integers:
    """Return the half set, 0 or 1, of each particle.

    By rlnRandomSubset where that divides all particles into sets 1 and 2, else rows in turn; a
    warning where some have other values (0 in all rows stands for no half sets).
    """
    subset = numbers(table, labels.RANDOM_SUBSET, Findings(), default=0.0)
    first, second = subset == 1, subset == 2
    wrong = np.flatnonzero(~(first | second))
    if subset.any() and len(wrong):
        given = table.columns[labels.RANDOM_SUBSET]
        findings.warning(
            "half-sets",
            f"{labels.RANDOM_SUBSET} of {counted(len(wrong), 'particle')}",
            file=table.path,
            table=table.name,
            row=list_first(wrong + 1, 3),
            expected="1 or 2",
            found=list_first(map(repr, dict.fromkeys(given[wrong])), 3),
        )
    if not len(wrong) and first.any() and second.any():
        return subset.astype(np.int64) - 1
    return np.arange(table.n_rows) % 2


def write_particle_file(
    path: str | os.PathLike[str], general: dict[str, str], optics: Columns, particles: Columns
) -> None:
    """Write a particle file: `data_general`, `data_optics`, `data_particles` (spec 3.3).

    Parameters
    ----------
    path : str or path-like
        The STAR file.
    general : dict of str to str
        Label -> text.
    optics, particles : Columns
        Label -> text of every row.

    Raises
    ------
    OutputError
        Where the file cannot be written.
    """
    write_star(
        path,
        [
            list_table(_GENERAL, general),
            StarTable(_OPTICS, optics),
            StarTable(_PARTICLES, particles),
        ],
    )
