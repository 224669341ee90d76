"""The microscope of the simulator: CTF and radiation damage in double precision.

Written from the formulas alone, apart from the extraction's own, so that each checks the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Microscope:
    """Optics common to a data set.

    Attributes
    ----------
    voltage : float
        kV.
    spherical_aberration : float
        mm.
    amplitude_contrast : float
        Fraction.
    """

    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.1

    @property
    def wavelength(self) -> float:
        """Relativistic electron wavelength in Angstrom."""
        volts = 1e3 * self.voltage
        return 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))


@dataclass(frozen=True)
class Defocus:
    """Defocus of one image: U, V in Angstrom (underfocus positive), angle of U in degrees."""

    u: float
    v: float
    angle: float


class FrequencyGrid:
    """Half-complex frequencies of square images, with what CTF and damage need of them.

    Attributes
    ----------
    k_x, k_y, k2 : ndarray, broadcasting to (size, size // 2 + 1)
        Frequencies in 1/Angstrom, and the square of their length.
    """

    def __init__(self, size: int, pixel_size: float) -> None:
        self.k_x = np.fft.rfftfreq(size, pixel_size)[None, :]
        self.k_y = np.fft.fftfreq(size, pixel_size)[:, None]
        self.k2 = self.k_x**2 + self.k_y**2


def phase_in_focus_plane(grid: FrequencyGrid, microscope: Microscope, defocus: Defocus) -> Floats:
    """Return the phase gamma at the depth for which `defocus` holds, radians (spec 2.4, step 4).

    The CTF there is -sin(gamma).
    """
    angle = np.deg2rad(defocus.angle)
    along_u = np.cos(angle) * grid.k_x + np.sin(angle) * grid.k_y
    along_v = np.cos(angle) * grid.k_y - np.sin(angle) * grid.k_x
    wavelength = microscope.wavelength
    contrast = microscope.amplitude_contrast
    return (
        -np.pi * wavelength * (defocus.u * along_u**2 + defocus.v * along_v**2)
        + np.pi / 2 * 1e7 * microscope.spherical_aberration * wavelength**3 * grid.k2**2
        - np.arctan(contrast / np.sqrt(1 - contrast**2))
    )


class DepthCtf:
    """The CTF of one image at any depth.

    A change of defocus turns the phase by an amount that is a sum of one term in kx and one in
    ky, so that only two rows of sines are needed for each depth.
    """

    def __init__(self, grid: FrequencyGrid, microscope: Microscope, defocus: Defocus) -> None:
        self._in_focus = np.exp(1j * phase_in_focus_plane(grid, microscope, defocus))
        self._x, self._y = (np.pi * microscope.wavelength * k**2 for k in (grid.k_x, grid.k_y))

    def at(self, extra_defocus: float) -> Floats:
        """Return the CTF where the defocus is `extra_defocus` Angstrom larger, [ky, kx]."""
        turn = np.exp(-1j * extra_defocus * self._y) * np.exp(-1j * extra_defocus * self._x)
        return -(self._in_focus * turn).imag


def damage(grid: FrequencyGrid, dose: float) -> Floats:
    """Return what is left of the amplitude after `dose` e/A^2 (Grant & Grigorieff 2015)."""
    with np.errstate(divide="ignore"):
        critical = 0.245 * np.power(grid.k2, -1.665 / 2) + 2.81
    return np.exp(-dose / (2 * critical))
