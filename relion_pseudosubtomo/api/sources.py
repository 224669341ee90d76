"""Where a data set's images come from: HDF5 containers, or MRC files."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.io import hdf5
from relion_pseudosubtomo.io.mrc import read_volume

Floats = NDArray[np.floating]

#: Containers that a process keeps open at a time.
MOST_OPEN = 32


class Source(Protocol):
    """Reads the values of one particle after the other, in any order."""

    def read(self, row: int) -> tuple[Floats, Floats | None]:
        """Return the images, and the weights, where there are any, of a particle."""
        ...


@dataclass
class ContainerSource:
    """Particles in HDF5 containers; each process opens them for itself, when it needs them.

    Threads, and the slices of a data set, share what is open.

    Attributes
    ----------
    paths : list of str
        Absolute paths of the containers.
    first_particle : ndarray, shape (n_containers + 1,), int64
        Rows before each container.
    """

    paths: list[str]
    first_particle: NDArray[np.int64]
    _files: _OpenFiles | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to another process: no open files."""
        return {**self.__dict__, "_files": None}

    def read(self, row: int) -> tuple[Floats, Floats | None]:
        """Return the images and weights of a particle."""
        index = int(np.searchsorted(self.first_particle, row, side="right")) - 1
        files = self._files
        if files is None or files.process != os.getpid():
            # what was opened before a fork is the parent's, as is the lock, which may be held
            files = self._files = _OpenFiles(os.getpid())
        return files.read(index, self.paths[index], row - int(self.first_particle[index]))


@dataclass
class _OpenFiles:
    """The containers that a process has open; one thread at a time reads."""

    process: int
    containers: OrderedDict[int, _OpenContainer] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, index: int, path: str, row: int) -> tuple[Floats, Floats | None]:
        with self.lock:  # another thread would close the file; the library reads one by one anyway
            if index not in self.containers:
                if len(self.containers) >= MOST_OPEN:
                    self.containers.popitem(last=False)[1].file.close()
                self.containers[index] = _OpenContainer(hdf5.open_container(path))
            self.containers.move_to_end(index)
            return self.containers[index].read(row)


class _OpenContainer:
    """An open container, with all that reading a particle needs at hand."""

    def __init__(self, file: hdf5.File) -> None:
        self.file = file
        self._images = file["images"]
        self._offsets = file["offsets"][:] if file.attrs["is_stack"] else None
        self._weights = file.get("weights")

    def read(self, row: int) -> tuple[Floats, Floats | None]:
        if self._offsets is not None:
            first, stop = self._offsets[row : row + 2]
            return self._images[first:stop], None
        return self._images[row], None if self._weights is None else self._weights[row]


@dataclass(frozen=True)
class FileSource:
    """Particles in MRC files, as RELION reads them.

    Attributes
    ----------
    images : list of str
        Absolute paths.
    weights : list of str or None
        Absolute paths of `_weights.mrc`; None for stacks.
    """

    images: list[str]
    weights: list[str] | None

    def read(self, row: int) -> tuple[Floats, Floats | None]:
        """Return the images and weights of a particle."""
        images = np.array(read_volume(self.images[row]))
        if self.weights is None or not os.path.exists(self.weights[row]):  # as with --no_comb
            return images, None
        weights = np.array(read_volume(self.weights[row]))
        return images, weights.reshape(2, -1, *weights.shape[1:])


@dataclass(frozen=True)
class SelectedSource:
    """Some particles of another source, in any order.

    Attributes
    ----------
    source : Source
    rows : ndarray, shape (n,), int64
        Of the other source.
    """

    source: Source
    rows: NDArray[np.int64]

    def read(self, row: int) -> tuple[Floats, Floats | None]:
        """Return the images and weights of a particle."""
        return self.source.read(int(self.rows[row]))
