"""Tilt images made smaller first: the filter, and particles that are those of exact extraction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core.ctf import ctf_phase_coefficients, electron_wavelength
from relion_pseudosubtomo.core.frames import FrameTables, make_frame_tables
from relion_pseudosubtomo.core.geometry import euler_to_matrix
from relion_pseudosubtomo.core.inputs import (
    Aberrations,
    ExtractionSettings,
    ParticleView,
    TiltImages,
)
from relion_pseudosubtomo.core.prebin import (
    HALF_LENGTH,
    bin_images,
    binned_size,
    filter_response,
    filter_taps,
)
from relion_pseudosubtomo.core.subtomogram import ParticleExtractor
from relion_pseudosubtomo.core.windows import window_corners
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.floating]

TILTS = (-50.0, 0.0, 40.0)
WIDTH, HEIGHT = 560, 517
#: (s, n, b, q): crops of half the box and of the whole box, odd small windows and larger factors.
SIZES = [
    pytest.param(96, 48, 4, 2, id="half"),
    pytest.param(96, 96, 4, 2, id="whole"),
    pytest.param(52, 40, 4.5, 2, id="odd-sample-number"),
    pytest.param(54, 54, 6.5, 3, id="odd-window"),
    pytest.param(48, 48, 8, 4, id="factor-4"),
    pytest.param(32, 16, 11, 4, id="factor-that-divides"),
    pytest.param(8, 8, 4, 2, id="shortest"),
]
#: Most that a particle may differ, root mean square, in its standard deviations.
LIMIT = 1e-4


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("more", [0, 1.5])
def test_the_filter_stops_what_is_folded_onto_the_kept_band(factor: int, more: float) -> None:
    """Nothing else is lost; it is not longer than the kernels allow."""
    binning = 2 * factor + more
    taps = filter_taps(factor, binning)
    assert len(taps) == 2 * np.ceil(HALF_LENGTH * factor) + 1 <= 128
    np.testing.assert_array_equal(taps, taps[::-1])
    window = 1000 * factor
    kept = np.arange(int(window / (2 * binning)) + 1.0)
    response = filter_response(taps, kept, window)
    assert 0.95 < response.min() < response.max() < 1.05
    for alias in range(1, factor):
        for k in (kept, -kept):
            folded = filter_response(taps, k + alias * window / factor, window)
            assert np.abs(folded).max() < 2e-4


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("reach", [0.0, 33.5])
@pytest.mark.parametrize("size", [290, 331])
def test_a_binned_image_holds_every_window(factor: int, reach: float, size: int) -> None:
    """Also the furthest, of particles at both ends; its margin is a whole number of samples."""
    n_samples, margin = binned_size(size, factor, reach)
    n = 12
    window = factor * n
    nearest = window / 2 - reach
    corners = window_corners(np.array([nearest, size - nearest]), window)
    first = corners + -corners % factor
    assert margin % factor == 0
    assert (first + margin).min() >= 0
    assert (first + margin).max() // factor + n <= n_samples


@pytest.mark.parametrize(
    ("box", "binning", "factor"),
    [(8, 4, 2), (6, 4, 1), (6, 6, 2), (96, 3, 1), (96, 3.9, 1), (96, 4.5, 2), (64, 80, 16)],
)
def test_the_factor_leaves_room_for_the_filter(box: int, binning: float, factor: int) -> None:
    """At most half the binning, and four times half the filter's length in the window."""
    options = JobOptions("out/", box, box, binning)
    assert options.prebin_factor == factor
    assert factor == 1 or options.window >= 4 * HALF_LENGTH * factor


def make_images(kind: str) -> TiltImages:
    """Return white noise; ice, far from zero and without its finest detail; and worse."""
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(len(TILTS), HEIGHT, WIDTH))
    x = np.arange(WIDTH)
    if kind == "ice":
        k = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
        noise = np.fft.irfft2(np.fft.rfft2(noise) / (1 + (k / 0.15) ** 2), noise.shape[1:])
        noise = 100 + 6 * noise / noise.std()
    if kind == "steep":
        noise = 100 + 6 * noise + 200 * x / WIDTH
    if kind == "black":
        noise = 100 + 6 * noise
        noise[:, :3] = noise[:, -2:] = noise[:, :, :2] = 0
    return TiltImages.from_arrays(list(noise.astype(np.float32)))


def make_tables(box: int, binning: float) -> FrameTables:
    """Return tables of frames with 3 e/A^2 each."""
    ones = np.ones(len(TILTS))
    return make_frame_tables(
        box=box,
        binned_pixel_size=0.7 * binning,
        used=np.ones(len(TILTS), dtype=bool),
        dose=3.0 * np.arange(len(TILTS)),
        bfactor_per_dose=0.0,
        ctf_phase=ctf_phase_coefficients(
            3e4 * ones, 2.9e4 * ones, 30 * ones, 0 * ones, 300, 2.7, 0.1
        ),
        wavelength=electron_wavelength(300),
        ctf_scale=ones,
        ctf_bfactor=0 * ones,
        cutoff=0.01,
    )


def make_view(point: tuple[float, float]) -> ParticleView:
    """Return a particle at one place, a little off it in each frame."""
    tilts = euler_to_matrix(np.array([(0, tilt, 0) for tilt in TILTS]))
    inwards = np.sign((WIDTH / 2, HEIGHT / 2) - np.array(point))
    points = point + inwards * np.random.default_rng(3).uniform(0.1, 4, (len(TILTS), 2))
    visible = np.ones(len(TILTS), dtype=bool)
    return ParticleView(visible, points, np.zeros(len(TILTS)), tilts[:, :2].copy(), np.eye(3))


def make_points(visible: float) -> dict[str, tuple[float, float]]:
    """Return a particle inside, and some as near to the edges as a visible one may be."""
    low, right, bottom = visible, WIDTH - visible, HEIGHT - visible
    return {
        "inside": (WIDTH / 2, HEIGHT / 2),
        "left": (low, HEIGHT / 2),
        "right": (right, HEIGHT / 2),
        "top": (WIDTH / 2, low),
        "bottom": (WIDTH / 2, bottom),
        "first corner": (low, low),
        "last corner": (right, bottom),
    }


def extract(
    settings: ExtractionSettings, images: TiltImages, point: tuple[float, float]
) -> list[Floats]:
    """Return what is made of a particle, in double precision."""
    extractor = ParticleExtractor(replace(settings, prebin=images.prebin))
    tables = make_tables(settings.box, settings.binning)
    arguments = (images, tables, make_view(point), Aberrations())
    if not settings.stack2d:
        return [extractor.extract_subtomogram(*arguments).data.astype(np.float64)]
    without_ctf = np.empty((len(TILTS), settings.crop, settings.crop), np.float32)
    stack = extractor.extract_stack(*arguments, without_ctf=without_ctf)
    return [stack.astype(np.float64), without_ctf.astype(np.float64)]


@pytest.mark.parametrize("kind", ["white", "ice", "steep", "black"])
@pytest.mark.parametrize("stack2d", [False, True])
@pytest.mark.parametrize(("box", "crop", "binning", "factor"), SIZES)
def test_particles_hardly_differ_wherever_they_are(
    kind: str, stack2d: bool, box: int, crop: int, binning: float, factor: int
) -> None:
    """Inside, at edges and in corners, whatever the image is like at its edges and the window's."""
    options = JobOptions("out/", box, crop, binning)
    assert options.prebin_factor == factor
    images, used = make_images(kind), np.ones(len(TILTS), dtype=bool)
    binned = bin_images(
        images.image_bytes, images.modes, used, factor, binning, options.window_reach, threads=1
    )
    small = replace(images, binned=binned)
    assert small.prebin == factor
    settings = ExtractionSettings(
        box, crop, options.window, binning, stack2d=stack2d, circle_crop=crop < box
    )
    for name, point in make_points(binning * crop / 2).items():
        for exact, found in zip(
            extract(settings, images, point), extract(settings, small, point), strict=True
        ):
            rms = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
            assert 0 < rms < LIMIT, name


def test_an_image_with_a_bad_pixel_is_not_binned() -> None:
    """NaN and infinity spread; in frames that are not used nothing is looked at."""
    images, used = make_images("white"), np.array([True, True, False])
    images.image_bytes[2].view(np.float32)[5, 6] = np.nan
    arguments = (images.image_bytes, images.modes, used, 2, 4.0, 10.0, 2)
    binned = bin_images(*arguments)
    assert binned is not None
    assert binned.samples[2].size == 0
    images.image_bytes[1].view(np.float32)[HEIGHT - 1, 0] = np.inf
    assert bin_images(*arguments) is None
