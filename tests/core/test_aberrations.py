"""Optical aberrations agree with the plain statement of the specification (2.5)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import aberrations
from relion_pseudosubtomo.core.frames import slice_frequencies

S, BINNING, PIXEL_SIZE = 20, 1.5, 2.2


def test_order_of_even_coefficients() -> None:
    """One polynomial of order 0, three of order 2, five of order 4: (m, n)."""
    expected = [(0, 0), (-2, 2), (0, 2), (2, 2), (-4, 4), (-2, 4), (0, 4), (2, 4), (4, 4)]
    assert [aberrations.zernike_index_even(i) for i in range(9)] == expected


def test_order_of_odd_coefficients() -> None:
    """Two polynomials of order 1, four of order 3, six of order 5: (m, n)."""
    expected = [(-1, 1), (1, 1), (-3, 3), (-1, 3), (1, 3), (3, 3), (-5, 5)]
    assert [aberrations.zernike_index_odd(i) for i in range(7)] == expected


@pytest.mark.parametrize(
    ("m", "n", "value"),
    [
        (0, 0, 1.0),
        (1, 1, 0.5 * np.cos(0.7)),
        (-1, 1, 0.5 * np.sin(0.7)),
        (0, 2, 2 * 0.25 - 1),
        (-2, 2, 0.25 * np.sin(1.4)),
        (1, 3, (3 * 0.125 - 2 * 0.5) * np.cos(0.7)),
        (0, 4, 6 * 0.0625 - 6 * 0.25 + 1),
        (4, 4, 0.0625 * np.cos(2.8)),
    ],
)
def test_known_polynomials(m: int, n: int, value: float) -> None:
    """Tilt, defocus, astigmatism, coma, spherical aberration at rho 0.5, phi 0.7."""
    found = aberrations.zernike(m, n, np.array([0.5]), np.array([0.7]))
    assert found[0] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("parity", ["even", "odd"])
@pytest.mark.parametrize("n_coefficients", [1, 2, 9, 12])
def test_agrees_with_the_specification(parity: str, n_coefficients: int) -> None:
    """A sum of polynomials on a slice, in the pixel size of the optics group."""
    coefficients = np.random.default_rng(n_coefficients).normal(0, 10, n_coefficients)
    particle = oracle.Particle(
        "p",
        np.zeros(3),
        optics_pixel_size=PIXEL_SIZE,
        even_zernike=coefficients,
        odd_zernike=coefficients,
    )
    expected = oracle.aberration_phase(parity, particle, S, BINNING)
    kx, ky = slice_frequencies(S, BINNING * PIXEL_SIZE)
    found = aberrations.aberration_phase(coefficients, kx, ky, odd=parity == "odd")
    assert found.shape == (S // 2 + 1, S)
    np.testing.assert_allclose(found, expected.T, atol=1e-9)
    assert np.abs(found).max() > 0


@pytest.mark.parametrize(("odd", "sign"), [(False, 1), (True, -1)])
def test_symmetry(odd: bool, sign: int) -> None:
    """Even aberrations are the same at -k, odd ones the opposite: images stay real."""
    coefficients = np.random.default_rng(8).normal(0, 1, 9)
    kx = ky = np.linspace(-0.2, 0.2, 11)
    phase = aberrations.aberration_phase(coefficients, kx, ky, odd=odd)
    np.testing.assert_allclose(phase[::-1, ::-1], sign * phase, atol=1e-12)
    assert np.ptp(phase) > 0.1
