"""The contrast transfer function (spec 2.4, step 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def electron_wavelength(voltage: float) -> float:
    """Return the relativistic electron wavelength in Angstrom at a voltage in kV."""
    volts = 1000 * voltage
    return float(12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts)))


def ctf_phase_coefficients(
    defocus_u: Floats,
    defocus_v: Floats,
    defocus_angle: Floats,
    phase_shift: Floats,
    voltage: float,
    spherical_aberration: float,
    amplitude_contrast: float,
) -> Floats:
    """Return the coefficients of the CTF phase gamma in turns (gamma / 2 pi).

    Parameters
    ----------
    defocus_u, defocus_v : ndarray, shape (...)
        Angstrom.
    defocus_angle, phase_shift : ndarray, shape (...)
        Degrees.
    voltage, spherical_aberration, amplitude_contrast : float
        kV, mm, fraction.

    Returns
    -------
    ndarray, shape (..., 5)
        Factors of 1, kx^2, kx ky, ky^2 and k^4, with k in 1/A. A change of defocus by d Angstrom
        changes those of kx^2 and ky^2 by -d lambda / 2, and nothing else.
    """
    wavelength = electron_wavelength(voltage)
    angle = np.deg2rad(defocus_angle)
    cos, sin = np.cos(angle), np.sin(angle)
    half = wavelength / 2
    xx = -half * (defocus_u * cos**2 + defocus_v * sin**2)
    yy = -half * (defocus_u * sin**2 + defocus_v * cos**2)
    xy = -2 * half * (defocus_u - defocus_v) * sin * cos
    k4 = np.full_like(xx, 1e7 * spherical_aberration * wavelength**3 / 4)
    constant = -np.asarray(phase_shift) / 360 - amplitude_phase(amplitude_contrast) / (2 * np.pi)
    return np.stack([np.broadcast_to(constant, xx.shape), xx, xy, yy, k4], axis=-1)


def amplitude_phase(amplitude_contrast: float) -> float:
    """Return atan(Q / sqrt(1 - Q^2)) in radians, the phase of amplitude contrast Q."""
    return float(np.arcsin(np.clip(amplitude_contrast, -1, 1)))


def ctf_envelope(k2: Floats, scale: float, bfactor: float) -> Floats:
    """Return the factor on sin(gamma): scale exp(-B k^2 / 4), at least 1e-8 in size.

    Parameters
    ----------
    k2 : ndarray
        k^2 in 1/A^2.
    scale : float
        rlnCtfScalefactor.
    bfactor : float
        rlnCtfBfactor, A^2.
    """
    envelope = scale * np.exp(-bfactor / 4 * k2)
    return np.where(np.abs(envelope) < 1e-8, np.copysign(1e-8, envelope), envelope)
