"""Whether an MRC file is what the standard, and its header, say (spec 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.io.mrc import HEADER_BYTES, MrcHeader, read_header, read_volume

_VERSIONS = (20140, 20141)
_STAMPS = (b"\x44\x44", b"\x44\x41", b"\x11\x11")
_MOST_LABELS = 10

#: Places in the header, in bytes (MRC2014); smallest, largest and mean stand together.
_AXES, _VERSION, _MAP, _STAMP, _LABELS = 64, 108, 208, 212, 220
_SMALLEST, _AFTER_MEAN, _DEVIATION, _AFTER_DEVIATION = 76, 88, 216, 220


@dataclass(frozen=True)
class MrcFile:
    """What is known of a file without its data.

    Attributes
    ----------
    header : MrcHeader
    faults : tuple of str
        Where it departs from MRC2014.
    statistics : bytes
        Smallest, largest, mean and standard deviation of the values, four float32 as they stand in
        the header.
    """

    header: MrcHeader
    faults: tuple[str, ...]
    statistics: bytes


def inspect_file(path: str) -> MrcFile | InputError:
    """Return header and faults of a file, or why it cannot be read."""
    try:
        header = read_header(path)
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEADER_BYTES)
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{path} cannot be read: {error.strerror}")
    statistics = head[_SMALLEST:_AFTER_MEAN] + head[_DEVIATION:_AFTER_DEVIATION]
    return MrcFile(header, tuple(_find_faults(header, head)), statistics)


def _find_faults(header: MrcHeader, head: bytes) -> list[str]:
    order = "<" if head[_STAMP : _STAMP + 1] == b"\x44" else ">"

    def read(place: int, n: int = 1) -> list[int]:
        return [int(value) for value in np.frombuffer(head, f"{order}i4", n, place)]

    is_volume = header.ispg > 0
    end = header.data_offset + header.nx * header.ny * header.nz * header.dtype.itemsize
    rules = (
        (head[_MAP : _MAP + 4] == b"MAP ", "no 'MAP '"),
        (head[_STAMP : _STAMP + 2] in _STAMPS, "machine stamp unknown"),
        (read(_VERSION)[0] in _VERSIONS, f"version {read(_VERSION)[0]}"),
        (sorted(read(_AXES, 3)) == [1, 2, 3], "axes are no order of 1, 2, 3"),
        (0 <= read(_LABELS)[0] <= _MOST_LABELS, "number of labels"),
        (header.mz == (header.nz if is_volume else 1), f"mz {header.mz} for ispg {header.ispg}"),
        (header.file_size == end, f"{header.file_size - end} bytes behind the data"),
    )
    return [fault for is_good, fault in rules if not is_good]


@dataclass(frozen=True)
class DataFaults:
    """What is wrong with the values of a file.

    Attributes
    ----------
    is_finite : bool
    n_sections : int
    constant : ndarray of int64
        Sections in which all values are one.
    is_negative : bool
        Whether any value is below 0.
    """

    is_finite: bool
    n_sections: int
    constant: NDArray[np.int64]
    is_negative: bool


def inspect_data(path: str) -> DataFaults:
    """Read all values of a file.

    Raises
    ------
    InputError
        As `read_header`.
    """
    return inspect_values(read_volume(path))


def inspect_values(data: NDArray[Any]) -> DataFaults:
    """Return what is wrong with the values of a file, shape (n_sections, ny, nx)."""
    low, high = data.min(axis=(1, 2)), data.max(axis=(1, 2))  # NaN where any value is
    is_finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
    constant = np.flatnonzero(low == high)
    return DataFaults(is_finite, len(data), constant, bool((low < 0).any()))
