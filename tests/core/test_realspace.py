"""True subtomograms agree with the plain statement of the specification (2.11)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import realspace
from relion_pseudosubtomo.core.geometry import euler_to_matrix
from relion_pseudosubtomo.options import real_box_size

SHAPE = (22, 34, 40)  # z, y, x


def random_tomogram() -> np.ndarray:
    """Return a small reconstructed volume."""
    return np.random.default_rng(1).normal(3, 1, SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    "centre",
    [
        (20.0, 17.0, 11.0),
        (20.4, 16.7, 11.9),
        (3.2, 17.0, 11.0),
        (20.0, 32.5, 11.0),
        (20.0, 17.0, 1.5),
        (38.9, 1.1, 20.9),
        (-1.0, 17.0, 11.0),
    ],
    ids=["whole", "fraction", "left", "bottom", "front", "corner", "beyond"],
)
@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("invert", [True, False])
def test_cut_sphere(centre: tuple[float, float, float], size: int, invert: bool) -> None:
    """Whole and fractional places, spheres that reach beyond the volume on every side."""
    volume = random_tomogram()
    expected = oracle.cut_sphere(volume, np.array(centre), size, -1.0 if invert else 1.0)
    found = realspace.cut_sphere(volume, np.array(centre), size, invert=invert)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("dtype", [">f4", "<i2", ">i2", "<f2"])
def test_cut_sphere_of_any_type(dtype: str) -> None:
    """The same box, whatever type and byte order the volume has."""
    volume = np.rint(10 * random_tomogram()).astype(dtype)
    centre = np.array([20.4, 16.7, 1.9])
    found = realspace.cut_sphere(volume, centre, 12, invert=True)
    expected = realspace.cut_sphere(volume.astype(np.float32), centre, 12, invert=True)
    np.testing.assert_array_equal(found, expected)


def test_cut_sphere_outside_the_volume_is_empty() -> None:
    """Nothing to cut is zeros, without a division by zero."""
    found = realspace.cut_sphere(random_tomogram(), np.array([90.0, 17, 11]), 8, invert=True)
    np.testing.assert_array_equal(found, 0)


BLOB_XYZ = np.array([3.0, 1.0, -2.0])


def gaussian_box(size: int) -> np.ndarray:
    """Return a Gaussian of variance 2 in a box, off centre, [z, y, x]."""
    z, y, x = np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij")
    cx, cy, cz = BLOB_XYZ
    return np.exp(-((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) / 4).astype(np.float32)


@pytest.mark.parametrize("size", [8, 12, 20])
def test_project_box(size: int) -> None:
    """Projections in random directions; size 20 has samples exactly on the limiting radius."""
    box = np.random.default_rng(size).normal(size=(size,) * 3).astype(np.float32)
    axes = euler_to_matrix(np.random.default_rng(2).uniform(-180, 180, (4, 3)))[:, :2]
    padded = np.pad(
        box.astype(np.float64) / np.sinc(oracle.distance_from_centre(size, 3) / (2 * size)) ** 2,
        size // 2,
    )
    transform = np.fft.fftn(np.fft.ifftshift(padded))
    k = oracle.signed_frequencies(2 * size)
    transform[k[:, None, None] ** 2 + k[:, None] ** 2 + k**2 > size**2] = 0
    found = realspace.project_box(box, axes)
    assert found.shape == (4, size, size)
    for f in range(4):
        expected = oracle.project_box(transform, *axes[f])
        np.testing.assert_allclose(found[f], expected, rtol=0, atol=2e-5 * expected.std())


@pytest.mark.parametrize("angles", [(0, 0, 0), (90, 90, 0), (0, 90, 30), (40, 55, -70)])
def test_projection_is_a_line_integral(angles: tuple[float, float, float]) -> None:
    """A Gaussian's projection is a Gaussian where its centre projects, of the same sum."""
    size = 20
    box, axes = gaussian_box(size), euler_to_matrix(np.array(angles, float))[:2]
    found = realspace.project_box(box, axes[None])[0]
    y, x = np.meshgrid(*[np.arange(size) - size // 2] * 2, indexing="ij")
    cx, cy = axes @ BLOB_XYZ
    expected = np.sqrt(4 * np.pi) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 4)
    # the division by sinc^2 is for points between voxels; it is 6% too strong on them
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.07 * expected.max())
    peak = np.unravel_index(found.argmax(), found.shape)
    assert peak == np.unravel_index(expected.argmax(), expected.shape)


def test_projection_along_an_axis_is_a_sum() -> None:
    """On voxels nothing is interpolated: the projection is the sum of the corrected box."""
    box = gaussian_box(20)
    corrected = box / np.sinc(oracle.distance_from_centre(20, 3) / 40) ** 2
    for axes, expected in (
        (((1, 0, 0), (0, 1, 0)), corrected.sum(axis=0)),
        (((0, 1, 0), (0, 0, 1)), corrected.sum(axis=2)),
        (((0, 0, 1), (0, 1, 0)), corrected.sum(axis=2).T),
    ):
        found = realspace.project_box(box, np.array([axes], dtype=float))[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * expected.max())


@pytest.mark.parametrize(
    ("crop", "binning", "tomogram_binning", "size"),
    [
        (32, 2.0, 2.0, 32),
        (24, 2.0, 4.0, 12),
        (24, 2.5, 4.0, 16),
        (26, 2.0, 4.0, 14),
        (25, 1.0, 1.0, 26),
        (30, 1.0, 2.01, 14),
    ],
)
def test_box_size_is_made_even(
    crop: int, binning: float, tomogram_binning: float, size: int
) -> None:
    """An odd size goes up where the exact one is not below it, else down."""
    assert real_box_size(crop, binning, tomogram_binning) == size
    options = oracle.Options(box=crop, binning=binning)
    assert oracle.real_subtomogram_size(options, tomogram_binning) == size
