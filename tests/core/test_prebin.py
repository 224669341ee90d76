"""Tilt images made smaller first: the waves they keep, and particles that hardly differ."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core.ctf import ctf_phase_coefficients, electron_wavelength
from relion_pseudosubtomo.core.frames import FrameTables, make_frame_tables
from relion_pseudosubtomo.core.geometry import euler_to_matrix
from relion_pseudosubtomo.core.prebin import GUARD, ImageBinner, prebin_images, prebinned_axis
from relion_pseudosubtomo.core.subtomogram import (
    Aberrations,
    ExtractionSettings,
    ParticleExtractor,
    ParticleView,
    TiltImages,
)

Floats = NDArray[np.floating]

TILTS = (-50.0, 0.0, 40.0)
WIDTH, HEIGHT = 1130, 1050
BOX, CROP, BINNING, PREBIN = 192, 96, 4, 2
WINDOW = BINNING * BOX
#: Unbinned pixels from a visible particle to the image's edge, at least (spec 2.3).
VISIBLE = BINNING * CROP / 2
REACH = WINDOW / 2 - VISIBLE

#: Particles: one whose window lies within the image, and others as near to its edges as a visible
#: one may be.
NEAR, FAR_X, FAR_Y = VISIBLE + 0.1, WIDTH - VISIBLE - 0.1, HEIGHT - VISIBLE - 0.1
INSIDE = (WIDTH / 2 + 0.3, HEIGHT / 2 - 0.2)
AT_EDGES = {
    "left": (NEAR, HEIGHT / 2),
    "right": (FAR_X, HEIGHT / 2),
    "top": (WIDTH / 2, NEAR),
    "bottom": (WIDTH / 2, FAR_Y),
    "first corner": (NEAR, NEAR),
    "last corner": (FAR_X, FAR_Y),
}


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("reach", [0.0, 33.5])
def test_a_binned_image_has_the_waves_of_the_image(factor: int, reach: float) -> None:
    """Pixel i of the small image is the value at pixel q i - margin of the image."""
    width, height = 331, 290
    y, x = np.mgrid[:height, :width].astype(np.float64)

    def wave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # constant at the edges, where the image is continued by its last pixel
        bump = np.exp(-((x - 160.0) ** 2 + (y - 140.0) ** 2) / (2 * 30.0**2))
        return 5 + bump * np.cos(2 * np.pi * (0.07 * x + 0.05 * y))

    image = wave(x, y).astype(np.float32)
    small = ImageBinner((width, height), factor, reach).bin(image.view(np.uint8), 2)
    assert small is not None
    axes = [prebinned_axis(size, factor, reach) for size in (width, height)]
    (nx, before_x), (ny, before_y) = axes
    assert small.shape == (ny, nx)
    for (length, before), size in zip(axes, (width, height), strict=True):
        after = factor * length - size - before
        assert before % factor == 0
        assert min(before, after) >= reach + factor * (GUARD - 1)
    rows, columns = np.mgrid[:ny, :nx].astype(np.float64)
    expected = wave(factor * columns - before_x, factor * rows - before_y)
    np.testing.assert_allclose(small, expected, rtol=0, atol=1e-4)


def make_images(kind: str) -> TiltImages:
    """Return white noise, or ice with a gradient, far from zero and without its finest detail."""
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(len(TILTS), HEIGHT, WIDTH))
    if kind == "ice":
        k = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
        noise = np.fft.irfft2(np.fft.rfft2(noise) / (1 + (k / 0.15) ** 2), noise.shape[1:])
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        noise = 100 + 6 * noise / noise.std() + 3 * x / WIDTH - 2 * y / HEIGHT
    return TiltImages.from_arrays(list(noise.astype(np.float32)))


def make_tables() -> FrameTables:
    """Return tables of frames with 3 e/A^2 each."""
    ones = np.ones(len(TILTS))
    return make_frame_tables(
        box=BOX,
        binned_pixel_size=0.7 * BINNING,
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
    """Return a particle at one place of every frame."""
    tilts = euler_to_matrix(np.array([(0, tilt, 0) for tilt in TILTS]))
    points = np.tile(point, (len(TILTS), 1))
    visible = np.ones(len(TILTS), dtype=bool)
    return ParticleView(visible, points, np.zeros(len(TILTS)), tilts[:, :2].copy(), np.eye(3))


def extract(images: TiltImages, point: tuple[float, float], *, stack2d: bool) -> Floats:
    """Return a particle, in double precision."""
    settings = ExtractionSettings(
        BOX, CROP, WINDOW, float(BINNING), stack2d=stack2d, prebin=images.prebin
    )
    arguments = (images, make_tables(), make_view(point), Aberrations())
    extractor = ParticleExtractor(settings)
    if stack2d:
        return extractor.extract_stack(*arguments).astype(np.float64)
    return extractor.extract_subtomogram(*arguments).data.astype(np.float64)


@pytest.mark.parametrize("kind", ["white", "ice"])
@pytest.mark.parametrize(("stack2d", "limit"), [(False, 0.002), (True, 0.005)])
def test_particles_hardly_differ_wherever_they_are(kind: str, stack2d: bool, limit: float) -> None:
    """Windows that reach past an edge as far as they may differ no more than others.

    2D stacks differ more, at their finest detail: what the window's sharp ends bring there from
    frequencies beyond those of the smaller image has no dose weight, nor slices to average with.
    """
    images, used = make_images(kind), np.ones(len(TILTS), dtype=bool)
    small = prebin_images(images, (WIDTH, HEIGHT), used, PREBIN, REACH, threads=1)
    for name, point in {"inside": INSIDE, **AT_EDGES}.items():
        exact = extract(images, point, stack2d=stack2d)
        found = extract(small, point, stack2d=stack2d)
        rms = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
        assert 0 < rms < limit, name
