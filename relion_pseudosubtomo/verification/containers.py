"""HDF5 containers of an output directory: there, whole, and fitting the table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, counted, list_first
from relion_pseudosubtomo.io.containers import DATASETS, JOINED, container_name
from relion_pseudosubtomo.io.mrc import StoredValues
from relion_pseudosubtomo.io.mrc_validation import DataFaults, MrcFile, inspect_values
from relion_pseudosubtomo.verification.images import ImageFile, in_threads, list_files
from relion_pseudosubtomo.verification.results import Results

if TYPE_CHECKING:
    from relion_pseudosubtomo.io.hdf5 import File

_SHOWN = 3


def is_packed(results: Results) -> bool:
    """Return whether the images are in containers alone: `unpack` has not been begun."""
    if not (results.is_recorded and results.options.no_mrc):
        return False
    if not all(map(results.is_inside, results.images)):
        return False
    return not any(in_threads(os.path.exists, results.images).values())


def check_containers(results: Results, findings: Findings) -> None:
    """Check that the container of each tomogram is there and holds the table's particles.

    Only those whose images are in the directory: of joined sets others may be elsewhere.

    Parameters
    ----------
    results : Results
    findings : Findings
        Gets `result-missing`, `result-unreadable` and `result-table`.
    """
    from relion_pseudosubtomo.io import hdf5  # most directories have none

    owners = results.particles.columns.get(labels.TOMO_NAME)
    if owners is None:  # which is told with the particle set
        return
    is_inside = np.array([results.is_inside(path) for path in results.images])
    names = np.asarray(results.names, dtype=object)[is_inside]
    tomograms = owners[is_inside]
    folder = Path(results.request.directory)
    missing = []
    for tomogram in dict.fromkeys(tomograms):
        path = folder / container_name(tomogram)
        if not path.exists():
            missing.append(str(path))
            continue
        try:
            with hdf5.open_container(path) as file:
                found = _list_particles(results, file)
        except InputError as error:
            findings.error("result-unreadable", str(error))
            continue
        wanted = names[tomograms == tomogram].tolist()
        held = set(found)
        strangers = [name for name in wanted if name not in held]
        # another program leaves particles out, and may sort the others
        if strangers or (results.request.is_own_table and found != wanted):
            _report_others(path, f"{len(wanted)} of {tomogram}", found, strangers, findings)
    if not (folder / JOINED).exists():
        missing.append(str(folder / JOINED))
    else:
        _check_joined(results, folder / JOINED, names.tolist(), findings)
    if missing:
        findings.error("result-missing", "container missing", found=list_first(missing, _SHOWN))


def _check_joined(results: Results, path: Path, wanted: list[str], findings: Findings) -> None:
    """Check that the file that joins the containers can be read, and holds the same particles."""
    from relion_pseudosubtomo.io import hdf5  # most directories have none

    try:
        with hdf5.open_container(path) as file:
            found = _list_particles(results, file)
    except InputError as error:
        findings.error("result-unreadable", str(error))
        return
    except (OSError, KeyError) as error:
        findings.error("result-unreadable", f"{path} cannot be read: {error}")
        return
    held = set(found)
    strangers = [name for name in wanted if name not in held]
    if strangers or (results.request.is_own_table and found != wanted):
        _report_others(path, f"{len(wanted)}", found, strangers, findings)


def _report_others(
    path: Path, wanted: str, found: list[str], strangers: list[str], findings: Findings
) -> None:
    without = f", without {list_first(strangers, _SHOWN)}" if strangers else ""
    findings.error(
        "result-table",
        "other particles than in the container",
        file=path,
        expected=wanted,
        found=f"{len(found)}{without}",
    )


def _list_particles(results: Results, file: File) -> list[str]:
    """Return what the table calls each particle of a container: its name, or its image's."""
    from relion_pseudosubtomo.io import hdf5  # most directories have none

    if labels.PARTICLE_NAME in results.particles.columns:
        return hdf5.read_text(file["table"][labels.PARTICLE_NAME]).tolist()
    ending = file["images"].attrs["suffix"]
    stems = hdf5.read_text(file["stems"])
    return [os.path.join(results.request.directory, stem + ending) for stem in stems]


def inspect_containers(results: Results, findings: Findings) -> list[tuple[ImageFile, DataFaults]]:
    """Read all values of all containers that can be opened.

    Parameters
    ----------
    results : Results
    findings : Findings
        Gets `result-unreadable`.

    Returns
    -------
    list of (ImageFile, DataFaults)
        What was found in the place of each MRC file.
    """
    files = {(file.row, file.suffix): file for file in list_files(results)}
    rows = _rows_by_name(results)
    inspected = []
    for path in sorted(list_containers(results)):
        try:
            for name, suffix, stored in _read_particles(results, path):
                # of several after a symmetry expansion the first; none that was left out
                owner = rows.get(name, [-1])[0]
                if file := files.get((owner, suffix)):
                    shown = replace(file, path=f"{path}: {os.path.basename(file.path)}")
                    inspected.append((shown, inspect_values(stored.values, stored.statistics)))
        except InputError:
            continue  # `check_containers` has told why
        except OSError as error:
            findings.error("result-unreadable", f"{path} cannot be read: {error}")
    return inspected


def count_container_slices(results: Results) -> list[int | None]:
    """Return how many images of each particle are in its container; None where it is not known."""
    from relion_pseudosubtomo.io import hdf5  # most directories have none

    rows = _rows_by_name(results)
    slices: list[int | None] = [None] * len(results.names)
    for path in sorted(list_containers(results)) if results.is_stack else ():
        try:
            with hdf5.open_container(path) as file:
                names, counts = _list_particles(results, file), np.diff(file["offsets"][...])
        except (InputError, OSError, KeyError):
            continue  # `check_containers` has told why
        for name, count in zip(names, counts.tolist(), strict=True):
            for row in rows.get(name, ()):
                slices[row] = count
    return slices


def _rows_by_name(results: Results) -> dict[str, list[int]]:
    """Return the rows of each particle: several after a symmetry expansion."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(results.names):
        rows.setdefault(name, []).append(row)
    return rows


def _read_particles(results: Results, path: str) -> Iterator[tuple[str, str, StoredValues]]:
    """Yield (particle's name, suffix, values) of every MRC file that a container stands for."""
    from relion_pseudosubtomo.io import hdf5  # most directories have none

    with hdf5.open_container(path) as file:
        n_files = len(hdf5.list_suffixes(file))
        names = (name for name in _list_particles(results, file) for _ in range(n_files))
        for name, (_, suffix, stored, _) in zip(names, hdf5.iterate_files(file), strict=True):
            yield name, suffix, stored


def check_unpacked(
    results: Results,
    files: list[ImageFile],
    known: dict[str, MrcFile | InputError],
    findings: Findings,
) -> None:
    """Check that MRC files are those of the present containers, of `--no_mrc`.

    The statistics in their headers are those in the containers, to the bit. Times would not tell:
    a copy has others.

    Parameters
    ----------
    results, files, known
        As for `images.check_files`, and its result.
    findings : Findings
        Gets `result-unpacked` and `result-unreadable`.
    """
    if not results.options.no_mrc:  # else completion records tell
        return
    wanted = {os.path.normpath(file.path): known[file.path] for file in files}
    other = []
    for container in sorted(list_containers(results)):
        try:
            for name, statistics in _read_statistics(container):
                path = os.path.normpath(os.path.join(results.request.directory, name))
                found = wanted.get(path)
                if isinstance(found, MrcFile) and found.statistics != statistics:
                    other.append(path)
        except InputError:
            continue  # `check_containers` has told why
        except OSError as error:
            findings.error("result-unreadable", f"{container} cannot be read: {error}")
    if other:
        what = f"{counted(len(other), 'MRC file')} with other values than the containers"
        place = results.request.directory
        findings.error("result-unpacked", what, file=place, found=list_first(other, _SHOWN))


def _read_statistics(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield (path inside the directory, statistics) of every MRC file a container stands for."""
    from relion_pseudosubtomo.io import hdf5  # most directories have none

    with hdf5.open_container(path) as file:
        stems = hdf5.read_text(file["stems"])
        for suffix in hdf5.list_suffixes(file):
            rows = file[f"statistics/{DATASETS[suffix]}"][...].astype("<f4")
            for stem, row in zip(stems, rows, strict=True):
                yield stem + suffix, row.tobytes()


def list_containers(results: Results) -> set[str]:
    """Return the paths of all containers that belong to the table; none without `--hdf5`."""
    if not (results.is_recorded and results.options.hdf5):
        return set()
    tomograms = dict.fromkeys(results.particles.columns.get(labels.TOMO_NAME, ()))
    directory = results.request.directory
    return {os.path.normpath(os.path.join(directory, container_name(t))) for t in tomograms}
