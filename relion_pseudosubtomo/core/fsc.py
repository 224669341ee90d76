"""Fourier shell correlation of two volumes, and the resolution it stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

#: RELION's value in Angstrom, in its files, for a resolution that there is not.
NO_RESOLUTION = 999.0


def fourier_shell_correlation(volume_a: NDArray, volume_b: NDArray) -> Floats:
    """Return the correlation of two volumes, shell by shell (Harauz & van Heel 1986).

    Parameters
    ----------
    volume_a, volume_b : ndarray, shape (n, n, n), real
        n even. Masks, where wanted, are the caller's; see `make_sphere_mask`.

    Returns
    -------
    ndarray, shape (n // 2 + 1,), float64
        Value i belongs to the frequencies that round to i / n cycles a voxel; value 0 is the mean
        alone, hence 1 or -1 (0 for shells in which a volume is empty).
    """
    if volume_a.shape != volume_b.shape or len(set(volume_a.shape)) != 1 or volume_a.ndim != 3:
        raise ValueError(f"expected two equal cubes, found {volume_a.shape} and {volume_b.shape}")
    n = volume_a.shape[0]
    a_fs = np.fft.rfftn(volume_a.astype(np.float64))
    b_fs = np.fft.rfftn(volume_b.astype(np.float64))
    shell, copies = _shells(n)

    def sum_shells(values: Floats) -> Floats:
        sums = np.bincount(shell, weights=(values * copies).ravel())
        return sums[: n // 2 + 1].astype(np.float64)

    cross = sum_shells((a_fs * b_fs.conj()).real)
    power = sum_shells(np.abs(a_fs) ** 2) * sum_shells(np.abs(b_fs) ** 2)
    return np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)


def _shells(n: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the shell of each half-complex sample, flattened, and how often the sample counts.

    Samples with 0 < kx < n/2 stand for their conjugates too.
    """
    k = np.fft.fftfreq(n, 1 / n)
    k_x = np.arange(n // 2 + 1)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k_x**2)
    copies = np.where((k_x == 0) | (2 * k_x == n), 1.0, 2.0)
    return np.rint(radius).astype(np.int64).ravel(), copies


def resolution_at(fsc: Floats, pixel_size: float, threshold: float = 0.143) -> float:
    """Return the resolution in Angstrom at which the curve first falls below a threshold.

    Parameters
    ----------
    fsc : ndarray, shape (n // 2 + 1,)
        As from `fourier_shell_correlation`.
    pixel_size : float
        Angstrom.
    threshold : float
        0.143 for half maps, 0.5 against a known structure (Rosenthal & Henderson 2003).

    Returns
    -------
    float
        Linear between shells; twice the pixel size where the curve never falls that low, infinity
        where it starts below.
    """
    n = 2 * (len(fsc) - 1)
    below = np.flatnonzero(fsc[1:] < threshold) + 1
    if len(below) == 0:
        return 2 * pixel_size
    shell = below[0]
    if shell == 1:
        return float("inf")
    fraction = (fsc[shell - 1] - threshold) / (fsc[shell - 1] - fsc[shell])
    return float(n * pixel_size / (shell - 1 + fraction))


def shells_up_to(fraction_of_nyquist: float, n: int) -> slice:
    """Return the shells from the first up to a fraction of the Nyquist frequency, for box `n`."""
    return slice(1, int(fraction_of_nyquist * n / 2 + 1e-9) + 1)


def make_sphere_mask(n: int, radius: float, edge: float) -> Floats:
    """Return a sphere mask with a raised-cosine edge about voxel n // 2.

    Parameters
    ----------
    n : int
        Voxels along each side.
    radius : float
        Where the mask starts to fall from 1, voxels.
    edge : float
        Width of its fall to 0, voxels.

    Returns
    -------
    ndarray, shape (n, n, n), float64
    """
    axis = np.arange(n) - n // 2
    r = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((r - radius) / edge, 0, 1))
