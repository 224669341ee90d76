"""Whether an MRC file is what the standard, and its header, say (spec 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.io.mrc import HEADER_BYTES, MrcHeader, read_header, read_volume

Statistics = Sequence[float] | NDArray[np.floating]

_VERSIONS = (20140, 20141)
_STAMPS = (b"\x44\x44", b"\x44\x41", b"\x11\x11")
_MOST_LABELS = 10

#: Places in the header, in bytes (MRC2014); smallest, largest and mean stand together.
_AXES, _VERSION, _MAP, _STAMP, _LABELS = 64, 108, 208, 212, 220
_SMALLEST, _AFTER_MEAN, _DEVIATION, _AFTER_DEVIATION = 76, 88, 216, 220

#: Bytes of a value -> how far extremes and mean, as shares of the largest value, and the mean
#: square may be from what is stated: before values were rounded to float16, or by float32 sums.
_TOLERANCES = {2: (1e-3, 1e-5, 1e-3), 4: (1e-6, 1e-5, 1e-4)}

#: Values that are looked at together, as they fit the cache.
_BLOCK = 1 << 18


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
    is_constant : bool
        Whether all values of the file are one.
    is_negative : bool
        Whether any value is below 0.
    misstated : str
        What the header says of the values and is not so; empty for nothing.
    """

    is_finite: bool
    n_sections: int
    constant: NDArray[np.int64]
    is_constant: bool
    is_negative: bool
    misstated: str


def inspect_data(path: str) -> DataFaults:
    """Read all values of a file.

    Raises
    ------
    InputError
        As `read_header`.
    """
    return inspect_values(read_volume(path), read_header(path).statistics)


def inspect_values(data: NDArray[Any], stated: Statistics) -> DataFaults:
    """Return what is wrong with the values of a file.

    Parameters
    ----------
    data : ndarray, shape (n_sections, ny, nx)
    stated : sequence of float, shape (4,)
        Smallest, largest, mean, and standard deviation as the header has them.
    """
    step = max(1, _BLOCK // data[0].size)
    blocks = [_measure(data[first : first + step]) for first in range(0, len(data), step)]
    low, high, total, squares = map(np.concatenate, zip(*blocks, strict=True))
    extremes = float(low.min()), float(high.max())
    moments = float(total.sum()) / data.size, float(squares.sum()) / data.size
    is_finite = bool(np.isfinite(extremes).all())
    tolerances = _TOLERANCES.get(data.dtype.itemsize, _TOLERANCES[4])
    return DataFaults(
        is_finite,
        len(data),
        constant=np.flatnonzero(low == high),
        is_constant=extremes[0] == extremes[1],
        is_negative=bool((low < 0).any()),
        misstated=_find_misstated((*extremes, *moments), stated, tolerances) if is_finite else "",
    )


def _measure(data: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the smallest and largest value, sum, and sum of squares of each section."""
    values = data.astype(np.float32, copy=False)  # in float16 all this takes ten times as long
    low, high = values.min(axis=(1, 2)), values.max(axis=(1, 2))  # NaN where any value is
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.reshape(len(values), -1).sum(axis=1).astype(np.float64)
        squares = np.einsum("...i,...i->...", values, values).sum(axis=1, dtype=np.float64)
    return low, high, total, squares


def _find_misstated(
    found: tuple[float, ...], stated: Statistics, tolerances: tuple[float, float, float]
) -> str:
    """Return which statistics are not those of the values: `mean 0.1 for 0.2`.

    In MRC2014 a maximum below the minimum, a mean below both, or a deviation below 0 stand for "not
    determined"; old programs leave zeros.

    Parameters
    ----------
    found : tuple of float
        Smallest, largest, mean, and mean square.
    stated : sequence of float
        Smallest, largest, mean, and standard deviation.
    tolerances : tuple of float
        As in `_TOLERANCES`.
    """
    low, high, mean, deviation = map(float, stated)
    if not low <= high or not any((low, high, mean)):
        return ""
    largest = max(abs(found[0]), abs(found[1]))
    pairs = [
        ("minimum", found[0], low, tolerances[0] * largest),
        ("maximum", found[1], high, tolerances[0] * largest),
    ]
    if mean >= low:
        pairs.append(("mean", found[2], mean, tolerances[1] * largest))
    if mean >= low and deviation > 0:
        square = mean * mean + deviation * deviation
        pairs.append(("mean square", found[3], square, tolerances[2] * found[3]))
    wrong = [f"{what} {a:.7g} for {b:.7g}" for what, a, b, t in pairs if not abs(a - b) <= t]
    return ", ".join(wrong)
