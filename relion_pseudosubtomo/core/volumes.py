"""Volumes derived from a pseudo-subtomogram (spec 2.10)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft
from relion_pseudosubtomo.core.masks import taper_sphere
from relion_pseudosubtomo.core.noise import half_complex_radius, radial_average

#: Share of the radial average below which a weight is raised to it (heuristic division).
WEIGHT_FLOOR = 0.001


def expand_centred(half: NDArray) -> NDArray:
    """Expand a half-complex real quantity to the full cube, zero frequency at (n/2, n/2, n/2).

    Parameters
    ----------
    half : ndarray, shape (n, n, n/2 + 1)
        FFTW order, symmetric under k -> -k.

    Returns
    -------
    ndarray, shape (n, n, n)
    """
    n = half.shape[0]
    mirrored = (-np.arange(n)) % n
    full = np.empty((n, n, n), half.dtype)
    full[:, :, : n // 2 + 1] = half
    negative = half[mirrored][:, mirrored]
    full[:, :, n // 2 + 1 :] = negative[:, :, n // 2 - 1 : 0 : -1]
    return np.fft.fftshift(full)


def divide_or_zero(values: NDArray, by: NDArray) -> NDArray:
    """Return values / by, and 0 where `by` is 0."""
    return np.divide(values, by, where=by != 0, out=np.zeros_like(values))


def normalise_by_multiplicity(
    data: NDArray[np.float32], multiplicity: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the data volume divided by the multiplicity in Fourier space (`--nrm`).

    Parameters
    ----------
    data : ndarray, shape (n, n, n)
    multiplicity : ndarray, shape (n, n, n/2 + 1)
    """
    return fft.backward_3d(divide_or_zero(fft.forward_3d(data), multiplicity))


def divide_by_weight(
    data: NDArray[np.float32], weight: NDArray[np.float32], snr: float
) -> NDArray[np.float32]:
    """Return the data volume divided by its CTF^2 weight (`--div`, without the taper).

    Parameters
    ----------
    data : ndarray, shape (n, n, n)
    weight : ndarray, shape (n, n, n/2 + 1)
    snr : float
        Above 0 a Wiener filter with 1/SNR; else weights are raised to a floor, a small share of
        their radial average.
    """
    transform = fft.forward_3d(data)
    if snr > 0:
        return fft.backward_3d(transform / (weight + np.float32(1 / snr)))
    n = data.shape[0]
    radius = half_complex_radius(weight.shape)
    average = radial_average(weight)
    floor = WEIGHT_FLOOR * np.interp(radius, np.arange(len(average)), average)
    kept = np.floor(radius) + 1 <= n // 2
    raised = np.maximum(weight, floor)
    return fft.backward_3d(
        np.where(kept, divide_or_zero(transform, raised.astype(np.float32)), 0).astype(np.complex64)
    )


def tapered_division(
    data: NDArray[np.float32],
    weight: NDArray[np.float32],
    snr: float,
    taper: float,
    *,
    centre: bool,
) -> NDArray[np.float32]:
    """Return `divide_by_weight` under a soft sphere, `taper` pixels wide (`_div.mrc`)."""
    volume = divide_by_weight(data, weight, snr)
    taper_sphere(volume, taper, centre=centre)
    return volume
