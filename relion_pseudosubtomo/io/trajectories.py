"""Trajectory sets: one table a particle, tens of thousands in one file (spec 1.5)."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.atomic import write_text
from relion_pseudosubtomo.io.columns import to_number, to_numbers
from relion_pseudosubtomo.io.star import read_text
from relion_pseudosubtomo.model import ParticleSet, TomogramSet, Trajectories

Floats = NDArray[np.float64]

_HEADING = re.compile(r"^[ \t]*data_(\S*)[ \t]*(?:#.*)?$", re.MULTILINE)
#: From a # at the start of a line or behind white space. The # comes first: it is found far faster
#: than a place that may precede it.
_COMMENT = re.compile(r"#(?<!\S#).*")

#: Name of the first particle's table in very old files, which go by order.
_OLD_FIRST_NAME = "0"


def read_trajectories(
    path: str, particle_set: ParticleSet, tomogram_set: TomogramSet, findings: Findings
) -> Trajectories | None:
    """Read the trajectory of every particle.

    Parameters
    ----------
    path : str
        The STAR file.
    particle_set : ParticleSet
        The particles; their names are the names of the tables.
    tomogram_set : TomogramSet
        Tells how many frames each has.
    findings : Findings
        Gets errors for particles without a trajectory, with another number of frames, or with
        numbers that are not finite, and a warning for a file that goes by order.

    Returns
    -------
    Trajectories or None
        None where there was an error. Particles of unknown tomograms have no frames.
    """
    text = read_text(path, findings)
    if text is None:
        return None
    n_errors = len(findings.errors)
    tables = _split_tables(path, text, findings)
    first = next(iter(tables), "")
    by_order = first == _OLD_FIRST_NAME and first not in particle_set.names
    if by_order:
        tables = _rename_by_order(path, tables, particle_set, findings)
    matched = _Matched(path)
    shifts = []
    for name, tomogram in zip(particle_set.names, particle_set.tomogram, strict=True):
        n_frames = tomogram_set.tomograms[tomogram].n_frames if tomogram >= 0 else 0
        shifts.append(matched.read(name, tables.get(name), n_frames))
    matched.report(findings)
    if len(findings.errors) > n_errors:
        return None
    return Trajectories(path, tuple(shifts), len(tables), by_order)


def check_trajectory_file(path: str, findings: Findings) -> None:
    """Check what can be checked without particles: that the file is there and has tables."""
    text = read_text(path, findings)
    if text is not None:
        _split_tables(path, text, findings)


def _split_tables(path: str, text: str, findings: Findings) -> dict[str, str]:
    """Return the text of every particle's table, by name in file order."""
    pieces = _HEADING.split(text)
    tables: dict[str, str] = {}
    repeated = []
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if name in tables:
            repeated.append(name)
        tables[name] = body
    if repeated:
        findings.error("star-syntax", f"table names repeated: {list_first(repeated)}", file=path)
    if not tables:
        findings.error("star-syntax", "no table", file=path, expected="a line data_<name>")
    tables.pop("general", None)
    return tables


def _rename_by_order(
    path: str, tables: dict[str, str], particle_set: ParticleSet, findings: Findings
) -> dict[str, str]:
    n_particles = len(particle_set)
    if len(tables) != n_particles:
        findings.error(
            "trajectory-order",
            "trajectories without names",
            file=path,
            expected=f"{n_particles} tables, one a particle",
            found=len(tables),
        )
    else:
        findings.warning(
            "trajectory-order",
            f"trajectories without names: taken in the order of {particle_set.path}",
            file=path,
        )
    return dict(zip(particle_set.names, tables.values(), strict=False))


@dataclass
class _Matched:
    """Reads one table after the other and remembers what is wrong."""

    path: str
    n_found: int = 0
    missing: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    miscounted: list[tuple[str, int, int]] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def read(self, name: str, body: str | None, n_frames: int) -> Floats:
        """Return shifts of shape (n_frames, 3), zeros where there is an error."""
        zeros = np.zeros((n_frames, 3))
        if n_frames == 0:
            return zeros
        if body is None:
            self.missing.append(name)
            return zeros
        self.n_found += 1
        try:
            shifts = _parse_table(body)
        except ValueError:
            self.malformed.append(name)
            return zeros
        if len(shifts) != n_frames:
            self.miscounted.append((name, n_frames, len(shifts)))
            return zeros
        if not np.isfinite(shifts).all():
            self.not_finite.append(name)
        return shifts

    def report(self, findings: Findings) -> None:
        """Add one error for each kind of trouble."""
        if self.missing:
            findings.error(
                "trajectory-missing",
                "no trajectory",
                file=self.path,
                particle=list_first(self.missing),
                expected="a table data_<rlnTomoParticleName>",
                found=f"one for {self.n_found} of {self.n_found + len(self.missing)} particles",
            )
        if self.malformed:
            findings.error(
                "star-syntax",
                "malformed trajectory",
                file=self.path,
                particle=list_first(self.malformed),
                expected=f"a loop with {', '.join(labels.ORIGIN_XYZ)} and rows of numbers",
            )
        if self.miscounted:
            particles, expected, found = zip(*self.miscounted, strict=True)
            findings.error(
                "trajectory-frames",
                "trajectory of another number of frames",
                file=self.path,
                particle=list_first(particles),
                expected=list_first(sorted(set(expected))),
                found=list_first(sorted(set(found))),
            )
        if self.not_finite:
            findings.error(
                "not-finite",
                "trajectory",
                file=self.path,
                particle=list_first(self.not_finite),
                expected="finite numbers",
            )


def _parse_table(body: str) -> Floats:
    """Return (n_rows, 3) shifts of one table; ValueError where it is malformed."""
    if "#" in body:
        body = _COMMENT.sub("", body)
    lines = [words for line in body.split("\n") if (words := line.split())]
    if lines[:1] != [["loop_"]]:
        pairs = dict(lines)  # ValueError where a line is no pair
        return np.array([[to_number(pairs.get(f"_{label}", "")) for label in labels.ORIGIN_XYZ]])
    names = [name for (name,) in itertools.takewhile(lambda words: words[0][0] == "_", lines[1:])]
    columns = [names.index(f"_{label}") for label in labels.ORIGIN_XYZ]
    rows = lines[1 + len(names) :]
    if any(len(words) != len(names) for words in rows):
        raise ValueError("rows of other lengths")
    if len(names) == len(columns):
        flat = list(itertools.chain.from_iterable(rows))
        return to_numbers(flat).reshape(-1, len(columns))[:, columns]
    return to_numbers([words[i] for words in rows for i in columns]).reshape(-1, len(columns))


def write_trajectories(
    path: str | os.PathLike[str], names: Iterable[str], shifts: Iterable[Floats]
) -> None:
    """Write trajectories in the given order.

    Parameters
    ----------
    path : str or path-like
        The STAR file.
    names : iterable of str
        Names of the particles.
    shifts : iterable of ndarray, shape (n_frames, 3)
        (x, y, z) in Angstrom.

    Raises
    ------
    OutputError
        Where the file cannot be written.
    """
    heading = "".join(f"_{label} #{i}\n" for i, label in enumerate(labels.ORIGIN_XYZ, 1))
    tables = []
    for name, shift in zip(names, shifts, strict=True):
        row = "%12.6f %12.6f %12.6f\n"
        rows = (row * len(shift)) % tuple(np.asarray(shift).reshape(-1).tolist())
        tables.append(f"\n# version 50001\n\ndata_{name}\n\nloop_\n{heading}{rows}\n")
    general = f"data_general\n\n_{labels.PARTICLE_NUMBER:<40} {len(tables)}\n\n"
    write_text(path, "".join([f"\n# version 50001\n\n{general}", *tables]))
