"""What an output directory says about itself: its tables, and the options it was made with."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.columns import is_absent, numbers, report_missing_columns
from relion_pseudosubtomo.io.extracted import read_extracted_sets
from relion_pseudosubtomo.io.optimisation_set import (
    OPTIMISATION_SET,
    name_as_recorded,
    read_optimisation_set,
)
from relion_pseudosubtomo.io.particles import ParticleTable, read_particle_table
from relion_pseudosubtomo.io.records import FOLDER, RecordStore
from relion_pseudosubtomo.io.star import StarTable
from relion_pseudosubtomo.model import ParticleSet, TomogramSet, Trajectories
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.floating]

PARTICLES = "particles.star"

_STACK = "_stack2d.mrcs"

#: What RELION takes where data_optics has no such column.
OPTICS_DEFAULTS = {
    labels.IMAGE_DIMENSIONALITY: 2.0,
    labels.CTF_PREMULTIPLIED: 0.0,
    labels.CTF_CORRECTED: 0.0,
}

#: What data_optics says of true subtomograms; of pseudo-subtomograms it says nothing of this.
_OF_TRUE_SUBTOMOGRAMS = {
    labels.IMAGE_DIMENSIONALITY: 2,
    labels.CTF_PREMULTIPLIED: 0,
    labels.CTF_CORRECTED: 1,
}


@dataclass(frozen=True)
class Request:
    """What `verify` is asked for; None stands for what the directory itself names.

    Attributes
    ----------
    directory : str
        Output directory of an extraction.
    particles, tomograms, trajectories : str or None
        Other files than the directory's.
    max_dose : float or None
        That of the extraction, for images of which no completion record tells.
    deep, repair : bool
        Whether to read all values; whether to write particles_repaired.star.
    """

    directory: str
    particles: str | None = None
    tomograms: str | None = None
    trajectories: str | None = None
    max_dose: float | None = None
    deep: bool = False
    repair: bool = False

    @property
    def particle_file(self) -> str:
        """The particle file that is verified."""
        return self.particles or os.path.join(self.directory, PARTICLES)

    @property
    def is_own_table(self) -> bool:
        """Whether it is the one that the extraction wrote, unchanged by another program."""
        return self.particles is None


@dataclass(frozen=True)
class Results:
    """The tables of an output directory.

    Attributes
    ----------
    request : Request
    table : ParticleTable
        The particle file as text.
    options : JobOptions
        Those of the run, or what the tables tell of them.
    is_recorded : bool
        Whether the options are from completion records: RELION's own directories have none.
    is_stack : bool
        2D stacks.
    optics_row : ndarray, shape (n,), int64
        Row of each particle's optics group; -1 where it has none.
    image_size, binning, pixel_size : ndarray, shape (n,), float64
        n in pixels, binning, and the binned pixel size in Angstrom that each particle's optics
        group tells; NaN where it does not.
    images : list of str
        rlnImageName, without the number of an image in a stack.
    tomogram_set : TomogramSet or None
        None where it cannot be read.
    particle_set : ParticleSet or None
        None without tomograms.
    trajectories : Trajectories or None
    """

    request: Request
    table: ParticleTable
    options: JobOptions
    is_recorded: bool
    is_stack: bool
    optics_row: NDArray[np.int64]
    image_size: Floats
    binning: Floats
    pixel_size: Floats
    images: list[str]
    tomogram_set: TomogramSet | None
    particle_set: ParticleSet | None
    trajectories: Trajectories | None

    @property
    def particles(self) -> StarTable:
        """The table of particles."""
        return self.table.particles

    @property
    def is_mislabelled(self) -> bool:
        """Whether RELION would read 2D stacks as volumes."""
        return self.is_stack and self.table.general.get(labels.ARE_2D_STACKS) != "1"

    @property
    def own_rows(self) -> NDArray[np.bool_]:
        """Rows whose images are in the directory, so that the recorded options tell of them."""
        is_inside = [self.is_recorded and self.is_inside(path) for path in self.images]
        return np.array(is_inside, dtype=bool)

    @property
    def is_elsewhere(self) -> bool:
        """Whether none of the images that the extraction's own table names are in the directory."""
        return self.request.is_own_table and not any(map(self.is_inside, self.images))

    def is_inside(self, path: str) -> bool:
        """Return whether a path leads into the directory: those of joined sets may lead to others.

        Only then the directory's options, completion records and containers tell of it.
        """
        folder = os.path.join(os.path.normpath(self.request.directory), "")
        return folder == "./" or os.path.normpath(path).startswith(folder)

    @property
    def names(self) -> list[str]:
        """What each particle is called in messages: its name, or its image's."""
        return list(self.particles.columns.get(labels.PARTICLE_NAME, self.images))


def read_results(request: Request, findings: Findings) -> Results | None:
    """Read the tables of an output directory and those they name.

    Parameters
    ----------
    request : Request
    findings : Findings
        Gets what is wrong in the tables.

    Returns
    -------
    Results or None
        None where there are no particles or no images among their columns.
    """
    if _is_unfinished(request, findings):
        return None
    request = _name_as_recorded(request)
    table = read_particle_table(request.particle_file, findings)
    entries = _read_entries(request, findings)
    if table is None:
        return None
    report_missing_columns(table.particles, [labels.IMAGE_NAME], findings)
    if labels.IMAGE_NAME not in table.particles.columns:
        return None
    # as RELION, which takes digits before the first @ for the number of an image in a stack
    images = [re.sub(r"^\d+@", "", name) for name in table.particles.columns[labels.IMAGE_NAME]]
    is_stack = _is_stack(table, images, findings)
    recorded = _read_options(request.directory, findings)
    rows = _rows_of_groups(table)
    optics = _OpticsColumns(table, rows, findings)
    options = recorded or _guess_options(request, optics, is_stack)
    if options.stack2d != is_stack:
        _report_layout(table, options, findings)
    sets = _read_sets(request, table, entries, options, findings)
    sizes = (labels.IMAGE_SIZE, labels.SUBTOMOGRAM_BINNING, labels.IMAGE_PIXEL_SIZE)
    size, binning, pixel_size = map(optics.take, sizes)
    is_recorded = recorded is not None
    return Results(
        request,
        table,
        options,
        is_recorded,
        is_stack,
        rows,
        size,
        binning,
        pixel_size,
        images,
        *sets,
    )


def _is_unfinished(request: Request, findings: Findings) -> bool:
    """Return whether the directory's own table is not there yet; adds that as an error."""
    noted = RecordStore(request.directory).read_job()
    if noted is None or not request.is_own_table or os.path.exists(request.particle_file):
        return False
    if noted.get("no_writing") == "True":
        findings.warning("result-none", "run with --no_writing", file=request.directory)
    else:
        what = "extraction that is not finished"
        findings.error("result-unfinished", what, file=request.directory)
    return True


def _name_as_recorded(request: Request) -> Request:
    path = os.path.join(request.directory, OPTIMISATION_SET)
    entries = read_optimisation_set(path, Findings()) or {}
    named = entries.get(labels.PARTICLES_FILE)
    if named is None:
        return request
    return replace(request, directory=name_as_recorded(request.directory, named))


def _read_entries(request: Request, findings: Findings) -> dict[str, str]:
    """Return the optimisation set's entries, overridden by what was asked for."""
    path = os.path.join(request.directory, OPTIMISATION_SET)
    entries = read_optimisation_set(path, findings) or {}
    named, own = entries.get(labels.PARTICLES_FILE), os.path.join(request.directory, PARTICLES)
    if named is not None and os.path.normpath(named) != os.path.normpath(own):
        findings.error("result-table", labels.PARTICLES_FILE, file=path, expected=own, found=named)
    for label, given in (
        (labels.TOMOGRAMS_FILE, request.tomograms),
        (labels.TRAJECTORIES_FILE, request.trajectories),
    ):
        if given is not None:
            entries[label] = given
    return entries


def _is_stack(table: ParticleTable, images: list[str], findings: Findings) -> bool:
    """Return whether the images are 2D stacks; their names tell where the flag is lost or wrong."""
    flag = table.general.get(labels.ARE_2D_STACKS)
    if flag != "1" and images[0].endswith(_STACK):
        findings.error(
            "result-stacks",
            labels.ARE_2D_STACKS,
            file=table.path,
            table="general",
            expected=1,
            found="no such entry" if flag is None else flag,
        )
        return True
    if flag not in ("0", "1"):
        findings.warning(
            "result-table",
            f"no {labels.ARE_2D_STACKS}",
            file=table.path,
            table="general",
            expected="0 or 1",
            found="the images' names are gone by",
        )
        return False
    return flag == "1"


def _report_layout(table: ParticleTable, options: JobOptions, findings: Findings) -> None:
    findings.error(
        "result-table",
        labels.ARE_2D_STACKS,
        file=table.path,
        table="general",
        expected=f"{int(options.stack2d)}, as extracted",
        found=int(not options.stack2d),
    )


def _read_options(directory: str, findings: Findings) -> JobOptions | None:
    """Return the options noted beside the completion records; None where there are no records."""
    folder = Path(directory, FOLDER)
    if not folder.exists():
        return None
    noted = RecordStore(directory).read_job() or {}
    names = {field.name for field in dataclasses.fields(JobOptions)}
    try:
        values = {name: ast.literal_eval(text) for name, text in noted.items() if name in names}
        return JobOptions(**{**values, "output": directory})
    except (ValueError, SyntaxError, TypeError):
        findings.error("result-record", "options of the run not readable", file=folder)
        return None


def _guess_options(request: Request, optics: _OpticsColumns, is_stack: bool) -> JobOptions:
    """Return the options as far as the optics table tells them."""
    size, binning = optics.take(labels.IMAGE_SIZE)[0], optics.take(labels.SUBTOMOGRAM_BINNING)[0]
    crop = int(size) if np.isfinite(size) else 0
    return JobOptions(
        request.directory,
        crop,
        crop,
        float(binning) if np.isfinite(binning) else 1.0,
        stack2d=is_stack,
        real_subtomo=not is_stack and _are_real(optics),
        max_dose=-1.0 if request.max_dose is None else request.max_dose,
    )


def _are_real(optics: _OpticsColumns) -> bool:
    """Return whether most columns, as one may be wrong, are those of true subtomograms."""
    found = {label: optics.take(label)[0] for label in _OF_TRUE_SUBTOMOGRAMS}
    n_equal = sum(found[label] == value for label, value in _OF_TRUE_SUBTOMOGRAMS.items())
    return 2 * n_equal > len(found)


def _rows_of_groups(table: ParticleTable) -> NDArray[np.int64]:
    """Return the row of each particle's optics group; -1 where it has none."""
    n = table.particles.n_rows
    if table.optics is None:
        return np.full(n, -1)
    if labels.OPTICS_GROUP not in table.particles.columns:
        return np.full(n, 0 if table.optics.n_rows == 1 else -1)
    # by number: other programs write 1.0 for 1; what is no number is told with the particle set
    known, given = (
        numbers(t, labels.OPTICS_GROUP, Findings()) for t in (table.optics, table.particles)
    )
    place = {number: i for i, number in enumerate(known.tolist()) if np.isfinite(number)}
    return np.array([place.get(number, -1) for number in given.tolist()])


class _OpticsColumns:
    """Columns of the optics table, by particle."""

    def __init__(self, table: ParticleTable, rows: NDArray[np.int64], findings: Findings) -> None:
        self._optics, self._rows = table.optics, rows
        if table.optics is None:
            findings.error(
                "missing-table", "no optics", file=table.path, expected="a table data_optics"
            )
            return
        needed = (labels.IMAGE_SIZE, labels.IMAGE_PIXEL_SIZE, labels.SUBTOMOGRAM_BINNING)
        for label in needed:
            numbers(table.optics, label, findings)

    def take(self, label: str) -> Floats:
        """Return a column; NaN for particles without a group or a value, and no default either."""
        if self._optics is None:
            return np.full(len(self._rows), np.nan)
        default = OPTICS_DEFAULTS.get(label)
        values = np.append(numbers(self._optics, label, Findings(), default=default), np.nan)
        return np.asarray(values[self._rows])


def _read_sets(
    request: Request,
    table: ParticleTable,
    entries: dict[str, str],
    options: JobOptions,
    findings: Findings,
) -> tuple[TomogramSet | None, ParticleSet | None, Trajectories | None]:
    path = entries.get(labels.TOMOGRAMS_FILE)
    if path is None or is_absent(path):
        findings.error("missing-input", "no tomograms", file=request.directory)
        return None, None, None
    motion = entries.get(labels.TRAJECTORIES_FILE)
    return read_extracted_sets(table, path, motion, options, findings)
