"""The kernels in NumPy: what each compiled kernel computes, and the fallback where there is none.

Most kernels do one frame of a particle. Arrays are those of the compiled kernels: slices of shape
(s/2 + 1, s) as [kx, ky] with ky in FFT order, the packed volume of shape (n + 3, n + 3, n/2 + 2, 4)
as [z, y, x, (re, im, weight, multiplicity)] with j_z and j_y counted from -n/2 - 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray
IMAGE_DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def copy_rows(
    image_bytes: Array, mode: int, corner: Array, first_row: int, rows: Array, parts: int = 1
) -> int:
    """Copy rows of a window as float32, repeating edge pixels; return how many are not finite.

    Parameters
    ----------
    image_bytes : ndarray, shape (height, width * itemsize), uint8
        The tilt image as bytes, in the machine's byte order.
    mode : int
        Its MRC mode: 0, 1, 2, 6 or 12.
    corner : ndarray, shape (2,), int64
        Image pixel (x, y) of the window's first; may lie outside the image.
    first_row : int
        Row of the window that is copied first.
    rows : ndarray, shape (n_rows, row_length), float32
        Filled.
    parts : int
        Above 1, the pairs of pixels of each row are dealt out in turn to so many parts, which then
        follow each other in the row.
    """
    if mode not in IMAGE_DTYPES:
        raise ValueError(f"image mode: expected one of {sorted(IMAGE_DTYPES)}, found {mode}")
    n_rows, length = rows.shape
    image = image_bytes.view(IMAGE_DTYPES[mode])
    y = np.clip(corner[1] + first_row + np.arange(n_rows), 0, image.shape[0] - 1)
    x = np.clip(corner[0] + np.arange(length), 0, image.shape[1] - 1)
    pairs = (-1, parts, 2) if parts > 1 else (-1, 1, 1)
    dealt = image[y[:, None], x[None, :]].reshape(n_rows, *pairs).swapaxes(1, 2)
    rows[:] = dealt.reshape(rows.shape)
    return int(np.count_nonzero(~np.isfinite(rows)))


def bin_image(
    image_bytes: Array, mode: int, taps: Array, factor: int, margin: int, binned: Array
) -> int:
    """Filter a tilt image at every q-th pixel, repeating edge pixels; return how many are bad.

    Parameters
    ----------
    image_bytes : ndarray, shape (height, width * itemsize), uint8
        The image as bytes.
    mode : int
        Its MRC mode.
    taps : ndarray, shape (2 M + 1,), float32
        Symmetric filter, applied along both axes.
    factor : int
        q, at most M + 1.
    margin : int
        Pixels put before the image.
    binned : ndarray, shape (ny, nx), float32
        Filled: sample (y, x) is that of pixel (q y - margin, q x - margin).

    Returns
    -------
    int
        Samples that are not finite.
    """
    image = image_bytes.view(IMAGE_DTYPES[mode])
    for axis in range(2):
        n, size = binned.shape[axis], image.shape[axis]
        length = factor * (n - 1) + len(taps)
        pixels = np.clip(np.arange(length) - margin - len(taps) // 2, 0, size - 1)
        image = _filter_axis(image.take(pixels, axis), taps, factor, np.arange(n), axis)
    binned[:] = image
    return int(np.count_nonzero(~np.isfinite(binned)))


def _filter_axis(image: Array, taps: Array, factor: int, samples: Array, axis: int) -> Array:
    """Return the sums of taps times pixels from q times each sample on; the axis is a ring."""
    size = image.shape[axis]
    found: Array = sum(
        tap * image.take((factor * samples + i) % size, axis).astype(np.float64)
        for i, tap in enumerate(taps)
    )
    return found


def cut_binned(
    image_bytes: Array,
    mode: int,
    binned: Array,
    corner: Array,
    taps: Array,
    factor: int,
    margin: int,
    window: Array,
) -> None:
    """Cut a filtered window out of a filtered image; filter its ends alone, joined to a ring.

    Parameters
    ----------
    image_bytes, mode
        A tilt image as for `copy_rows`.
    binned : ndarray, shape (ny, nx), float32
        The same image, filtered by `bin_image` with these `taps`, `factor` and `margin`.
    corner : ndarray, shape (2,), int64
        Pixel (x, y) of the tilt image that is the window's first.
    taps, factor, margin
        As for `bin_image`; the margin is a multiple of the factor.
    window : ndarray, shape (n, n), float32
        Filled: a window of q n pixels, convolved with the filter as if it were periodic, at the
        pixels (-corner) mod q, then every q-th.
    """
    n, reach = len(window), len(taps) // 2
    size = factor * n
    image = image_bytes.view(IMAGE_DTYPES[mode])
    first = -corner % factor
    x, y = (corner + first + margin) // factor
    window[:] = binned[y : y + n, x : x + n]
    rows, columns = (
        np.clip(corner[axis] + np.arange(size), 0, image.shape[1 - axis] - 1) for axis in (1, 0)
    )
    pixels = np.roll(image[rows[:, None], columns], tuple(reach - first[::-1]), axis=(0, 1))
    at = first[:, None] + factor * np.arange(n)
    x_ends, y_ends = (np.flatnonzero((a < reach) | (a + reach >= size)) for a in at)
    everywhere = np.arange(n)
    for y_samples, x_samples in ((everywhere, x_ends), (y_ends, everywhere)):
        lines = _filter_axis(pixels, taps, factor, y_samples, 0)
        window[np.ix_(y_samples, x_samples)] = _filter_axis(lines, taps, factor, x_samples, 1)


def join_rows(parts_fs: Array, factors: Array, first_row: int, columns: Array) -> None:
    """Join the transforms of the parts of each row and write them into `columns`.

    Parameters
    ----------
    parts_fs : ndarray, shape (n_rows, n_parts, length), complex64
        Transforms z of the parts of each row.
    factors : ndarray, shape (n_parts, 4, n_columns, 2), float32
        Complex factors a and b of z[j] and conj(z[-j]), as (a, a), (-a', a'), (b, -b), (b', b')
        with ' for the imaginary part.
    columns : ndarray, shape (n_columns, column_length), complex64
        Filled at [:, first_row:]; rows that do not fit are left out.
    """
    n_columns, length = columns.shape
    n_rows = min(len(parts_fs), length - first_row)
    a = factors[:, 0, :, 0] + 1j * factors[:, 1, :, 1]
    b = factors[:, 2, :, 0] + 1j * factors[:, 3, :, 0]
    j = np.arange(n_columns) % parts_fs.shape[2]
    near, far = parts_fs[:n_rows, :, j], parts_fs[:n_rows, :, -j].conj()
    columns[:, first_row : first_row + n_rows] = (near * a + far * b).sum(axis=1).T


def join_columns(parts_fs: Array, factors: Array, columns: Array) -> None:
    """Join the transforms of the parts of every column.

    Parameters
    ----------
    parts_fs : ndarray, shape (n_columns, n_parts, length), complex64
        Row j of part r is row n_parts j + r of the column.
    factors : ndarray, shape (n_parts, 2, n, 2), float32
        Complex factors a of the parts: (a, a) of the real parts, (-a, a) of the imaginary ones.
    columns : ndarray, shape (n_columns, n), complex64
        Filled: the n frequencies next to 0 of those of a part, FFTW order.
    """
    n, length = columns.shape[1], parts_fs.shape[2]
    kept = np.r_[0 : n // 2, length - n // 2 : length]
    complex_factors = factors[:, 0, :, 0] + 1j * factors[:, 1, :, 1]
    columns[:] = (parts_fs[:, :, kept] * complex_factors).sum(axis=1)


def fold_rows(rows_fs: Array, factors: Array, rows: Array) -> None:
    """Fold half-complex rows to half as many numbers, whose backward transform is the real row.

    Parameters
    ----------
    rows_fs : ndarray, shape (n_rows, n/2 + 1), complex64
        Of the first and the last number z of each row only the real part counts.
    factors : ndarray, shape (4, n/2, 2), float32
        Complex factors a and b of z[j] and conj(z[n/2 - j]), laid out as for `join_rows`.
    rows : ndarray, shape (n_rows, n/2), complex64
        Filled.
    """
    half = rows.shape[1]
    a = factors[0, :, 0] + 1j * factors[1, :, 1]
    b = factors[2, :, 0] + 1j * factors[3, :, 0]
    z = rows_fs.copy()
    z[:, [0, half]] = z[:, [0, half]].real
    rows[:] = a * z[:, :half] + b * z[:, half:0:-1].conj()


def make_ramps(cycles: Array, gain: Array, factor: float, ramp_x: Array, ramp_y: Array) -> None:
    """Make the phase ramps that shift a window to the origin.

    Parameters
    ----------
    cycles : ndarray, shape (2,), float64
        Cycles (x, y) of the ramps a frequency step.
    gain : ndarray, shape (s/2 + 1,), float64
        Factor at the frequencies k = 0 .. s/2, and at -k.
    factor : float
    ramp_x, ramp_y : ndarray, shape (s/2 + 1,) and (s,), complex64
        Filled: gain exp(2 pi i cycles k), along y times the factor, in FFT order.
    """
    x, y = gain * np.exp(2j * np.pi * cycles[:, None] * np.arange(len(gain)))
    ramp_x[:] = x
    ramp_y[:] = factor * np.concatenate([y[:-1], y[:0:-1].conj()])


def weight_slice(
    columns: Array,
    ramp_x: Array,
    ramp_y: Array,
    sign: float,
    ctf: Array | None,
    kx: Array,
    ky: Array,
    gain: Array | None,
    even: Array | None,
    odd: Array | None,
    noise: Array | None,
    slice_fs: Array,
    weight: Array | None,
) -> None:
    """Crop a window's transform to s frequencies, shift it, multiply by the CTF and all weights.

    Parameters
    ----------
    columns : ndarray, shape (s/2 + 1, s0), complex64
        Transform of the window, [kx, ky].
    ramp_x, ramp_y : ndarray, shape (s/2 + 1,) and (s,), complex64
        Phase ramps of the shift; a common factor may be in ramp_y.
    sign : float
        -1 inverts the contrast.
    ctf : ndarray, shape (5,), float64, or None
        Phase coefficients in turns (constant, kx^2, kx ky, ky^2, k^4); None: no CTF, weight 1.
    kx, ky : ndarray, shape (s/2 + 1,) and (s,), float64
        Frequencies in 1/A.
    gain : ndarray, shape (s/2 + 1, s), float32
        CTF envelope times dose weight; used with a CTF.
    even : ndarray, shape (s/2 + 1, s), or None
        Even aberration in turns; odd : exp(-i phase) (spec 2.5).
    noise : ndarray, shape (s/2 + 1, s), float32, or None
        Noise weight (spec 2.7).
    slice_fs, weight : ndarray, shape (s/2 + 1, s)
        Filled: the weighted transform, and the weight c^2 (may be None).
    """
    s = slice_fs.shape[1]
    c = np.ones((s // 2 + 1, s), np.float32)
    if ctf is not None and gain is not None:
        constant, xx, xy, yy, k4 = ctf
        x, y = kx[:, None], ky[None, :]
        turns = constant + xx * x * x + xy * x * y + yy * y * y + k4 * (x * x + y * y) ** 2
        if even is not None:
            turns = turns + even
        c = (-np.sin(2 * np.pi * (turns - np.rint(turns)))).astype(np.float32) * gain
    if weight is not None:
        weight[:] = c * c if noise is None else c * c * noise
    if noise is not None:
        c = c * noise
    low, high = columns[:, : s // 2], columns[:, columns.shape[1] - s // 2 :]
    ramp = ramp_x[:, None] * np.float32(sign) * ramp_y
    slice_fs[:] = np.concatenate([low, high], axis=1) * (ramp * c)
    if odd is not None:
        slice_fs *= odd


def pack_rows(columns: Array, first_row: int, pairs: Array) -> None:
    """Pack half-complex transforms of rows, which stand across `columns`, two by two.

    Rows a and b become the transform of a + i b: complex transforms are twice as fast as real ones.

    Parameters
    ----------
    columns : ndarray, shape (s/2 + 1, first_row + 2 n_pairs - 1 or more), complex64
        Row r is columns[:, r]. Imaginary parts at 0 and s/2 are left out. A last row behind the
        columns' end is taken from the padding between them.
    first_row : int
        Row that becomes the first.
    pairs : ndarray, shape (n_pairs, s), complex64
        Filled.
    """
    half, n_rows = len(columns), 2 * len(pairs)
    rows = np.zeros((n_rows, half), np.complex64)
    given = columns[:, first_row : first_row + n_rows].T
    rows[: len(given)] = given
    rows[:, [0, -1]] = rows[:, [0, -1]].real
    whole = np.concatenate([rows, rows[:, half - 2 : 0 : -1].conj()], axis=1)
    pairs[:] = whole[::2] + 1j * whole[1::2]


def unpack_rows(pairs: Array, first_row: int, columns: Array) -> None:
    """Unpack transforms of pairs of rows into half-complex ones, across `columns`.

    Parameters
    ----------
    pairs : ndarray, shape (n_pairs, s), complex64
    first_row : int
        Place of the first row.
    columns : ndarray, shape (s/2 + 1, first_row + 2 n_pairs - 1 or more), complex64
        Filled from `first_row` on.
    """
    n_pairs, s = pairs.shape
    mirrored = np.roll(pairs[:, ::-1], 1, axis=1).conj()
    rows = np.stack([pairs + mirrored, (pairs - mirrored) / 1j], axis=1) / 2
    rows = rows.reshape(2 * n_pairs, s)[: columns.shape[1] - first_row]
    columns[:, first_row : first_row + len(rows)] = rows[:, : len(columns)].T


def mask_pairs(
    pairs: Array,
    n: int,
    total: float,
    inside: Array,
    n_outside: float,
    subtract: bool,
    taper: Array,
) -> None:
    """Apply the circle crop to the central rows of an s x s image in place (spec 2.6).

    Parameters
    ----------
    pairs : ndarray, shape (n/2 or n/2 + 1, s), complex64
        Rows (s - n)/2 onwards, two by two: the real parts are one row, the imaginary the next.
    total : float
        Sum over the whole s x s image.
    inside : ndarray, shape (n + 1,), int32
        Half width of the circle in each row; -1 where it has none.
    n_outside : float
        Pixels outside the circle.
    subtract : bool
        Whether the mean outside the circle is subtracted first.
    taper : ndarray, shape (n, n), float32
        Factor on the central pixels; zero is written outside them.
    """
    s = pairs.shape[1]
    edge = (s - n) // 2
    distance = np.abs(np.arange(s) - s // 2)[None, :]
    rows = np.stack([pairs.real, pairs.imag], axis=1).reshape(-1, s)
    mean = 0.0
    if subtract and n_outside > 0:
        reached = rows[: n + 1]
        inner = distance <= inside[: len(reached), None]
        mean = (total - reached[inner].sum(dtype=np.float64)) / n_outside
    central = (rows[:n, edge : edge + n] - np.float32(mean)) * taper
    pairs[:] = 0
    pairs[: n // 2, edge : edge + n] = central[::2] + 1j * central[1::2]


def crop_pairs(pairs: Array, image: Array) -> None:
    """Copy the central pixels of an image out of its pairs of rows.

    Parameters
    ----------
    pairs : ndarray, shape (n/2 or more, s), complex64
        Rows (s - n)/2 onwards, two by two.
    image : ndarray, shape (n, n), float32
        Filled.
    """
    n = len(image)
    edge = (pairs.shape[1] - n) // 2
    central = pairs[: n // 2, edge : edge + n]
    image[::2] = central.real
    image[1::2] = central.imag


def insert_slice(
    slice_fs: Array, weight: Array, last_x: Array, axes: Array, scale: float, volume: Array
) -> None:
    """Add a slice to the packed volume by trilinear insertion (spec 2.8).

    Parameters
    ----------
    slice_fs, weight : ndarray, shape (s/2 + 1, s)
        Values with the image's origin at pixel (s/2, s/2), and their weights.
    last_x : ndarray, shape (s,), int32
        Largest kx to insert in each row ky; -1 for none.
    axes : ndarray, shape (2, 3), float64
        Volume voxels (x, y, z) of one step in kx, and in ky: u and v.
    scale : float
        |u| |v|.
    volume : ndarray, shape (n + 3, n + 3, n/2 + 2, 4), float32
        Added to.
    """
    s, n = slice_fs.shape[1], volume.shape[0] - 3
    kx = np.arange(s // 2 + 1)[:, None]
    ky = np.where(np.arange(s) < s // 2, np.arange(s), np.arange(s) - s)[None, :]
    use = (kx <= last_x[None, :]) & (kx * kx + ky * ky <= s * s // 4) & ((kx > 0) | (ky >= 0))
    kx, ky = (a[use] for a in np.broadcast_arrays(kx, ky))
    sign = 1.0 - 2.0 * ((kx + ky) % 2)
    g = kx[:, None] * axes[0] + ky[:, None] * axes[1]
    flip = np.where(g[:, 0] < 0, -1.0, 1.0)
    g *= flip[:, None]
    values = slice_fs[use] * sign
    sample = (
        np.stack([values.real, values.imag * flip, weight[use], np.ones(len(values))], axis=1)
        * scale
    )
    first = np.floor(g).astype(np.int64)
    fraction = g - first
    first[:, 1:] += n // 2 + 1
    for corner in np.ndindex(2, 2, 2):
        j = first + corner
        share = np.prod(np.where(corner, fraction, 1 - fraction), axis=1)
        ok = (j[:, 0] < volume.shape[2]) & np.all((j[:, 1:] >= 0) & (j[:, 1:] < n + 3), axis=1)
        np.add.at(
            volume,
            (j[ok, 2], j[ok, 1], j[ok, 0]),
            (sample[ok] * share[ok, None]).astype(np.float32),
        )


def unpack_volume(
    volume: Array, scale: float, data: Array, weight: Array, multiplicity: Array
) -> None:
    """Split the packed volume, mirror the plane x = 0, and clear the packed volume (spec 2.8).

    Parameters
    ----------
    volume : ndarray, shape (n + 3, n + 3, n/2 + 2, 4), float32
        Zero afterwards.
    scale : float
        Factor on the data.
    data : ndarray, shape (n, n, n/2 + 1), complex64
        Filled, FFTW order, with the sign (-1)^(x + y + z).
    weight, multiplicity : ndarray, shape (n, n, n/2 + 1), float32
        Filled, FFTW order.
    """
    n = volume.shape[0] - 3
    kept = np.fft.ifftshift(volume[1 : n + 1, 1 : n + 1, : n // 2 + 1], axes=(0, 1)).copy()
    plane = kept[:, :, 0].copy()
    mirrored = np.roll(plane[::-1, ::-1], 1, axis=(0, 1)) * np.array([1, -1, 1, 1], np.float32)
    kept[:, :, 0] = plane + mirrored
    index = np.arange(n)
    sign = 1 - 2 * ((index[:, None, None] + index[:, None] + index[: n // 2 + 1]) % 2)
    data[:] = (kept[..., 0] + 1j * kept[..., 1]) * (scale * sign)
    weight[:] = kept[..., 2]
    multiplicity[:] = kept[..., 3]
    volume[:] = 0


def weight_cone(
    data: Array, weight: Array, multiplicity: Array, rotation: Array, slope: float, sig0: float
) -> None:
    """Multiply data, weight and multiplicity by the cone weight in place (spec 2.9).

    Parameters
    ----------
    data, weight, multiplicity : ndarray, shape (n, n, n/2 + 1)
        FFTW order.
    rotation : ndarray, shape (3, 3), float64
        A_full.
    slope : float
        Sine of half the opening angle.
    sig0 : float
        Width at the origin, voxels.
    """
    n = data.shape[0]
    k = np.fft.fftfreq(n, 1 / n)
    x, y, z = np.arange(n // 2 + 1), k[:, None], k[:, None, None]
    rx, ry, rz = (rotation[i, 0] * x + rotation[i, 1] * y + rotation[i, 2] * z for i in range(3))
    t = np.sqrt(rx * rx + ry * ry) / (np.abs(rz) * slope + sig0)
    m = (1 - np.exp(-t * t / 2)).astype(np.float32)
    last = data[:, :, n // 2]
    data[:, :, n // 2] = (last + np.roll(last[::-1, ::-1], 1, axis=(0, 1)).conj()) / 2
    data *= m
    weight *= m
    multiplicity *= m


def add_power(columns: Array, power: Array) -> None:
    """Add the power of transforms to sums.

    Parameters
    ----------
    columns : ndarray, shape (n_columns, n), complex64
        Each column contiguous.
    power : ndarray, shape (n_columns, n), float64
        Added to.
    """
    power += columns.real.astype(np.float64) ** 2 + columns.imag.astype(np.float64) ** 2
