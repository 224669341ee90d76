"""HDF5 containers as files: where they lie, and particles written to their places (spec 3.5).

The library lays a container out at its full size (`io.hdf5`); the particles are then written
straight to their places in it, by any thread and without the library's lock. Until its tomogram is
done the file lies among the completion records and lacks the signature of HDF5, so that no program
opens it: a container is complete or absent. One that is to be compressed is filled in the same way;
once it is full a compressed copy appears in its stead.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.errors import OutputError
from relion_pseudosubtomo.io.atomic import atomic_path, write_text
from relion_pseudosubtomo.io.compression import CompressionStopped, Compressor
from relion_pseudosubtomo.io.mrc import StoredValues
from relion_pseudosubtomo.io.names import leads_outside
from relion_pseudosubtomo.io.records import FOLDER

JOINED, CONTAINER_SUFFIX = "particles.h5", ".h5"

#: Suffix of an MRC file -> name of the dataset that holds the same values.
DATASETS = {
    "_stack2d.mrcs": "images",
    "_data.mrc": "images",
    "_weights.mrc": "weights",
    "_CTF2.mrc": "ctf2",
    "_multi.mrc": "multiplicity",
    "_div.mrc": "divided",
    "_data_nrm.mrc": "normalised",
    "_CTF2_nrm.mrc": "ctf2_normalised",
}
#: Those in Fourier space: their voxels are in 1/Angstrom.
IN_FOURIER_SPACE = frozenset({"_weights.mrc", "_CTF2.mrc", "_multi.mrc", "_CTF2_nrm.mrc"})

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNFINISHED, _SLOTS = "container.part", "container.slots"
#: Bytes of the blocks in which `os.stat` counts what a file takes.
_BLOCK = 512


@dataclass(frozen=True)
class Slots:
    """Where the values of each particle lie in a container.

    Attributes
    ----------
    size : int
        Bytes of the file.
    fingerprint : str
        Of the tomogram's task, as in its completion records.
    starts : list of int, length n + 1
        Units before each particle: images of stacks, else volumes.
    places : dict of str to list of int
        Suffix -> byte of the first value, bytes of a unit, byte of the first statistics.
    level : int
        With which the container is compressed once it is full; 0 leaves it as it is.
    packed_size : int
        Bytes of the compressed file; 0 before there is one.
    """

    size: int
    fingerprint: str
    starts: list[int]
    places: dict[str, list[int]]
    level: int = 0
    packed_size: int = 0


class ContainerStore:
    """The containers of an output directory.

    Parameters
    ----------
    output : str or path-like
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self._output = Path(output)

    def path(self, tomogram: str) -> Path:
        """Return the path of a tomogram's finished container."""
        return self._output / container_name(tomogram)

    def _own(self, tomogram: str, name: str) -> Path:
        return self._output / FOLDER / quote(tomogram, safe="") / name

    def create(self, tomogram: str, lay_out: Callable[[Path], Slots]) -> None:
        """Make a container without values, unless it has been begun.

        Parameters
        ----------
        tomogram : str
        lay_out : callable
            Makes the file at a path.
        """
        unfinished = self._own(tomogram, _UNFINISHED)
        if unfinished.exists():
            return
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(unfinished) as temporary:
            try:
                slots = lay_out(temporary)
                _put_signature(temporary, bytes(len(_SIGNATURE)))
            except OSError as error:
                raise _writing_error(self.path(tomogram), error) from error
            self._write_slots(tomogram, slots)

    def open(self, tomogram: str) -> ContainerWriter:
        """Open a container that has been begun.

        Raises
        ------
        OutputError
            Where there is none.
        """
        slots = self._read_slots(tomogram)
        if slots is None:
            raise OutputError(f"{self.path(tomogram)} has not been begun, or was removed meanwhile")
        return ContainerWriter(self._own(tomogram, _UNFINISHED), self.path(tomogram), slots)

    def finish(
        self, tomogram: str, threads: int = 1, stopped: Callable[[], bool] = lambda: False
    ) -> bool:
        """Let a container appear whose particles are all written; nothing where it is there.

        Parameters
        ----------
        tomogram : str
        threads : int
            That compress it, where it is to be compressed.
        stopped : callable
            True once there is no time left for that: the container is then finished another time.

        Returns
        -------
        bool
            False where it was stopped.
        """
        unfinished, final = self._own(tomogram, _UNFINISHED), self.path(tomogram)
        slots = self._read_slots(tomogram)
        if slots is None or not unfinished.exists():
            return True
        status = unfinished.stat()
        # older than the completion records, as its values are
        times = status.st_atime_ns, status.st_mtime_ns
        final.parent.mkdir(parents=True, exist_ok=True)
        if slots.level:
            try:
                self._compress(tomogram, slots, Compressor(slots.level, threads, stopped), times)
            except CompressionStopped:
                return False
            return True
        _put_signature(unfinished, _SIGNATURE)
        os.utime(unfinished, ns=times)
        os.replace(unfinished, final)
        return True

    def _compress(
        self, tomogram: str, slots: Slots, compressor: Compressor, times: tuple[int, int]
    ) -> None:
        """Write the compressed container; what it is made of goes once it is there."""
        from relion_pseudosubtomo.io import hdf5  # which imports this module

        unfinished = self._own(tomogram, _UNFINISHED)
        with atomic_path(self.path(tomogram)) as temporary:
            with UnfinishedFile(unfinished) as source:
                hdf5.compress(source, temporary, slots, compressor)
            os.utime(temporary, ns=times)
            self._write_slots(tomogram, replace(slots, packed_size=temporary.stat().st_size))
        unfinished.unlink()

    def can_continue(self, tomogram: str) -> bool:
        """Return whether particles can still be written to a container that has been begun."""
        slots = self._read_slots(tomogram)
        is_packed = slots is not None and slots.level > 0
        return not is_packed or self._own(tomogram, _UNFINISHED).exists()

    def reopen(self, tomogram: str) -> None:
        """Take a finished container back, some of whose particles are done again."""
        unfinished, final = self._own(tomogram, _UNFINISHED), self.path(tomogram)
        if not unfinished.exists():
            os.replace(final, unfinished)
        final.unlink(missing_ok=True)
        _put_signature(unfinished, bytes(len(_SIGNATURE)))

    def remove(self, tomogram: str) -> None:
        """Remove a tomogram's container, finished or not, if it is one of this program."""
        slots = self._own(tomogram, _SLOTS)
        if slots.exists():
            self.path(tomogram).unlink(missing_ok=True)
            self._own(tomogram, _UNFINISHED).unlink(missing_ok=True)
            slots.unlink()

    def suffixes(self, tomogram: str) -> tuple[str, ...]:
        """Return the suffixes of the MRC files that a tomogram's container stands for."""
        slots = self._read_slots(tomogram)
        return () if slots is None else tuple(slots.places)

    def remove_unpacked(self, stems: Iterable[str], suffixes: Iterable[str]) -> None:
        """Remove the MRC files that `unpack` has made of particles.

        Parameters
        ----------
        stems : iterable of str
            Paths without suffix, inside the output directory.
        suffixes : iterable of str
            Keys of `DATASETS`.
        """
        by_folder: dict[str, list[str]] = {}
        for stem in stems:
            by_folder.setdefault(os.path.dirname(stem), []).append(stem)
        for folder, inside in by_folder.items():
            if (self._output / folder).is_dir():  # else nothing was unpacked: no file is looked for
                for suffix in suffixes:
                    for stem in inside:
                        (self._output / f"{stem}{suffix}").unlink(missing_ok=True)

    def disk_bytes(self, tomograms: Iterable[str] | None = None) -> int:
        """Return the bytes that `remove` frees, of all tomograms where none are given."""
        n_bytes = 0
        for tomogram in self.tomograms() if tomograms is None else tomograms:
            for path in (self.path(tomogram), self._own(tomogram, _UNFINISHED)):
                with contextlib.suppress(OSError):  # one of the two is not there
                    n_bytes += path.stat().st_blocks * _BLOCK  # one that is being filled has holes
        return n_bytes

    def tomograms(self) -> list[str]:
        """Return the tomograms that have a container of this program, finished or not."""
        places = (self._output / FOLDER).glob(f"*/{_SLOTS}")
        names = [unquote(place.parent.name) for place in places]
        return [name for name in names if not leads_outside(name)]

    def is_intact(self, tomogram: str, fingerprint: str) -> bool:
        """Return whether a container is there, of this task, whole, and not newer than its records.

        One that is not finished may be newer: particles without a record are written again.
        """
        slots = self._read_slots(tomogram)
        if slots is None or slots.fingerprint != fingerprint:
            return False
        final, unfinished = self.path(tomogram), self._own(tomogram, _UNFINISHED)
        records = unfinished.parent.glob("*.json")
        try:
            if unfinished.exists():
                return unfinished.stat().st_size == slots.size
            status, newest = final.stat(), max(record.stat().st_mtime_ns for record in records)
            size = slots.packed_size if slots.level else slots.size
            return status.st_size == size and status.st_mtime_ns <= newest
        except (OSError, ValueError):
            return False

    def _write_slots(self, tomogram: str, slots: Slots) -> None:
        write_text(self._own(tomogram, _SLOTS), json.dumps(asdict(slots)) + "\n")

    def _read_slots(self, tomogram: str) -> Slots | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            text = self._own(tomogram, _SLOTS).read_text(encoding="utf-8")
            return Slots(**json.loads(text))
        return None


class ContainerWriter:
    """Writes particles to their places in a container; all threads of a rank share one.

    Parameters
    ----------
    path : Path
        The file.
    final : Path
        Its name once it is finished, for messages.
    slots : Slots
    """

    def __init__(self, path: Path, final: Path, slots: Slots) -> None:
        self._final, self._slots = final, slots
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _writing_error(self._final, error) from error

    def write(self, index: int, suffix: str, stored: StoredValues) -> int:
        """Write what would be one MRC file; return its bytes.

        Parameters
        ----------
        index : int
            Of the particle, in its tomogram's task.
        suffix : str
            Of the MRC file.
        stored : StoredValues
        """
        values, unit, statistics = self._slots.places[suffix]
        first, stop = self._slots.starts[index : index + 2]
        if stored.values.nbytes != (stop - first) * unit:
            raise OutputError(
                f"{self._final}, particle {index}: expected {(stop - first) * unit} bytes, found "
                f"{stored.values.nbytes}"
            )
        try:
            self._write_at(values + first * unit, stored.values)
            self._write_at(statistics + index * stored.statistics.nbytes, stored.statistics)
        except OSError as error:
            raise _writing_error(self._final, error) from error
        return stored.values.nbytes + stored.statistics.nbytes

    def _write_at(self, offset: int, values: NDArray[np.floating]) -> None:
        pending = values.reshape(-1).view(np.uint8).data
        while pending:
            written = os.pwrite(self._descriptor, pending, offset)
            pending, offset = pending[written:], offset + written

    def __enter__(self) -> ContainerWriter:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        os.close(self._descriptor)


class UnfinishedFile(io.FileIO):
    """A container without its signature, read as if it had it: the file itself is not changed."""

    def readinto(self, buffer: Any) -> int | None:
        """Read from the present place on."""
        place, view = self.tell(), memoryview(buffer).cast("B")
        n_read = super().readinto(view)
        missing = _SIGNATURE[place : place + (n_read or 0)]
        view[: len(missing)] = missing
        return n_read


def container_name(tomogram: str) -> str:
    """Return the path of a tomogram's container inside the output directory (spec 3.5)."""
    return f"Subtomograms/{tomogram}{CONTAINER_SUFFIX}"


def _writing_error(final: Path, error: OSError) -> OutputError:
    return OutputError(f"{final} could not be written: {error.strerror or error}")


def _put_signature(path: Path, signature: bytes) -> None:
    """Overwrite the first bytes of a file: with HDF5's signature it is one, else it is none."""
    with open(path, "r+b", buffering=0) as file:
        file.write(signature)
