"""Noise whitening from the power spectrum of the tilt images (spec 2.7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels, scratch
from relion_pseudosubtomo.errors import InputError

Floats = NDArray[np.floating]


def noise_weight(image_bytes: NDArray[np.uint8], mode: int, window: int) -> Floats:
    """Return 1 / sqrt(power) of a tilt image by frequency bin.

    Parameters
    ----------
    image_bytes : ndarray, shape (height, width * itemsize), uint8
        The tilt image as bytes.
    mode : int
        Its MRC mode.
    window : int
        Box s0 in unbinned pixels: the side of the blocks that are averaged.

    Returns
    -------
    ndarray, shape (s0 // 2 + 1,)
        0 where there is no power.

    Raises
    ------
    InputError
        Where no block fits into the image, or none is without NaN and infinite pixels.
    OSError
        If the image cannot be read any more.
    """
    check_noise_window(image_bytes.view(kernels.IMAGE_DTYPES[mode]).shape, window)
    return _invert(radial_average(_mean_power(image_bytes, mode, window)))


def check_noise_window(shape: Sequence[int], window: int) -> None:
    """Refuse images that noise cannot be measured in.

    Parameters
    ----------
    shape : sequence of int
        (height, width) in pixels.
    window : int
        s0, unbinned pixels.

    Raises
    ------
    InputError
        Where no window fits into them.
    """
    height, width = shape
    if window > min(height, width):
        raise InputError(
            f"--whiten needs tilt images of at least one window: expected {window} x {window} "
            f"pixels or more, found {width} x {height}"
        )


def _mean_power(image_bytes: NDArray[np.uint8], mode: int, window: int) -> Floats:
    """Return the mean power of blocks that half overlap, shape (window, window // 2 + 1).

    Blocks above each other share rows, whose transforms are made once. One with pixels that are not
    finite is left out: it would spoil the whole mean.
    """
    height, width = image_bytes.view(kernels.IMAGE_DTYPES[mode]).shape
    tops, lefts = (range(0, size - window + 1, window // 2) for size in (height, width))
    strip_rs = scratch.zeros((tops[-1] + window, window), np.float32)
    strip_fs = fft.aligned_rows(len(strip_rs), window // 2 + 1)
    columns = fft.padded_columns(window // 2 + 1, window)
    to_rows = fft.plan_forward(strip_rs, strip_fs)
    to_columns = fft.plan_forward(strip_fs[:window].T, columns, keeps_source=True)
    power, n_blocks = np.zeros(columns.shape), 0
    for x in lefts:
        kernels.copy_rows(image_bytes, mode, np.array([x, 0]), 0, strip_rs)
        to_rows.execute()
        for y in tops:
            to_columns.update_arrays(strip_fs[y : y + window].T, columns)
            to_columns.execute()
            if np.isfinite(columns[0, 0]):  # the sum of all its pixels
                kernels.add_power(columns, power)
                n_blocks += 1
    if not n_blocks:
        raise InputError(
            f"--whiten: expected a part of {window} x {window} pixels of each tilt image without "
            "NaN and infinite values, found none"
        )
    return power.T / (n_blocks * window**2)


def half_complex_radius(shape: tuple[int, ...]) -> Floats:
    """Return |k| in frequency steps of half-complex arrays (last axis halved), FFTW order."""
    size = shape[0]
    signed = np.fft.fftfreq(size, 1 / size)
    squares = np.arange(shape[-1]) ** 2.0
    for axis in range(1, len(shape)):
        squares = squares + signed.reshape((-1,) + (1,) * axis) ** 2
    return np.sqrt(squares)


def radial_average(values: NDArray) -> Floats:
    """Return the radial average of half-complex samples with linear splatting (spec 2.7).

    Parameters
    ----------
    values : ndarray, shape (m, m // 2 + 1) or (m, m, m // 2 + 1)
        FFTW order.

    Returns
    -------
    ndarray, shape (m // 2 + 1,)
        Each sample at r counts for bins floor(r) and floor(r) + 1, if they exist.
    """
    n_bins = values.shape[-1]
    radius = half_complex_radius(values.shape).ravel()
    low = np.floor(radius).astype(np.int64)
    fraction = radius - low
    flat = values.ravel().astype(np.float64)
    total, weight = np.zeros(n_bins), np.zeros(n_bins)
    for bins, share in ((low, 1 - fraction), (low + 1, fraction)):
        ok = bins < n_bins
        total += np.bincount(bins[ok], flat[ok] * share[ok], n_bins)[:n_bins]
        weight += np.bincount(bins[ok], share[ok], n_bins)[:n_bins]
    return np.divide(total, weight, where=weight > 0, out=np.zeros(n_bins))


def _invert(power: Floats) -> Floats:
    return np.divide(1.0, np.sqrt(power), where=power > 0, out=np.zeros_like(power))


def spread_noise_weight(weight: Floats, s: int, binning: float) -> NDArray[np.float32]:
    """Return the noise weight on a binned half-complex slice, shape (s/2 + 1, s) as [kx, ky].

    Read at r b for a pixel at radius r, linearly between bins, clamped to the last (spec 2.7).
    """
    radius = half_complex_radius((s, s // 2 + 1)).T * binning
    return np.interp(radius, np.arange(len(weight)), weight).astype(np.float32)
