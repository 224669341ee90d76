"""MRC files: headers, single tilt images as views of the file, and finished results (spec 3.2)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile import utils
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

from relion_pseudosubtomo.errors import InputError, reading_error
from relion_pseudosubtomo.io.atomic import atomic_path
from relion_pseudosubtomo.model.tomogram_set import FrameImage

HEADER_BYTES = HEADER_DTYPE.itemsize

#: Modes of real-valued images: int8, int16, float32, uint16, float16.
READABLE_MODES = (0, 1, 2, 6, 12)

#: The largest number that float16 holds.
FLOAT16_MAX = 65504.0

#: More columns, rows or images than this are taken for a damaged header.
_LARGEST_SIZE = 1 << 24

_HIGHEST_MODE = 200
_HEADER_THREADS = 8

#: Little-endian, big-endian.
_HEADER_DTYPES = tuple(HEADER_DTYPE.newbyteorder(order) for order in "<>")
_BIG_ENDIAN_STAMP = 0x11

#: Below this share of the mean square, the variance is lost in the rounding of float32 sums.
_LEAST_VARIANCE = 1e-4

#: Smaller squares lose digits in float16.
_LEAST_SQUARE_FLOAT16 = 1e-3

#: A mean of more deviations than this drowns them in float16.
_FAR_MEAN = 10.0

_STATISTICS = ("dmin", "dmax", "dmean", "rms")
_VOLUME_SPACE_GROUP = 1
_MRC_VERSION = 20141
_LABEL = b"relion_pseudosubtomo"


@dataclass(frozen=True)
class MrcHeader:
    """What the header of an MRC file says.

    Attributes
    ----------
    path : str
        The file.
    nx, ny, nz : int
        Columns, rows, and sections or images.
    mode : int
        MRC mode.
    dtype : dtype
        Of the values, byte order included.
    data_offset : int
        Bytes before the first value.
    voxel_size : float
        Along x, in Angstrom; 0 where the header does not tell.
    mz, ispg : int
        Sections in the unit cell, and the space group.
    statistics : tuple of float
        Smallest, largest, mean, and standard deviation, as far as they are stated
        (`mrc_validation`).
    file_size : int
        Bytes.
    """

    path: str
    nx: int
    ny: int
    nz: int
    mode: int
    dtype: np.dtype
    data_offset: int
    voxel_size: float
    mz: int
    ispg: int
    statistics: tuple[float, float, float, float]
    file_size: int


def image_path(text: str) -> str:
    """Return the path of an image file without IMOD's suffix, as in `name.st:mrc`."""
    for suffix in (":mrcs", ":mrc"):
        text = text.removesuffix(suffix)
    return text


def read_header(path: str) -> MrcHeader:
    """Read and check the header of an MRC file; no image data are read.

    Parameters
    ----------
    path : str
        The file, without IMOD's suffix.

    Raises
    ------
    InputError
        Where the file cannot be read (for a missing one caused by FileNotFoundError), is no MRC
        file, has values of an unknown mode, or holds fewer bytes than its header promises.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            head = file.read(HEADER_BYTES)
            file_size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise reading_error(f"{path} cannot be read: {error.strerror}", error) from error
    fields = _parse_fields(path, head)
    nx, ny, nz, mode = (int(fields[name]) for name in ("nx", "ny", "nz", "mode"))
    if mode not in READABLE_MODES:
        modes = ", ".join(map(str, READABLE_MODES))
        raise InputError(f"MRC mode of {path}: expected one of {modes}, found {mode}")
    dtype = utils.dtype_from_mode(mode).newbyteorder(fields.dtype["nx"].byteorder)
    offset = HEADER_BYTES + int(fields["nsymbt"])
    expected = offset + nx * ny * nz * dtype.itemsize
    if file_size < expected:
        raise InputError(
            f"{path} is truncated ({nx} x {ny} x {nz} values of mode {mode}): "
            f"expected {expected} bytes, found {file_size}"
        )
    mx = int(fields["mx"])
    low, high, mean, deviation = (float(fields[name]) for name in _STATISTICS)
    return MrcHeader(
        path=path,
        nx=nx,
        ny=ny,
        nz=nz,
        mode=mode,
        dtype=dtype,
        data_offset=offset,
        voxel_size=float(fields["cella"]["x"]) / mx if mx > 0 else 0.0,
        mz=int(fields["mz"]),
        ispg=int(fields["ispg"]),
        statistics=(low, high, mean, deviation),
        file_size=file_size,
    )


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe does not wait for a writer, and is found to be too short."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_headers(paths: Iterable[str]) -> dict[str, MrcHeader | InputError]:
    """Read many headers at once; parallel file systems answer slowly, but many at a time.

    Returns
    -------
    dict of str to MrcHeader or InputError
        Path -> header, or what is wrong with the file.
    """
    unique = list(dict.fromkeys(paths))
    shares = [unique[i::_HEADER_THREADS] for i in range(_HEADER_THREADS)]
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        read = dict(pair for share in pool.map(_read_share, shares) for pair in share)
    return {path: read[path] for path in unique}


def _read_share(paths: list[str]) -> list[tuple[str, MrcHeader | InputError]]:
    share: list[tuple[str, MrcHeader | InputError]] = []
    for path in paths:
        try:
            share.append((path, read_header(path)))
        except InputError as error:
            share.append((path, error))
    return share


def _parse_fields(path: str, head: bytes) -> np.void:
    """Return the header in the byte order in which it makes sense; the machine stamp breaks ties.

    Stamps alone are not trusted: old programs leave them empty.
    """
    if len(head) < HEADER_BYTES:
        raise InputError(
            f"{path} is no MRC file: expected a header of {HEADER_BYTES} bytes, found {len(head)}"
        )
    both = [np.frombuffer(head, dtype)[0] for dtype in _HEADER_DTYPES]
    plausible = [fields for fields in both if _is_plausible(fields)]
    if len(plausible) == 1:
        return plausible[0]
    is_big_endian = both[0]["machst"][0] == _BIG_ENDIAN_STAMP
    fields = both[int(is_big_endian)]
    if not plausible:
        if fields["map"] != b"MAP ":
            raise InputError(f"{path} is no MRC file: expected 'MAP ' in its header")
        sizes = " x ".join(str(fields[name]) for name in ("nx", "ny", "nz"))
        raise InputError(
            f"header of {path} makes no sense: expected sizes from 1 to {_LARGEST_SIZE}, "
            f"found {sizes}, mode {fields['mode']}, {fields['nsymbt']} bytes of extended header"
        )
    return fields


def _is_plausible(fields: np.void) -> bool:
    sizes = (int(fields[name]) for name in ("nx", "ny", "nz"))
    return (
        all(0 < size <= _LARGEST_SIZE for size in sizes)
        and 0 <= fields["mode"] <= _HIGHEST_MODE
        and fields["nsymbt"] >= 0
    )


def map_image(header: MrcHeader, index: int) -> NDArray[np.generic]:
    """Return image `index` (from 0) as a read-only view of the file, shape (ny, nx).

    In the file's own type and byte order; pixels are read when they are used.

    Raises
    ------
    InputError
        Where there is no such image.
    """
    if not 0 <= index < header.nz:
        raise InputError(
            f"image {index + 1} of {header.path}: expected 1 to {header.nz}, found {index + 1}"
        )
    return _map_data(header)[index]


def map_series(frames: tuple[FrameImage, ...]) -> list[NDArray[np.generic]]:
    """Return the tilt images of a series as views, (ny, nx) each, mapping every file once.

    Raises
    ------
    InputError
        Where a file cannot be read or lacks the image.
    """
    headers = {path: read_header(path) for path in dict.fromkeys(f.path for f in frames)}
    views = {path: _map_data(header) for path, header in headers.items()}
    for frame in frames:
        if frame.index >= len(views[frame.path]):
            map_image(headers[frame.path], frame.index)
    return [views[frame.path][frame.index] for frame in frames]


def read_series(
    frames: tuple[FrameImage, ...], used: Sequence[int]
) -> Iterator[NDArray[np.generic]]:
    """Read tilt images in full, one after the other in the files' order; others are empty.

    Parameters
    ----------
    frames : tuple of FrameImage
        A whole series.
    used : sequence of int
        Frames that are read, ascending.

    Yields
    ------
    ndarray, shape (ny, nx), or (0, 0) for a frame that is not used
        Of every frame, in the file's own type and byte order.

    Raises
    ------
    InputError
        Where a file cannot be read or lacks the image.
    """
    headers = {path: read_header(path) for path in dict.fromkeys(f.path for f in frames)}
    wanted = set(used)
    for i, frame in enumerate(frames):
        header = headers[frame.path]
        if i not in wanted:
            yield np.empty((0, 0), header.dtype)
            continue
        map_image(header, frame.index)
        n_pixels = header.ny * header.nx
        offset = header.data_offset + frame.index * n_pixels * header.dtype.itemsize
        image = np.fromfile(header.path, header.dtype, n_pixels, offset=offset)
        if len(image) < n_pixels:
            raise InputError(
                f"image {frame.index + 1} of {header.path}: expected {n_pixels} pixels, "
                f"found {len(image)}"
            )
        yield image.reshape(header.ny, header.nx)


def read_volume(path: str) -> NDArray[np.generic]:
    """Return a volume as a read-only view of the file, shape (nz, ny, nx).

    Raises
    ------
    InputError
        As `read_header`.
    """
    return _map_data(read_header(path))


def _map_data(header: MrcHeader) -> NDArray[np.generic]:
    shape = (header.nz, header.ny, header.nx)
    mapped = np.memmap(header.path, header.dtype, "r", header.data_offset, shape)
    return mapped.view(np.ndarray)


def read_ahead(images: Iterable[NDArray[np.generic]]) -> None:
    """Ask the system to read mapped images before they are used; returns at once.

    Parameters
    ----------
    images : iterable of ndarray, shape (ny, nx)
        Views as from `map_series`.
    """
    for image in images:
        owner: Any = image
        while not isinstance(owner, mmap.mmap):
            owner = owner.base
        start = image.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        aligned = start - start % mmap.PAGESIZE
        owner.madvise(mmap.MADV_WILLNEED, aligned, start - aligned + image.nbytes)


def write_mrc(
    path: str | os.PathLike[str],
    data: NDArray[np.float32],
    *,
    voxel_size: float,
    is_stack: bool,
    float16: bool,
) -> tuple[int, int]:
    """Write a volume or an image stack, whole or not at all (spec 3.2).

    Parameters
    ----------
    path : str or path-like
        The file; its folder has to exist.
    data : ndarray, shape (nz, ny, nx), float32
        The values.
    voxel_size : float
        In Angstrom, or 1/Angstrom in Fourier space.
    is_stack : bool
        An image stack (ispg 0, mz 1) instead of a volume (ispg 1, mz nz).
    float16 : bool
        Half precision (mode 12); values beyond +-65504 are clipped.

    Returns
    -------
    n_bytes : int
        Size of the file.
    n_clipped : int
        How many values were clipped.

    Raises
    ------
    OutputError
        Where the file cannot be written.
    """
    stored = store_values(data, float16=float16)
    n_bytes = write_stored(path, stored, voxel_size=voxel_size, is_stack=is_stack)
    return n_bytes, stored.n_clipped


@dataclass(frozen=True)
class StoredValues:
    """Values as they stand in a result file, with what its header says of them.

    Attributes
    ----------
    values : ndarray, shape (nz, ny, nx), float32 or float16, little-endian
    statistics : ndarray, shape (4,), float32
        Smallest, largest, mean, and standard deviation; -1 for one that is not stated.
    n_clipped : int
        How many values were clipped to float16's range.
    """

    values: NDArray[np.floating]
    statistics: NDArray[np.float32]
    n_clipped: int = 0


def store_values(data: NDArray[np.float32], *, float16: bool) -> StoredValues:
    """Return values as they are stored; parameters as for `write_mrc`."""
    data = np.ascontiguousarray(data, dtype=np.float32)
    low, high = float(data.min()), float(data.max())
    n_clipped = 0
    if float16 and not -FLOAT16_MAX <= low <= high <= FLOAT16_MAX:
        n_clipped = int(np.count_nonzero(np.abs(data) > FLOAT16_MAX))
        data = np.clip(data, -FLOAT16_MAX, FLOAT16_MAX)
        low, high = float(data.min()), float(data.max())
    stored = data.astype("<f2" if float16 else "<f4", copy=False)
    # Of the values as stored, and exact: readers that check a mean near zero see the rounding.
    mean = float(stored.sum(dtype=np.float64)) / stored.size
    deviation = _stated_deviation(stored, mean, _deviation(data, mean))
    extremes = stored.dtype.type(low), stored.dtype.type(high)
    return StoredValues(stored, np.array([*extremes, mean, deviation], np.float32), n_clipped)


def write_stored(
    path: str | os.PathLike[str], stored: StoredValues, *, voxel_size: float, is_stack: bool
) -> int:
    """Write stored values as `write_mrc` does; return the size of the file."""
    header = _make_header(stored.values, voxel_size, is_stack)
    for name, value in zip(_STATISTICS, stored.statistics, strict=True):
        header[name] = value
    with atomic_path(path) as temporary:
        return _write_at_once(temporary, header, stored.values)


def _deviation(data: NDArray[np.float32], mean: float) -> float:
    """Return the standard deviation: sums of rows in float32, of the rows in float64."""
    rows = np.einsum("...i,...i->...", data, data)
    mean_square = float(rows.sum(dtype=np.float64)) / data.size
    variance = mean_square - mean * mean
    if variance > _LEAST_VARIANCE * mean_square:
        return float(np.sqrt(variance))
    return float(data.std(dtype=np.float64))


def _stated_deviation(stored: NDArray[np.generic], mean: float, deviation: float) -> float:
    """Return the deviation for the header: -1, "not determined", where validators would reject it.

    `mrcfile.validate` sums float16 values and their squares in float16: for most images too much.
    """
    if stored.dtype.itemsize == np.dtype(np.float32).itemsize:
        return deviation
    square = deviation * deviation
    largest = stored.size * max(square, abs(mean))
    keeps_digits = square > _LEAST_SQUARE_FLOAT16 and abs(mean) < _FAR_MEAN * deviation
    is_followed = (keeps_digits or deviation == 0) and largest < FLOAT16_MAX
    return deviation if is_followed else -1.0


def _make_header(stored: NDArray[np.generic], voxel_size: float, is_stack: bool) -> np.ndarray:
    nz, ny, nx = stored.shape
    mz = 1 if is_stack else nz
    header = np.zeros(1, _HEADER_DTYPES[0])
    for name, value in (
        ("nx", nx), ("ny", ny), ("nz", nz), ("mx", nx), ("my", ny), ("mz", mz),
        ("mode", utils.mode_from_dtype(stored.dtype)),
        ("cella", (nx * voxel_size, ny * voxel_size, mz * voxel_size)),
        ("cellb", (90.0, 90.0, 90.0)), ("mapc", 1), ("mapr", 2), ("maps", 3),
        ("ispg", 0 if is_stack else _VOLUME_SPACE_GROUP), ("nversion", _MRC_VERSION),
        ("map", b"MAP "), ("machst", utils.machine_stamp_from_byte_order("<")), ("nlabl", 1),
    ):  # fmt: skip
        header[name] = value
    header["label"][0, 0] = _LABEL
    return header


def _write_at_once(path: Path, *parts: NDArray[Any]) -> int:
    """Write contiguous arrays with one call of the system, and more only where it stops short."""
    pending = [part.reshape(-1).view(np.uint8).data for part in parts]
    n_bytes = sum(len(part) for part in pending)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while pending:
            written = os.writev(descriptor, pending)
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if pending:
                pending[0] = pending[0][written:]
    finally:
        os.close(descriptor)
    return n_bytes
