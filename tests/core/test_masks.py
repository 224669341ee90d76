"""Masks of images and volumes agree with the plain statement of the specification (2.6, 2.10)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import kernels, masks

SIZES = [(4, 2), (24, 24), (24, 16), (26, 14), (32, 30), (48, 18)]
TOLERANCE = 1e-5


def random_image(size: int, seed: int) -> np.ndarray:
    """Return an image with a mean far from zero."""
    return np.random.default_rng(seed).normal(20, 3, (size, size)).astype(np.float32)


def mask_central_rows(image: np.ndarray, n: int, mask: masks.ImageMask) -> np.ndarray:
    """Return an image masked as the extraction does it: the central rows, in the kernel."""
    s = len(image)
    first, n_pairs = (s - n) // 2, min(n + 2, s) // 2
    padded = np.pad(image, ((0, 2), (0, 0)))
    rows = padded[first : first + 2 * n_pairs]
    pairs = rows[::2] + 1j * rows[1::2]
    total = image.sum(dtype=np.float64)
    kernels.mask_pairs(pairs, n, total, mask.inside, mask.n_outside, mask.subtract_mean, mask.taper)
    full = np.zeros_like(padded)
    full[first : first + 2 * n_pairs : 2] = pairs.real
    full[first + 1 : first + 2 * n_pairs : 2] = pairs.imag
    return full[:s]


@pytest.mark.parametrize(("s", "n"), SIZES)
@pytest.mark.parametrize(
    ("circle_crop", "grid_precorr"), [(True, False), (False, True), (True, True)]
)
def test_image_mask(s: int, n: int, circle_crop: bool, grid_precorr: bool) -> None:
    """Circle crop, correction, and both, of boxes that are cropped or not."""
    image = random_image(s, seed=s + n)
    mask = masks.image_mask(s, n, circle_crop=circle_crop, grid_precorr=grid_precorr)
    found = mask_central_rows(image, n, mask)
    expected = image.astype(np.float64)
    if circle_crop:
        expected = oracle.circle_crop(expected, (s - n) // 2)
    if grid_precorr:
        expected = oracle.grid_precorrection(expected, (s - n) // 2)
    # the image's mean is 20: what is left of it by rounding counts against that
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(image).max())
    assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize(("s", "n"), SIZES)
def test_circle_crop_removes_a_constant(s: int, n: int) -> None:
    """The mean outside the circle is that of the whole image where the image is flat."""
    mask = masks.image_mask(s, n, circle_crop=True, grid_precorr=False)
    flat = np.full((s, s), 7.0, np.float32)
    np.testing.assert_allclose(mask_central_rows(flat, n, mask), 0, atol=1e-5)


@pytest.mark.parametrize(("s", "n"), SIZES)
def test_pixels_outside_the_circle(s: int, n: int) -> None:
    """The rows' reach and the count of pixels outside describe the same circle, r <= n/2."""
    mask = masks.image_mask(s, n, circle_crop=True, grid_precorr=False)
    radius = oracle.distance_from_centre(s, 2)
    inside = np.zeros((s, s), bool)
    for i, reach in enumerate(mask.inside):
        y = (s - n) // 2 + i
        if y < s:
            inside[y, max(0, s // 2 - reach) : s // 2 + reach + 1] = True
    np.testing.assert_array_equal(inside, radius <= n / 2)
    assert mask.n_outside == np.count_nonzero(radius > n / 2)


@pytest.mark.parametrize("size", [16, 25, 40, 51])
def test_crop_circle_of_a_window(size: int) -> None:
    """The unbinned window, of even and odd size, in place (2.4, step 1)."""
    image = random_image(size, seed=size)
    expected = oracle.circle_crop(image.astype(np.float64), 0)
    masks.crop_circle(image)
    np.testing.assert_allclose(image, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_raised_cosine() -> None:
    """1 up to the edge, one half in its middle, 0 from its end on; without falloff a step."""
    r = np.array([0.0, 4.9, 5.0, 7.5, 9.99, 10.0, 12.0])
    found = masks.raised_cosine(r, 10.0, 5.0)
    np.testing.assert_allclose(found, [1, 1, 1, 0.5, 0, 0, 0], atol=1e-4)
    np.testing.assert_array_equal(masks.raised_cosine(r, 10.0, 0.0), r < 10)


def test_grid_precorrection_undoes_linear_interpolation() -> None:
    """It is 1 / sinc of the distance, pi/R wide, up to a factor, and 0 near the rim."""
    r = np.array([0.0, 0.5, 1.0, 6.0, 10.9, 11.0, 12.0])
    found = masks.grid_precorrection(r, 12.0)
    np.testing.assert_allclose(found[:2], 1)
    np.testing.assert_allclose(found[2:5], r[2:5] / np.sin(np.pi * r[2:5] / 12))
    np.testing.assert_array_equal(found[5:], 0)


@pytest.mark.parametrize("n", [8, 14])
@pytest.mark.parametrize("taper", [3.0, 5.0])
@pytest.mark.parametrize("centre", [True, False])
def test_taper_sphere(n: int, taper: float, centre: bool) -> None:
    """The soft sphere of `--div`, with and without subtracting the mean (2.10)."""
    volume = np.random.default_rng(n).normal(4, 1, (n, n, n)).astype(np.float32)
    options = oracle.Options(box=n, taper=taper, no_center=not centre)
    expected = oracle.taper_sphere(volume.astype(np.float64), options)
    masks.taper_sphere(volume, taper, centre=centre)
    np.testing.assert_allclose(volume, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_taper_sphere_without_an_edge() -> None:
    """A taper of 0 pixels is a hard sphere, not a division by zero."""
    volume = np.ones((8, 8, 8), np.float32)
    masks.taper_sphere(volume, 0.0, centre=False)
    np.testing.assert_array_equal(volume, oracle.distance_from_centre(8, 3) < 4)
