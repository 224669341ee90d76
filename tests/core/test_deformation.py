"""Deformations of the tilt images agree with the plain statement of the specification (2.2)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import deformation

SIZE = (200, 180)
N_FRAMES = 3


def n_coefficients(kind: str, grid: tuple[int, int]) -> int:
    """Return how many coefficients a model needs (2.2)."""
    if kind == "linear":
        return 3
    if kind == "spline":
        return 8 * grid[0] * grid[1]
    gx, gy = grid
    n_low = sum(gx // 2 + (1 if y > 0 else 0) for y in range(gy // 2))
    return 4 * (n_low + (gy - gy // 2) * (gx // 2))


def random_case(
    kind: str, grid: tuple[int, int], seed: int, extra: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients of every frame, and points inside, on the edge of and off the image."""
    rng = np.random.default_rng(seed)
    coefficients = rng.normal(0, 2, (N_FRAMES, n_coefficients(kind, grid) + extra))
    inside = rng.uniform(0, SIZE, (12, N_FRAMES, 2))
    edges = np.array([(0, 0), SIZE, (0, 77), (200, 20), (-15, 90), (230, 190), (60, -4)], float)
    points = np.concatenate([inside, np.repeat(edges[:, None, :], N_FRAMES, axis=1)])
    return coefficients, points


@pytest.mark.parametrize(
    ("kind", "grid", "extra"),
    [
        ("linear", (0, 0), 0),
        ("linear", (5, 4), 0),
        ("Fourier", (4, 4), 0),
        ("Fourier", (5, 3), 0),
        ("Fourier", (3, 6), 0),
        ("Fourier", (2, 2), 0),
        ("Fourier", (4, 4), 7),
        ("Fourier", (1, 1), 0),
        ("spline", (2, 2), 0),
        ("spline", (3, 5), 0),
        ("spline", (6, 2), 0),
    ],
)
def test_agrees_with_the_specification(kind: str, grid: tuple[int, int], extra: int) -> None:
    """Every model, with even and odd grids; values beyond the needed ones are unused."""
    coefficients, points = random_case(kind, grid, seed=len(kind) + 10 * grid[0] + grid[1])
    if extra:
        coefficients = np.concatenate([coefficients, np.full((N_FRAMES, extra), 1e3)], axis=1)
    found = deformation.deform_points(kind, grid, coefficients, points, SIZE)
    assert found.shape == points.shape
    if n_coefficients(kind, grid) == 0:
        np.testing.assert_array_equal(found, points)
        return
    for p in range(len(points)):
        for f in range(N_FRAMES):
            expected = oracle.deform(kind, points[p, f], coefficients[f], SIZE, grid)
            np.testing.assert_allclose(found[p, f], expected, atol=1e-9)
    assert np.abs(found - points).max() > 0.1


@pytest.mark.parametrize("kind", ["linear", "Fourier", "spline"])
def test_no_coefficients_no_deformation(kind: str) -> None:
    """With all coefficients zero the points stay."""
    coefficients, points = random_case(kind, (4, 4), seed=2)
    found = deformation.deform_points(kind, (4, 4), 0 * coefficients, points, SIZE)
    np.testing.assert_array_equal(found, points)


def test_linear_keeps_the_image_centre() -> None:
    """Distances count from the real half of the image size, also where that is odd."""
    coefficients = np.array([[0.01, -0.02, 0.03]])
    centre = np.array([[[100.5, 90.5]]])
    beside = centre + np.array([10, 5])
    for point, shift in ((centre, (0, 0)), (beside, (0.1, -0.2 + 0.15))):
        found = deformation.deform_points("linear", (0, 0), coefficients, point, (201, 181))
        np.testing.assert_allclose(found - point, [[shift]], atol=1e-12)


def test_spline_takes_the_values_of_its_nodes_and_is_smooth_between_cells() -> None:
    """At a node the value, across a line of nodes neither jump nor kink."""
    grid = (4, 3)
    coefficients, _ = random_case("spline", grid, seed=4)
    nodes = coefficients[0].reshape(2, 3, 4, 4)
    node = np.array([200 / 3, 90.0])
    found = deformation.deform_points("spline", grid, coefficients[:1], node[None, None], SIZE)
    np.testing.assert_allclose(found[0, 0] - node, nodes[:, 1, 1, 0], atol=1e-9)
    step = 1e-4
    beside = node + np.array([[-2, 7], [-1, 7], [0, 7], [1, 7], [2, 7]]) * [[step, 1]]
    moved = deformation.deform_points("spline", grid, coefficients[:1], beside[:, None], SIZE)
    slopes = np.diff(moved[:, 0] - beside, axis=0) / step
    np.testing.assert_allclose(slopes[1], slopes[2], atol=1e-3)


def test_frequencies_of_the_fourier_model() -> None:
    """The order of the coefficients (2.2), for an even and an odd grid."""
    assert deformation.fourier_frequencies((4, 4)) == [
        *[(1, 0), (2, 0)],
        *[(0, 1), (1, 1), (2, 1)],
        *[(1, -2), (2, -2)],
        *[(1, -1), (2, -1)],
    ]
    assert deformation.fourier_frequencies((3, 3)) == [(1, 0), (1, -2), (1, -1)]
