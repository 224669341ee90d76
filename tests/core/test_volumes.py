"""Volumes derived from a pseudo-subtomogram agree with the specification (2.10)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import fft, volumes

SIZES = [2, 6, 12, 16]
TOLERANCE = 2e-5


def random_weight(n: int, seed: int) -> np.ndarray:
    """Return a half-complex weight, symmetric, zero in places: what an insertion leaves."""
    rng = np.random.default_rng(seed)
    power = np.abs(np.fft.rfftn(rng.normal(size=(n, n, n)))) ** 2 / n**3
    radius = np.sqrt(sum(k.astype(float) ** 2 for k in oracle.frequency_grid_3d(n)))
    weight = power * np.exp(-radius / 3)
    weight[radius > 0.9 * n / 2] = 0
    return weight.astype(np.float32)


def random_volume(n: int, seed: int) -> np.ndarray:
    """Return a random volume."""
    return np.random.default_rng(seed).normal(size=(n, n, n)).astype(np.float32)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Check the largest difference against the size of the values."""
    size = np.abs(expected).max()
    assert size > 0, "nothing to compare"
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * size)


@pytest.mark.parametrize("n", SIZES)
def test_expand_centred(n: int) -> None:
    """The power spectrum of a volume, expanded, is that of its full transform."""
    volume = random_volume(n, seed=1).astype(np.float64)
    full = np.fft.fftshift(np.abs(np.fft.fftn(volume)) ** 2)
    half = np.abs(np.fft.rfftn(volume)) ** 2
    expanded = volumes.expand_centred(half)
    np.testing.assert_allclose(expanded, full, rtol=1e-9)
    np.testing.assert_allclose(expanded, oracle.expand_centred(half), rtol=1e-12)
    assert volumes.expand_centred(half.astype(np.float32)).dtype == np.float32


def test_expand_centred_puts_the_origin_in_the_middle() -> None:
    """Zero frequency lies at (n/2, n/2, n/2), one step in x beside it on both sides."""
    half = np.zeros((6, 6, 4))
    half[0, 0, 0], half[0, 0, 1] = 5, 2
    full = volumes.expand_centred(half)
    np.testing.assert_array_equal(full[3, 3], [0, 0, 2, 5, 2, 0])
    assert full.sum() == 9


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("snr", [-1.0, 0.0, 0.05, 30.0])
def test_divide_by_weight(n: int, snr: float) -> None:
    """Wiener filter with an SNR, heuristic without; voxels without weight do not blow up."""
    data, weight = random_volume(n, seed=2), random_weight(n, seed=3)
    expected = oracle.divide_by_weight(
        data.astype(np.float64), weight.astype(np.float64), oracle.Options(box=n, snr=snr)
    )
    found = volumes.divide_by_weight(data, weight, snr)
    assert found.dtype == np.float32
    assert_close(found, expected)


@pytest.mark.parametrize("taper", [2.0, 5.0])
@pytest.mark.parametrize("centre", [True, False])
def test_tapered_division(taper: float, centre: bool) -> None:
    """`_div.mrc`: the division under a soft sphere."""
    data, weight = random_volume(12, seed=4) + 3, random_weight(12, seed=5)
    options = oracle.Options(box=12, snr=2.0, taper=taper, no_center=not centre)
    divided = oracle.divide_by_weight(data.astype(np.float64), weight.astype(np.float64), options)
    found = volumes.tapered_division(data, weight, 2.0, taper, centre=centre)
    assert_close(found, oracle.taper_sphere(divided, options))


@pytest.mark.parametrize("n", SIZES)
def test_normalise_by_multiplicity(n: int) -> None:
    """`_data_nrm.mrc`: 0 where nothing was inserted."""
    data, multiplicity = random_volume(n, seed=6), random_weight(n, seed=7)
    transform = oracle.transform_volume(data.astype(np.float64))
    expected = oracle.inverse_transform_volume(
        oracle.divide_or_zero(transform, multiplicity.astype(np.float64))
    )
    assert_close(volumes.normalise_by_multiplicity(data, multiplicity), expected)


def test_divide_or_zero() -> None:
    """Zero over zero is zero, and anything over zero too."""
    found = volumes.divide_or_zero(np.array([1.0, 0.0, 6.0]), np.array([0.0, 0.0, 3.0]))
    np.testing.assert_array_equal(found, [0, 0, 2])


@pytest.mark.parametrize("n", SIZES)
def test_transforms_are_unitary(n: int) -> None:
    """Forward is NumPy's, there and back changes nothing, the power stays."""
    volume = random_volume(n, seed=8)
    transform = fft.forward_3d(volume)
    assert_close(transform, np.fft.rfftn(volume.astype(np.float64), norm="ortho"))
    assert_close(fft.backward_3d(transform), volume)
    copies = np.full(n // 2 + 1, 2.0)
    copies[[0, -1]] = 1
    assert np.sum(np.abs(transform) ** 2 * copies) == pytest.approx(np.sum(volume**2), rel=1e-5)
