"""The CTF agrees with the plain statement of the specification (2.4, step 4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import ctf, kernels
from relion_pseudosubtomo.core.frames import slice_frequencies

S, PIXEL_SIZE = 32, 4.1
TOLERANCE = 1e-5

FRAME = oracle.Frame(
    image=np.zeros((4, 4)),
    projection=np.eye(4),
    dose=0.0,
    defocus_u=23000.0,
    defocus_v=23000.0,
    defocus_angle=0.0,
)
TOMOGRAM = oracle.Tomogram(
    name="TS_01",
    frames=[FRAME],
    size_xyz=np.array([200.0, 180.0, 60.0]),
    pixel_size=2.05,
    hand=-1.0,
    voltage=300.0,
    spherical_aberration=2.7,
    amplitude_contrast=0.07,
)
ASTIGMATIC = replace(FRAME, defocus_u=31000.0, defocus_v=18000.0, defocus_angle=37.0)


def program_ctf(
    frame: oracle.Frame,
    tomogram: oracle.Tomogram,
    depth_px: float = 0.0,
    even_phase: np.ndarray | None = None,
) -> np.ndarray:
    """Return the program's CTF on a slice, (s, s/2 + 1), as its kernel multiplies it in."""
    coefficients = ctf.ctf_phase_coefficients(
        np.array([frame.defocus_u]),
        np.array([frame.defocus_v]),
        np.array([frame.defocus_angle]),
        np.array([frame.phase_shift]),
        tomogram.voltage,
        tomogram.spherical_aberration,
        tomogram.amplitude_contrast,
    )[0]
    extra = tomogram.hand * tomogram.pixel_size * tomogram.defocus_slope * depth_px
    coefficients[[1, 3]] += -ctf.electron_wavelength(tomogram.voltage) / 2 * extra
    kx, ky = slice_frequencies(S, PIXEL_SIZE)
    k2 = kx[:, None] ** 2 + ky[None, :] ** 2
    gain = ctf.ctf_envelope(k2, frame.ctf_scale, frame.ctf_bfactor).astype(np.float32)
    even = None if even_phase is None else np.ascontiguousarray(even_phase.T) / (2 * np.pi)
    slice_fs = np.zeros((S // 2 + 1, S), np.complex64)
    kernels.weight_slice(
        np.ones_like(slice_fs),
        np.ones(S // 2 + 1, np.complex64),
        np.ones(S, np.complex64),
        1.0,
        coefficients,
        kx,
        ky,
        gain,
        even,
        None,
        None,
        slice_fs,
        None,
    )
    assert not slice_fs.imag.any()
    return slice_fs.real.T


@pytest.mark.parametrize(
    ("frame", "optics", "depth"),
    [
        (FRAME, {}, 0.0),
        (FRAME, {}, 150.0),
        (ASTIGMATIC, {}, 0.0),
        (replace(ASTIGMATIC, defocus_angle=-110.0), {}, -80.0),
        (replace(ASTIGMATIC, phase_shift=72.0), {}, 30.0),
        (replace(FRAME, ctf_scale=0.6, ctf_bfactor=150.0), {}, 0.0),
        (FRAME, {"hand": 1.0, "defocus_slope": 0.8}, 120.0),
        (FRAME, {"voltage": 200.0, "spherical_aberration": 0.01, "amplitude_contrast": 0.1}, 10.0),
        (FRAME, {"spherical_aberration": 0.0, "amplitude_contrast": 0.0}, 0.0),
        (replace(FRAME, defocus_u=-2000.0, defocus_v=500.0), {"amplitude_contrast": 0.9}, 0.0),
        (replace(FRAME, defocus_u=150000.0, defocus_v=149000.0), {}, 900.0),
    ],
    ids=[
        "plain",
        "deep",
        "astigmatic",
        "astigmatic, angle below -90",
        "phase plate",
        "scale and B-factor",
        "other hand and slope",
        "200 kV",
        "no Cs, no amplitude contrast",
        "over focus",
        "many turns",
    ],
)
def test_agrees_with_the_specification(
    frame: oracle.Frame, optics: dict[str, float], depth: float
) -> None:
    """Defocus, astigmatism, phase shift, Cs, amplitude contrast, envelope, depth."""
    tomogram = replace(TOMOGRAM, **optics)
    expected = oracle.ctf_image(S, PIXEL_SIZE, frame, tomogram, depth, np.zeros(1))
    found = program_ctf(frame, tomogram, depth)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(expected).max() > 0.3


def test_even_aberrations_add_to_the_phase() -> None:
    """Coefficients of all orders, beside astigmatism."""
    particle = oracle.Particle(
        "p",
        np.zeros(3),
        optics_pixel_size=PIXEL_SIZE,
        even_zernike=np.array([0.3, 40, -20, 60, 1e3, 0, -2e3, 0, 800]),
    )
    phase = oracle.aberration_phase("even", particle, S, 1.0)
    expected = oracle.ctf_image(S, PIXEL_SIZE, ASTIGMATIC, TOMOGRAM, 0.0, phase)
    found = program_ctf(ASTIGMATIC, TOMOGRAM, even_phase=phase)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    without = oracle.ctf_image(S, PIXEL_SIZE, ASTIGMATIC, TOMOGRAM, 0.0, 0 * phase)
    assert np.abs(expected - without).max() > 0.1


@pytest.mark.parametrize(("voltage", "wavelength"), [(300, 0.019687), (200, 0.025079)])
def test_electron_wavelength(voltage: float, wavelength: float) -> None:
    """The textbook values in Angstrom."""
    assert ctf.electron_wavelength(voltage) == pytest.approx(wavelength, abs=2e-6)


@pytest.mark.parametrize("amplitude_contrast", [0.0, 0.07, 0.5, 0.999])
def test_amplitude_phase(amplitude_contrast: float) -> None:
    """At the origin the CTF is the amplitude contrast itself."""
    q = amplitude_contrast
    assert np.sin(ctf.amplitude_phase(q)) == pytest.approx(q)
    assert np.tan(ctf.amplitude_phase(q)) == pytest.approx(q / np.sqrt(1 - q * q))


def test_amplitude_contrast_of_one() -> None:
    """Amplitude contrast alone is a quarter turn, not a division by zero."""
    assert ctf.amplitude_phase(1.0) == pytest.approx(np.pi / 2)


def test_envelope_stays_away_from_zero() -> None:
    """A large B-factor leaves 1e-8 with the sign of the scale."""
    k2 = np.array([0.0, 0.001, 1.0])
    for scale in (0.5, -0.5):
        envelope = ctf.ctf_envelope(k2, scale, 1e4)
        np.testing.assert_allclose(
            envelope, scale / 0.5 * np.array([0.5, 0.5 * np.exp(-2.5), 1e-8]), rtol=1e-6, atol=0
        )


def test_arrays_of_frames() -> None:
    """Coefficients of many frames at once are those of each alone."""
    u, v, a, p = np.array([[2e4, 3e4], [1.9e4, 3.3e4], [10, -60], [0, 90.0]])
    both = ctf.ctf_phase_coefficients(u, v, a, p, 300, 2.7, 0.1)
    assert both.shape == (2, 5)
    for f in range(2):
        one = ctf.ctf_phase_coefficients(
            u[f : f + 1], v[f : f + 1], a[f : f + 1], p[f : f + 1], 300, 2.7, 0.1
        )
        np.testing.assert_array_equal(both[f], one[0])
