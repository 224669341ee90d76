"""HDF5 containers of an output directory: there, whole, and fitting the table."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.containers import JOINED, container_name
from relion_pseudosubtomo.verification.results import Results

_SHOWN = 3


def is_packed(results: Results) -> bool:
    """Return whether the images are in containers alone: `unpack` has not been used."""
    options = results.options
    return results.is_recorded and options.no_mrc and not os.path.exists(results.images[0])


def check_containers(results: Results, findings: Findings) -> None:
    """Check that the container of each tomogram is there and holds the table's particles.

    Parameters
    ----------
    results : Results
    findings : Findings
        Gets `result-missing`, `result-unreadable` and `result-table`.
    """
    from relion_pseudosubtomo.io import hdf5  # most directories have none

    names = np.asarray(results.names, dtype=object)
    tomograms = results.particles.columns[labels.TOMO_NAME]
    folder = Path(results.request.directory)
    missing = []
    for tomogram in dict.fromkeys(tomograms):
        path = folder / container_name(tomogram)
        if not path.exists():
            missing.append(str(path))
            continue
        try:
            with hdf5.open_container(path) as file:
                found = hdf5.read_text(file["table"][labels.PARTICLE_NAME])
        except InputError as error:
            findings.error("result-unreadable", str(error))
            continue
        if found.tolist() != names[tomograms == tomogram].tolist():
            findings.error(
                "result-table", "other particles than in the container", file=path,
                expected=f"{np.count_nonzero(tomograms == tomogram)} of {tomogram}",
                found=f"{len(found)}",
            )  # fmt: skip
    if not (folder / JOINED).exists():
        missing.append(str(folder / JOINED))
    if missing:
        findings.error("result-missing", "container missing", found=list_first(missing, _SHOWN))


def list_containers(results: Results) -> set[str]:
    """Return the paths of all containers that belong to the table; none without `--hdf5`."""
    if not (results.is_recorded and results.options.hdf5):
        return set()
    tomograms = dict.fromkeys(results.particles.columns.get(labels.TOMO_NAME, ()))
    directory = results.request.directory
    return {os.path.normpath(os.path.join(directory, container_name(t))) for t in tomograms}
