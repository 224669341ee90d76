"""The files of one particle: what goes into which, and where they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import volumes
from relion_pseudosubtomo.core.subtomogram import Subtomogram
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.io.containers import ContainerWriter
from relion_pseudosubtomo.model import Task
from relion_pseudosubtomo.options import JobOptions, particle_file

#: (suffix, array, voxel size) of one output file.
OutputFile = tuple[str, NDArray[np.float32], float]


class ParticleWriter:
    """Writes the particles of one task, each wherever it goes; threads may share it.

    Parameters
    ----------
    options : JobOptions
    task : Task
    container : ContainerWriter or None
        Of the task's tomogram, where there is one.
    """

    def __init__(
        self, options: JobOptions, task: Task, container: ContainerWriter | None = None
    ) -> None:
        self._options = options
        self._task = task
        self._container = container
        self._folders: set[Path] = set()

    def write(self, i: int, files: list[OutputFile]) -> tuple[int, int]:
        """Write particle `i` of the task; return bytes and clipped values.

        Raises
        ------
        OutputError
            Where a file cannot be written.
        """
        options = self._options
        n_bytes, n_clipped = (0, 0) if options.no_mrc else self._write_mrc(i, files)
        if self._container is not None:
            results = files[: len(options.result_suffixes)]  # behind them are those of dialects
            kept = [mrc.store_values(array, float16=options.float16) for _, array, _ in results]
            for (suffix, _, _), stored in zip(results, kept, strict=True):
                n_bytes += self._container.write(self._task.first + i, suffix, stored)
            if options.no_mrc:  # else they are counted already
                n_clipped = sum(stored.n_clipped for stored in kept)
        return n_bytes, n_clipped

    def _write_mrc(self, i: int, files: list[OutputFile]) -> tuple[int, int]:
        stem, options = self._task.stems[i], self._options
        n_bytes = n_clipped = 0
        paths = [Path(options.output, particle_file(stem, suffix)) for suffix, _, _ in files]
        for folder in dict.fromkeys(path.parent for path in paths):
            if folder not in self._folders:  # two threads may make the same, which does no harm
                make_folder(folder)
                self._folders.add(folder)
        for path, (suffix, array, voxel) in zip(paths, files, strict=True):
            written, clipped = mrc.write_mrc(
                path,
                array,
                voxel_size=voxel,
                is_stack=suffix.endswith(".mrcs"),
                float16=options.float16,
            )
            n_bytes += written
            n_clipped += clipped
        return n_bytes, n_clipped


def volume_files(options: JobOptions, subtomogram: Subtomogram, voxel: float) -> list[OutputFile]:
    """Return every file of a 3D particle (spec 2.10, 3.2)."""
    data, weight = subtomogram.data, subtomogram.weight
    multiplicity = subtomogram.multiplicity
    files: list[OutputFile] = [("_data.mrc", data, voxel)]
    if not options.no_comb:
        files.append(("_weights.mrc", subtomogram.weights, 1 / voxel))
    if options.ctf:
        files.append(("_CTF2.mrc", volumes.expand_centred(weight), 1 / voxel))
    if options.multi:
        files.append(("_multi.mrc", volumes.expand_centred(multiplicity), 1 / voxel))
    if options.div:
        centre = not options.no_center
        divided = volumes.tapered_division(data, weight, options.snr, options.taper, centre=centre)
        files.append(("_div.mrc", divided, voxel))
    if options.nrm:
        normalised = volumes.normalise_by_multiplicity(data, multiplicity)
        weight_normalised = volumes.divide_or_zero(weight, multiplicity)
        files.append(("_data_nrm.mrc", normalised, voxel))
        files.append(("_CTF2_nrm.mrc", volumes.expand_centred(weight_normalised), 1 / voxel))
    return files


def spread_frames(stack: NDArray[np.float32], visible: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a stack of all frames from that of the visible ones, the others filled with zeros.

    Parameters
    ----------
    stack : ndarray, shape (n_visible, n, n)
    visible : ndarray, shape (n_frames,)

    Returns
    -------
    ndarray, shape (n_frames, n, n)
    """
    spread = np.zeros((len(visible), *stack.shape[1:]), stack.dtype)
    spread[visible] = stack
    return spread
