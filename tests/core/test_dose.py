"""Dose weights and what they leave to insert agree with the specification (2.4, 2.8)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core.dose import dose_weight
from relion_pseudosubtomo.core.frames import (
    last_inserted_x,
    make_frame_tables,
    slice_frequencies,
)

S, PIXEL_SIZE = 24, 3.4


def slice_radius() -> np.ndarray:
    """Return |k| in 1/A of a slice, [kx, ky]."""
    kx, ky = slice_frequencies(S, PIXEL_SIZE)
    return np.hypot(kx[:, None], ky[None, :])


@pytest.mark.parametrize("dose", [0.0, 3.0, 41.5, 150.0])
@pytest.mark.parametrize("bfactor", [0.0, 2.5])
def test_agrees_with_the_specification(dose: float, bfactor: float) -> None:
    """Both models: critical dose and B-factor."""
    found = dose_weight(slice_radius(), dose, bfactor)
    expected = oracle.dose_weight(S, PIXEL_SIZE, dose, bfactor)
    np.testing.assert_allclose(found, expected.T, rtol=1e-12)


@pytest.mark.parametrize("bfactor", [0.0, 2.5])
def test_weight_falls_from_one(bfactor: float) -> None:
    """1 at the origin, ever less at higher frequencies and doses, never negative."""
    k = np.linspace(0, 0.3, 50)
    low, high = dose_weight(k, 5.0, bfactor), dose_weight(k, 60.0, bfactor)
    assert low[0] == high[0] == 1
    assert np.all(np.diff(low) < 0)
    assert np.all(high[1:] < low[1:])
    assert np.all(high >= 0)


def test_no_dose_no_weighting() -> None:
    """The first image keeps all its frequencies."""
    np.testing.assert_array_equal(dose_weight(slice_radius(), 0.0), 1)


def test_weight_at_a_known_frequency() -> None:
    """At 1/10 A the critical dose is 0.245 x 10^1.665 + 2.81 = 14.14 e/A^2."""
    assert dose_weight(np.array([0.1]), 14.1385)[0] == pytest.approx(np.exp(-0.5), abs=1e-4)


def test_frequencies_of_a_slice() -> None:
    """Kx runs to +s/2, ky is signed, both in 1/A."""
    kx, ky = slice_frequencies(8, 2.0)
    np.testing.assert_allclose(kx * 16, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(ky * 16, [0, 1, 2, 3, -4, -3, -2, -1])


@pytest.mark.parametrize("dose", [0.0, 20.0, 60.0, 400.0])
@pytest.mark.parametrize("cutoff", [0.0, 0.01, 0.3, 1.0])
def test_last_inserted_sample_of_each_row(dose: float, cutoff: float) -> None:
    """The largest x within the circle whose dose weight is above the cutoff; -1 for none (2.8)."""
    weight = oracle.dose_weight(S, PIXEL_SIZE, dose)
    found = last_inserted_x(weight.T, cutoff)
    for row, ky in enumerate(oracle.signed_frequencies(S)):
        allowed = [
            x for x in range(S // 2 + 1) if x * x <= S * S / 4 - ky * ky and weight[row, x] > cutoff
        ]
        assert found[row] == max(allowed, default=-1)


def test_only_used_frames_get_tables() -> None:
    """Gain is envelope times dose weight; a frame that no particle needs stays empty."""
    ctf_phase = np.random.default_rng(1).normal(size=(3, 5))
    tables = make_frame_tables(
        box=S,
        binned_pixel_size=PIXEL_SIZE,
        used=np.array([True, False, True]),
        dose=np.array([0.0, 10.0, 30.0]),
        bfactor_per_dose=0.0,
        ctf_phase=ctf_phase,
        wavelength=0.02,
        ctf_scale=np.array([0.8, 1.0, 0.5]),
        ctf_bfactor=np.array([0.0, 0.0, 60.0]),
        cutoff=0.01,
    )
    k = slice_radius()
    expected = 0.5 * np.exp(-60 / 4 * k**2) * dose_weight(k, 30.0)
    np.testing.assert_allclose(tables.gain[2], expected, rtol=1e-6)
    np.testing.assert_allclose(tables.gain[0], 0.8, rtol=1e-6)
    assert not tables.gain[1].any()
    assert np.all(tables.last_x[1] == -1)
    np.testing.assert_array_equal(tables.last_x[2], last_inserted_x(dose_weight(k, 30.0), 0.01))
    np.testing.assert_array_equal(tables.ctf_phase, ctf_phase)
    assert tables.defocus_to_turns == -0.01
    assert tables.noise is None
