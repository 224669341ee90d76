"""Completion records, and files that belong to no particle."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, counted, list_first
from relion_pseudosubtomo.io.columns import has_columns
from relion_pseudosubtomo.io.containers import container_name
from relion_pseudosubtomo.io.mrc_validation import MrcFile
from relion_pseudosubtomo.io.records import FOLDER, Record, RecordStore
from relion_pseudosubtomo.io.star import read_star
from relion_pseudosubtomo.options import DIALECT_FOLDERS, particle_file
from relion_pseudosubtomo.plan import FAILED_TOMOGRAM
from relion_pseudosubtomo.verification.containers import list_containers
from relion_pseudosubtomo.verification.images import SUFFIXES, ImageFile, split_image_name
from relion_pseudosubtomo.verification.results import Results

_DROPPED = "dropped.star"

_IMAGES = "Subtomograms"
_SHOWN = 3


def check_records(
    results: Results,
    files: list[ImageFile],
    known: dict[str, MrcFile | InputError],
    findings: Findings,
) -> list[Record]:
    """Check that records can be read, cover all files of the directory, and tell their sizes.

    Parameters
    ----------
    results, files, known
        As for `images.check_files`, and its result.
    findings : Findings
        Gets `result-record` and `result-changed`.

    Returns
    -------
    list of Record
        Those that can be read.
    """
    directory = results.request.directory
    folder, store = Path(directory, FOLDER), RecordStore(directory)
    records = store.read_all()
    n_damaged = len(list(folder.glob("*/*.json"))) - len(records)
    if n_damaged > 0:
        findings.error(
            "result-record", f"{counted(n_damaged, 'completion record')} damaged", file=folder
        )
    if results.options.no_mrc:  # records know of containers alone, not of what `unpack` made
        return records
    recorded = {
        os.path.normpath(os.path.join(directory, name)): size
        for record in records
        for name, size in zip(record.files(), record.sizes, strict=False)
    }
    missing, changed = [], []
    for file in filter(lambda file: results.is_inside(file.path), files):
        size, item = recorded.get(os.path.normpath(file.path)), known[file.path]
        if size is None:
            missing.append(file.path)
        elif isinstance(item, MrcFile) and item.header.file_size != size:
            changed.append(f"{file.path} ({item.header.file_size} bytes for {size})")
    if missing:
        findings.error(
            "result-record",
            f"{counted(len(missing), 'file')} without a completion record",
            file=folder,
            found=list_first(missing, _SHOWN),
        )
    if changed:
        what = f"{counted(len(changed), 'file')} of another size than recorded"
        findings.error("result-changed", what, file=folder, found=list_first(changed, _SHOWN))
    elif not missing and all(isinstance(item, MrcFile) for item in known.values()):
        _warn_of_newer(folder, store, records, findings)
    return records


def _warn_of_newer(
    folder: Path, store: RecordStore, records: list[Record], findings: Findings
) -> None:
    touched = {r.tomogram for r in records if not store.is_intact(r, with_sums=False)}
    if touched:
        findings.warning(
            "result-changed",
            f"files of {counted(len(touched), 'tomogram')} newer than their completion records",
            file=folder,
            found=list_first(sorted(touched), _SHOWN),
        )


def check_orphans(
    results: Results, files: list[ImageFile], records: list[Record], findings: Findings
) -> None:
    """Look for files in the image folder that belong to no particle of the table.

    Parameters
    ----------
    results : Results
    files : list of ImageFile
        Those of the particles.
    records : list of Record
    findings : Findings
        Gets `result-orphan`: an error, as the table may have lost rows; or a warning for files of
        tomograms of which the extraction itself says that they are not in the table.
    """
    directory = results.request.directory
    wanted = {os.path.normpath(file.path) for file in files} | list_containers(results)
    if not results.is_recorded:
        stems = {split_image_name(os.path.normpath(path))[0] for path in results.images}
        wanted |= {stem + suffix for stem in stems for suffix in SUFFIXES}
    elsewhere = _list_left_out(results, records)
    orphans: list[str] = []
    others: list[str] = []
    folders = (os.path.join(directory, name, _IMAGES) for name in ("", *DIALECT_FOLDERS.values()))
    for folder, _, names in itertools.chain.from_iterable(map(os.walk, folders)):
        for path in (os.path.normpath(os.path.join(folder, name)) for name in sorted(names)):
            if path not in wanted:
                (others if path in elsewhere else orphans).append(path)
    for paths, add, whose in (
        (orphans, findings.error, "of no particle"),
        (others, findings.warning, "of tomograms that are not in the table"),
    ):
        if paths:
            what = f"{counted(len(paths), 'file')} {whose}"
            add("result-orphan", what, file=directory, found=list_first(sorted(paths), _SHOWN))


def _list_left_out(results: Results, records: list[Record]) -> set[str]:
    """Return the paths of files of tomograms that the extraction left out of the table.

    Whole ones, which records know, as a run with `--only_tomogram` leaves them; and parts of those
    that failed with `--allow_failures`, whose particles are in dropped.star.
    """
    directory, options = results.request.directory, results.options
    present = set(results.particles.columns.get(labels.TOMO_NAME, ()))
    away = [record for record in records if record.tomogram not in present]
    names = {container_name(record.tomogram) for record in away} if options.hdf5 else set()
    stems = itertools.chain(_list_failed(directory), *(record.stems for record in away))
    names.update(particle_file(s, suffix) for s in stems for suffix in options.unpacked_suffixes)
    return {os.path.normpath(os.path.join(directory, name)) for name in names}


def _list_failed(directory: str) -> list[str]:
    """Return the stems that files of particles of failed tomograms can have (spec 3.1)."""
    path = os.path.join(directory, _DROPPED)
    star = read_star(path, Findings())
    table = None if star is None else star.tables.get("particles")
    needed = (labels.TOMO_NAME, labels.PARTICLE_NAME, labels.DROP_REASON)
    if table is None or not has_columns(table, needed):
        return []
    rows = zip(*(table.columns[label] for label in needed), strict=True)
    failed = [(tomogram, name) for tomogram, name, reason in rows if reason == FAILED_TOMOGRAM]
    return [f"{_IMAGES}/{stem}" for pair in failed for stem in (pair[1], "/".join(pair))]
