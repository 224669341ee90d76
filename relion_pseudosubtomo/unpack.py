"""The command `unpack`: from HDF5 containers to the MRC files and tables that RELION reads."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from relion_pseudosubtomo import labels, merge
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import (
    Findings,
    bytes_text,
    counted,
    format_findings,
    list_first,
)
from relion_pseudosubtomo.io import hdf5, mrc, particles
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.io.containers import DATASETS, JOINED
from relion_pseudosubtomo.io.names import leads_outside
from relion_pseudosubtomo.io.optimisation_set import (
    OPTIMISATION_SET,
    name_as_recorded,
    resolve,
    write_optimisation_set,
)
from relion_pseudosubtomo.io.star import StarTable, read_star, write_star
from relion_pseudosubtomo.model import OptimisationSet
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions

logger = logging.getLogger("relion_pseudosubtomo")

#: STAR files that may be there beside those that are written anew -> their columns of paths.
_OTHERS = {
    "average_fsc.star": labels.UNFILTERED_HALVES,
    "particles_for_class2d.star": (labels.IMAGE_NAME,),
}

#: Names that are shown.
_SHOWN = 3


def unpack(directory: str, *, ignore_disk_space: bool = False) -> int:
    """Write what an extraction without `--no_mrc` would have written; return the exit status.

    Parameters
    ----------
    directory : str
        Output directory of an extraction with `--hdf5`, as it is called from the project's
        directory; it may have another name now.
    ignore_disk_space : bool
        Whether to begin also where the file system has less free than will be written.

    Raises
    ------
    PseudoSubtomoError
        Where a container is missing or damaged, there is no room, or a file cannot be written.
    """
    if not (path := Path(directory, JOINED)).exists():
        raise InputError(f"{path} is missing: expected the directory of an extraction with --hdf5")
    with hdf5.open_container(path) as joined:
        entries = _read_entries(directory)
        directory = name_as_recorded(directory, entries.particles)
        containers, stems = (hdf5.read_text(joined[name]) for name in ("containers", "stems"))
        suffix = joined["images"].attrs["suffix"]
        _check_names(path, [*containers, *stems], [suffix])
        needed = sum(_count_bytes(directory, name) for name in containers)  # opens all of them
        if not ignore_disk_space:
            _check_space(directory, needed)
        general = {label: text[0] for label, text in hdf5.read_table(joined["general"]).items()}
        optics = hdf5.read_table(joined["optics"])
        rows = _name_images(directory, hdf5.read_table(joined["table"]), stems, suffix)
    n_files = sum(_write_images(directory, name) for name in containers)
    particles.write_particle_file(Path(directory, "particles.star"), general, optics, rows)
    _point_to(directory, entries)
    n_particles = len(rows[labels.TOMO_NAME])
    print(f"{counted(n_files, 'MRC file')} written of {counted(n_particles, 'particle')}")
    return 0


def _name_images(directory: str, table: Columns, stems: np.ndarray, suffix: str) -> Columns:
    """Return the rows of particles.star with the paths of the images."""
    options = JobOptions(directory, 2, 2)
    paths = [merge.output_path(options, stem) for stem in stems]
    for label, ending in ((labels.IMAGE_NAME, suffix), (labels.CTF_IMAGE, "_weights.mrc")):
        if label in table:
            table[label] = merge.text_column(paths, "{}" + ending)
    return table


def _check_names(path: Path, names: Iterable[str], suffixes: Sequence[str]) -> None:
    """Refuse what leads out of the directory: the file may be anybody's (spec 3.1)."""
    outside = [repr(name) for name in names if leads_outside(name)]
    outside += [repr(suffix) for suffix in suffixes if suffix not in DATASETS]
    if outside:
        raise InputError(
            f"Names of files in {path}: expected paths inside its directory, found "
            f"{list_first(outside, _SHOWN)}. Nothing was written; this program makes no such file."
        )


def _count_bytes(directory: str, container: str) -> int:
    """Return how many bytes the MRC files of one tomogram take more than those that are there.

    Their names are checked before any is written.
    """
    path = Path(directory, container)
    with hdf5.open_container(path) as file:
        stems, suffixes = hdf5.read_text(file["stems"]), hdf5.list_suffixes(file)
        _check_names(path, stems, suffixes)
        n_bytes = hdf5.count_unpacked_bytes(file)
        for stem in stems:
            for suffix in suffixes:
                with contextlib.suppress(OSError):
                    n_bytes -= os.path.getsize(os.path.join(directory, stem + suffix))
    return n_bytes


def _check_space(directory: str, n_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if n_bytes > free:
        raise InputError(
            f"Disk space in {directory}: expected {bytes_text(n_bytes)} free for the MRC files, "
            f"found {bytes_text(free)}. Make room, or start with --ignore_disk_space."
        )


def _write_images(directory: str, container: str) -> int:
    """Write the MRC files of one tomogram; return their number."""
    n_files = 0
    folders: set[Path] = set()
    with hdf5.open_container(Path(directory, container)) as file:
        for stem, suffix, stored, voxel_size in hdf5.iterate_files(file):
            path = Path(directory, stem + suffix)
            if path.parent not in folders:
                make_folder(path.parent)
                folders.add(path.parent)
            is_stack = suffix.endswith(".mrcs")
            mrc.write_stored(path, stored, voxel_size=voxel_size, is_stack=is_stack)
            n_files += 1
    return n_files


def _read_entries(directory: str) -> OptimisationSet:
    path = os.path.join(directory, OPTIMISATION_SET)
    findings = Findings()
    entries = resolve(JobOptions(directory, 2, 2, optimisation_set=path), findings)
    if entries is None:
        raise InputError(format_findings(findings))
    if not os.path.exists(entries.tomograms):
        what = f"{entries.tomograms}, which {path} names, is not found from here"
        if project := _find_project(directory, entries):
            raise InputError(f"{what}. Unpack in the project's directory, {project}.")
        logger.warning("%s: the images need it for refinement, but not to be unpacked", what)
    return entries


def _find_project(directory: str, entries: OptimisationSet) -> Path | None:
    """Return the project that the directory still lies in by its recorded name; else None.

    Started elsewhere, tables would get other paths than from there; a directory that was moved or
    archived alone gets those from the present directory.
    """
    parts = Path(os.path.abspath(directory)).parts
    recorded = Path(os.path.normpath(os.path.dirname(entries.particles))).parts
    n_before = len(parts) - len(recorded)
    project = Path(*parts[:n_before])
    is_inside = parts[n_before:] == recorded and (project / entries.tomograms).exists()
    return project if is_inside else None


def _point_to(directory: str, entries: OptimisationSet) -> None:
    """Let the optimisation set name the tables of this directory, which may have moved."""
    path = os.path.join(directory, OPTIMISATION_SET)
    options = JobOptions(directory, 2, 2)
    former = os.path.dirname(entries.particles)
    _move_paths(directory, former)
    trajectories = entries.trajectories
    if trajectories == os.path.join(former, "motion.star"):
        trajectories = merge.output_path(options, "motion.star")
    own = merge.output_path(options, "particles.star")
    write_optimisation_set(path, replace(entries, particles=own, trajectories=trajectories))


def _move_paths(directory: str, former: str) -> None:
    """Let tables that are not written anew name this directory in place of the former one."""
    own = merge.output_path(JobOptions(directory, 2, 2), "")
    if own == f"{former}/":
        return
    begin = re.compile(rf"^(\d+@)?{re.escape(former)}/")
    for name, wanted in _OTHERS.items():
        path = os.path.join(directory, name)
        star = read_star(path, Findings())
        if star is None:
            continue
        tables = []
        for table in star.tables.values():
            columns = dict(table.columns)
            for label in columns.keys() & set(wanted):
                moved = [begin.sub(lambda m: f"{m[1] or ''}{own}", text) for text in columns[label]]
                columns[label] = merge.text_column(moved)
            tables.append(StarTable(table.name, columns, table.is_list))
        write_star(path, tables)
