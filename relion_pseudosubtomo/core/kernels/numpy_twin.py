"""The kernels in NumPy: what each compiled kernel computes, and the fallback where there is none.

Arrays are those of the compiled kernels: slices of shape (s/2 + 1, s) as [kx, ky] with ky in FFT
order, the packed volume of shape (n + 3, n + 3, n/2 + 2, 4) as [z, y, x, (re, im, weight,
multiplicity)] with j_z and j_y counted from -n/2 - 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray
IMAGE_DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def copy_rows(
    image_bytes: Array,
    mode: int,
    corner_x: int,
    corner_y: int,
    rows: Array,
    step: int = 1,
    parts: int = 1,
) -> int:
    """Copy rows of a window as float32, repeating edge pixels; return how many are not finite.

    Parameters
    ----------
    image_bytes : ndarray, shape (height, width * itemsize), uint8
        The tilt image as bytes, in the machine's byte order.
    mode : int
        MRC mode: 0, 1, 2, 6 or 12.
    corner_x, corner_y : int
        Image pixel of rows[0, 0]; may lie outside the image.
    rows : ndarray, shape (n_rows, row_length), float32
        Filled.
    step : int
        Image rows from one row to the next.
    parts : int
        Above 1, the pairs of pixels of each row are dealt out in turn to so many parts, which then
        follow each other in the row.
    """
    if mode not in IMAGE_DTYPES:
        raise ValueError(f"image mode: expected one of {sorted(IMAGE_DTYPES)}, found {mode}")
    image = image_bytes.view(IMAGE_DTYPES[mode])
    y = np.clip(corner_y + step * np.arange(rows.shape[0]), 0, image.shape[0] - 1)
    x = np.clip(np.arange(corner_x, corner_x + rows.shape[1]), 0, image.shape[1] - 1)
    pairs = (-1, parts, 2) if parts > 1 else (-1, 1, 1)
    dealt = image[y[:, None], x[None, :]].reshape(len(rows), *pairs).swapaxes(1, 2)
    rows[:] = dealt.reshape(rows.shape)
    return int(np.count_nonzero(~np.isfinite(rows)))


def transpose_rows(rows: Array, first_row: int, columns: Array) -> None:
    """Write the first columns of each row into `columns`, from `first_row` on.

    Parameters
    ----------
    rows : ndarray, shape (n_rows, at least n_columns), complex64
    columns : ndarray, shape (n_columns, column_length), complex64
        Filled at [:, first_row:]; rows that do not fit are left out.
    """
    n_rows = min(rows.shape[0], columns.shape[1] - first_row)
    columns[:, first_row : first_row + n_rows] = rows[:n_rows, : columns.shape[0]].T


def join_rows(parts_fs: Array, factors: Array, first_row: int, columns: Array) -> None:
    """Join the transforms of the parts of each row and write them into `columns`.

    Parameters
    ----------
    parts_fs : ndarray, shape (n_rows, n_parts, length), complex64
        Transforms z of the parts of each row.
    factors : ndarray, shape (n_parts, 4, n_columns, 2), float32
        Complex factors a and b of z[k] and conj(z[-k]), as (a, a), (-a', a'), (b, -b), (b', b')
        with ' for the imaginary part.
    columns : ndarray, shape (n_columns, column_length), complex64
        Filled at [:, first_row:]; rows that do not fit are left out.
    """
    n_rows = min(parts_fs.shape[0], columns.shape[1] - first_row)
    a = factors[:, 0, :, 0] + 1j * factors[:, 1, :, 1]
    b = factors[:, 2, :, 0] + 1j * factors[:, 3, :, 0]
    k = np.arange(columns.shape[0]) % parts_fs.shape[2]
    near = parts_fs[:n_rows, :, k]
    far = parts_fs[:n_rows, :, -k].conj()
    columns[:, first_row : first_row + n_rows] = (near * a + far * b).sum(axis=1).T


def weight_slice(
    columns: Array,
    ramp_x: Array,
    ramp_y: Array,
    sign: float,
    ctf: tuple[float, float, float, float, float] | None,
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
    ctf : tuple of float or None
        Phase coefficients in turns (constant, kx^2, kx ky, ky^2, k^4); None: no CTF, weight 1.
    kx, ky : ndarray, shape (s/2 + 1,) and (s,), float64
        Frequencies in 1/A.
    gain : ndarray, shape (s/2 + 1, s), float32
        CTF envelope times dose weight; used with a CTF.
    even : ndarray or None
        Even aberration in turns; odd : exp(-i phase); noise : noise weight (spec 2.5, 2.7).
    slice_fs, weight : ndarray, shape (s/2 + 1, s)
        Filled: the weighted transform, and the weight c^2 (may be None).
    """
    s = slice_fs.shape[1]
    if ctf is None:
        c = np.ones((s // 2 + 1, s), np.float32)
    else:
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
    cropped = np.concatenate(
        [columns[:, : s // 2], columns[:, columns.shape[1] - s // 2 :]], axis=1
    )
    slice_fs[:] = cropped * (ramp_x[:, None] * np.float32(sign) * ramp_y[None, :] * c)
    if odd is not None:
        slice_fs *= odd


def pack_rows(columns: Array, first_row: int, pairs: Array) -> None:
    """Pack half-complex transforms of rows, which stand across `columns`, two by two.

    Rows a and b become the transform of a + i b: complex transforms are twice as fast as real ones.

    Parameters
    ----------
    columns : ndarray, shape (s/2 + 1, at least first_row + 2 n_pairs - 1), complex64
        Row r is columns[:, r]. Imaginary parts at 0 and s/2 are left out. A last row behind the
        columns' end is taken from the padding between them.
    first_row : int
        Row that becomes the first.
    pairs : ndarray, shape (n_pairs, s), complex64
        Filled.
    """
    half = columns.shape[0]
    rows = np.zeros((2 * pairs.shape[0], half), np.complex64)
    given = columns[:, first_row : first_row + len(rows)].T
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
    columns : ndarray, shape (s/2 + 1, at least first_row + 2 n_pairs - 1), complex64
        Filled from `first_row` on.
    """
    half = columns.shape[0]
    mirrored = np.roll(pairs[:, ::-1], 1, axis=1).conj()
    rows = np.stack([pairs + mirrored, (pairs - mirrored) / 1j], axis=1) / 2
    rows = rows.reshape(-1, pairs.shape[1])[: columns.shape[1] - first_row, :half]
    columns[:, first_row : first_row + len(rows)] = rows.T


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
    rows = np.stack([pairs.real, pairs.imag], axis=1).reshape(-1, s)
    mean = 0.0
    if subtract and n_outside > 0:
        distance = np.abs(np.arange(s) - s // 2)[None, :]
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
    n = image.shape[0]
    edge = (pairs.shape[1] - n) // 2
    image[::2] = pairs[: n // 2, edge : edge + n].real
    image[1::2] = pairs[: n // 2, edge : edge + n].imag


def insert_slice(
    slice_fs: Array,
    weight: Array,
    last_x: Array,
    u: Array,
    v: Array,
    scale: float,
    volume: Array,
) -> None:
    """Add one slice to the packed volume by trilinear insertion (spec 2.8).

    Parameters
    ----------
    slice_fs, weight : ndarray, shape (s/2 + 1, s)
        Values with the image's origin at pixel (s/2, s/2), and their weights.
    last_x : ndarray, shape (s,), int32
        Largest kx to insert in each row ky; -1 for none.
    u, v : ndarray, shape (3,), float64
        Volume voxels (x, y, z) of one step in kx and ky.
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
    g = kx[:, None] * u + ky[:, None] * v
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
