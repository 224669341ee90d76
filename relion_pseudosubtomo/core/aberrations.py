"""Even and odd optical aberrations as Zernike polynomials (spec 2.5)."""

from __future__ import annotations

from math import factorial, isqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def zernike_index_even(i: int) -> tuple[int, int]:
    """Return (m, n) of the i-th even polynomial."""
    order = isqrt(i)
    return 2 * (i - order * order - order), 2 * order


def zernike_index_odd(i: int) -> tuple[int, int]:
    """Return (m, n) of the i-th odd polynomial."""
    order = (isqrt(1 + 4 * i) - 1) // 2
    n = 2 * order + 1
    return 2 * (i - order * order - order) - n, n


def zernike(m: int, n: int, rho: Floats, phi: Floats) -> Floats:
    """Return the Zernike polynomial Z_m,n at polar coordinates (rho not scaled to 1)."""
    size = abs(m)
    radial = np.zeros_like(rho)
    for j in range((n - size) // 2 + 1):
        factor = (-1) ** j * factorial(n - j)
        factor //= factorial(j) * factorial((n + size) // 2 - j) * factorial((n - size) // 2 - j)
        radial += factor * rho ** (n - 2 * j)
    return radial * (np.cos(m * phi) if m >= 0 else np.sin(size * phi))


def aberration_phase(coefficients: Floats, kx: Floats, ky: Floats, *, odd: bool) -> Floats:
    """Return the aberration phase on a half-complex slice.

    Parameters
    ----------
    coefficients : ndarray, shape (n_coefficients,)
        In the order of the STAR file.
    kx, ky : ndarray, shape (s/2 + 1,) and (s,)
        Frequencies in 1/A.
    odd : bool
        Which of the two index orders the coefficients follow.

    Returns
    -------
    ndarray, shape (s/2 + 1, s)
        Radians, [kx, ky].
    """
    x, y = np.broadcast_arrays(kx[:, None], ky[None, :])
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    index = zernike_index_odd if odd else zernike_index_even
    phase = np.zeros(rho.shape)
    for i, coefficient in enumerate(coefficients):
        phase += coefficient * zernike(*index(i), rho, phi)
    return phase
