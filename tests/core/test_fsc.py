"""Fourier shell correlation against cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from relion_pseudosubtomo.core.fsc import (
    fourier_shell_correlation,
    make_sphere_mask,
    resolution_at,
    shells_up_to,
)

N = 32


@pytest.fixture
def noise() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((N, N, N)), rng.standard_normal((N, N, N))


def test_identical_volumes_correlate_fully(noise: tuple[np.ndarray, np.ndarray]) -> None:
    curve = fourier_shell_correlation(noise[0], 3 * noise[0])
    assert curve.shape == (N // 2 + 1,)
    np.testing.assert_allclose(curve, 1, atol=1e-12)


def test_opposite_volumes_correlate_negatively(noise: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(fourier_shell_correlation(noise[0], -noise[0]), -1, atol=1e-12)


def test_independent_noise_does_not_correlate(noise: tuple[np.ndarray, np.ndarray]) -> None:
    curve = fourier_shell_correlation(*noise)
    shell = np.arange(1, N // 2 + 1)
    independent = 2 * np.pi * shell**2  # half of the samples in a shell; the rest are conjugates
    assert np.all(np.abs(curve[1:]) < 4 / np.sqrt(independent))


def test_noisy_copies_correlate_as_their_signal_to_noise_ratio_says() -> None:
    rng = np.random.default_rng(2)
    signal, *noises = rng.standard_normal((3, N, N, N))
    ratio = 0.5
    copies = [np.sqrt(ratio) * signal + noise for noise in noises]
    curve = fourier_shell_correlation(*copies)
    np.testing.assert_allclose(curve[8:], ratio / (1 + ratio), atol=0.08)


def test_only_the_shell_that_differs_falls(noise: tuple[np.ndarray, np.ndarray]) -> None:
    volume_fs = np.fft.fftn(noise[0])
    k = np.fft.fftfreq(N, 1 / N)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
    changed = np.fft.ifftn(np.where(np.rint(radius) == 7, -volume_fs, volume_fs)).real
    curve = fourier_shell_correlation(noise[0], changed)
    expected = np.ones(N // 2 + 1)
    expected[7] = -1
    np.testing.assert_allclose(curve, expected, atol=1e-9)


def test_a_shift_by_a_voxel_gives_the_mean_phase_of_each_shell() -> None:
    volume = np.zeros((N, N, N))
    volume[N // 2, N // 2, N // 2] = 1
    curve = fourier_shell_correlation(volume, np.roll(volume, 1, axis=2))
    shell = np.arange(4, N // 2)
    np.testing.assert_allclose(curve[4 : N // 2], np.sinc(2 * shell / N), atol=0.02)


def test_empty_volume_gives_zero(noise: tuple[np.ndarray, np.ndarray]) -> None:
    assert not fourier_shell_correlation(noise[0], np.zeros((N, N, N))).any()


def test_volumes_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="two equal cubes, found"):
        fourier_shell_correlation(np.zeros((4, 4, 4)), np.zeros((6, 6, 6)))


def test_resolution_is_interpolated_between_shells() -> None:
    curve = np.array([1, 0.9, 0.8, 0.4, 0.0])
    assert resolution_at(curve, 2.0, threshold=0.6) == pytest.approx(8 * 2.0 / 2.5)


def test_resolution_of_a_perfect_curve_is_nyquist() -> None:
    assert resolution_at(np.ones(9), 1.5) == 3.0


def test_resolution_of_a_curve_below_the_threshold_is_infinite() -> None:
    assert resolution_at(np.zeros(9), 1.5) == np.inf


@pytest.mark.parametrize(("fraction", "n", "last"), [(2 / 3, 48, 16), (2 / 3, 64, 21), (1, 64, 32)])
def test_shells_end_at_the_fraction_of_nyquist(fraction: float, n: int, last: int) -> None:
    assert shells_up_to(fraction, n) == slice(1, last + 1)


def test_sphere_mask_falls_from_one_to_zero_over_its_edge() -> None:
    mask = make_sphere_mask(N, radius=8, edge=4)
    along = mask[N // 2, N // 2, N // 2 :]
    assert np.all(along[:9] == 1)
    assert along[10] == pytest.approx(0.5)
    assert not along[12:].any()
