"""The optimisation set: which files belong together (spec 1.2, 3.4)."""

from __future__ import annotations

import os

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.columns import is_absent
from relion_pseudosubtomo.io.star import list_table, read_star, write_star
from relion_pseudosubtomo.model import OptimisationSet
from relion_pseudosubtomo.options import JobOptions

#: Its name in an output directory.
OPTIMISATION_SET = "optimisation_set.star"

_NAMED = (labels.PARTICLES_FILE, labels.TOMOGRAMS_FILE, labels.TRAJECTORIES_FILE)


def read_optimisation_set(path: str, findings: Findings) -> dict[str, str] | None:
    """Read an optimisation set, in list or loop form, whatever its table is called.

    Parameters
    ----------
    path : str
        The STAR file.
    findings : Findings
        Gets an error where the file cannot be read, or does not hold one row.

    Returns
    -------
    dict of str to str or None
        Label -> text, absent values included; None where there was an error.
    """
    star = read_star(path, findings)
    if star is None:
        return None
    tables = list(star.tables.values())
    with_files = [table for table in tables if any(label in table.columns for label in _NAMED)]
    table = (with_files or tables)[0]
    if table.n_rows != 1:
        findings.error(
            "optimisation-set",
            "optimisation set",
            file=path,
            table=table.name,
            expected="one row",
            found=f"{table.n_rows} rows",
        )
        return None
    return table.first_row()


def resolve(options: JobOptions, findings: Findings) -> OptimisationSet | None:
    """Return the files of a job: the optimisation set's, overridden by --p, --t and --mot.

    As in RELION an empty option is none. `--mot None` leaves the set's trajectories out, as None
    does in an optimisation set; particles and tomograms cannot be left out.

    Parameters
    ----------
    options : JobOptions
        The job.
    findings : Findings
        Gets an error where particles or tomograms are given by neither.

    Returns
    -------
    OptimisationSet or None
        None where there was an error.
    """
    entries: dict[str, str] | None = {}
    if options.optimisation_set is not None and not is_absent(options.optimisation_set):
        entries = read_optimisation_set(options.optimisation_set, findings)
    given = (options.particles, options.tomograms, options.trajectories)
    if entries is None and is_absent(given[0]) | is_absent(given[1]):
        return None
    files: list[str | None] = []
    for label, option in zip(_NAMED, given, strict=True):
        is_off = option == "None" and label == labels.TRAJECTORIES_FILE
        text = (entries or {}).get(label) if is_absent(option) and not is_off else option
        files.append(None if is_absent(text) else text)
    particles, tomograms, trajectories = files
    for name, option, file in (("particles", "--p", particles), ("tomograms", "--t", tomograms)):
        if file is None:
            findings.error(
                "missing-input",
                f"no {name}",
                file=options.optimisation_set,
                expected=f"{option} FILE, or an entry in the optimisation set",
            )
    if particles is None or tomograms is None:
        return None
    others = {label: text for label, text in (entries or {}).items() if label not in _NAMED}
    return OptimisationSet(particles, tomograms, trajectories, others)


def write_optimisation_set(path: str | os.PathLike[str], optimisation_set: OptimisationSet) -> None:
    """Write an optimisation set as one unnamed list table.

    Raises
    ------
    OutputError
        Where the file cannot be written.
    """
    entries = {
        labels.PARTICLES_FILE: optimisation_set.particles,
        labels.TOMOGRAMS_FILE: optimisation_set.tomograms,
    }
    if optimisation_set.trajectories is not None:
        entries[labels.TRAJECTORIES_FILE] = optimisation_set.trajectories
    write_star(path, [list_table("", {**entries, **optimisation_set.others})])


def name_as_recorded(directory: str, particle_file: str) -> str:
    """Return an output directory as its tables call it, where that is the same place.

    Parameters
    ----------
    directory : str
        As it is called now.
    particle_file : str
        Its particles.star, as its optimisation set names it.
    """
    former = os.path.dirname(particle_file) or "."
    try:
        is_same = os.path.samefile(former, directory)
    except OSError:  # one of them is not there
        return directory
    return former if is_same else directory
