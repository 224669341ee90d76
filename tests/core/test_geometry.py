"""Positions, projections and angles agree with the plain statement of the specification (2.1)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import geometry

TIGHT = 1e-9


def random_angles(seed: int, n: int) -> np.ndarray:
    """Return (rot, tilt, psi) in degrees, tilt from 0 to 180."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-180, 0, -180], [180, 180, 180], (n, 3))


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_axis_rotations(axis: str) -> None:
    """Each angle gives the right-handed rotation about its axis."""
    angles = np.array([-170.0, -30.0, 0.0, 45.5, 90.0, 180.0])
    rotate = {"x": geometry.rotation_x, "y": geometry.rotation_y, "z": geometry.rotation_z}[axis]
    expected = [oracle.axis_rotation(axis, angle) for angle in angles]
    np.testing.assert_allclose(rotate(angles), expected, atol=TIGHT)


def test_rotation_about_z_turns_x_to_y() -> None:
    """Right-handed: x goes to y."""
    turned = geometry.rotation_z(np.array([90.0]))[0] @ [1, 0, 0, 1]
    np.testing.assert_allclose(turned, [0, 1, 0, 1], atol=TIGHT)


@pytest.mark.parametrize("image_size", [(200, 180), (201, 179)])
@pytest.mark.parametrize(
    "size", [(200.0, 180.0, 60.0), (201.0, 181.0, 61.0), (-999.0, -999.0, -999.0)]
)
def test_projection_matrices(image_size: tuple[int, int], size: tuple[float, float, float]) -> None:
    """Even, odd and missing sizes: their integer halves, truncated towards zero, count."""
    rng = np.random.default_rng(1)
    n, pixel_size = 5, 2.7
    tilts = rng.uniform(-60, 60, (n, 3))
    shifts = rng.normal(0, 20, (n, 2))
    found = geometry.projection_matrices(*tilts.T, shifts, pixel_size, image_size, np.array(size))
    expected = [
        oracle.projection_matrix(
            *tilts[f], tuple(shifts[f] / pixel_size), image_size, np.array(size)
        )
        for f in range(n)
    ]
    np.testing.assert_allclose(found, expected, atol=TIGHT)


def test_the_rotation_centre_falls_on_the_image_centre() -> None:
    """Whatever the tilt, the tomogram's centre is seen at the image's centre, plus the shift."""
    projections = geometry.projection_matrices(
        np.array([5.0, 0, -7]),
        np.array([-60.0, 0, 40]),
        np.array([85.0, 84, -3]),
        np.array([[0.0, 0], [4, -6], [2, 2]]),
        2.0,
        (100, 80),
        np.array([90.0, 70.0, 30.0]),
    )
    points = geometry.project_points(projections, np.array([[45.0, 35.0, 15.0]]))
    np.testing.assert_allclose(points[0, :, :2], [[50, 40], [52, 37], [51, 41]], atol=TIGHT)
    np.testing.assert_allclose(points[0, :, 2], 0, atol=TIGHT)


def test_euler_to_matrix() -> None:
    """The ZYZ matrix of the specification, for arrays of any shape."""
    angles = random_angles(2, 12)
    expected = [oracle.euler_to_matrix(*a) for a in angles]
    np.testing.assert_allclose(geometry.euler_to_matrix(angles), expected, atol=TIGHT)
    stacked = geometry.euler_to_matrix(angles.reshape(3, 4, 3))
    np.testing.assert_allclose(stacked.reshape(12, 3, 3), expected, atol=TIGHT)


POLES = [(0, 0, 0), (0, 0, -70), (30, 0, 50), (0, 180, 40), (25, 180, -130), (-90, 180, -90)]
NEAR_POLES = [(30, 1e-3, 40), (30, 179.999, 40), (-170, 1e-9, 12), (10, 180 - 1e-9, 77)]


@pytest.mark.parametrize("angles", [*POLES, *NEAR_POLES])
def test_poles_survive_the_round_trip(angles: tuple[float, float, float]) -> None:
    """At tilt 0 and 180 rot and psi are one rotation: the matrix comes back, with rot 0."""
    matrix = geometry.euler_to_matrix(np.array(angles))
    back = geometry.matrix_to_euler(matrix)
    np.testing.assert_allclose(back, oracle.matrix_to_euler(matrix), atol=TIGHT)
    np.testing.assert_allclose(geometry.euler_to_matrix(back), matrix, atol=1e-7)
    if math.sin(math.radians(angles[1])) < 1e-7:
        assert back[0] == 0


def test_angles_survive_the_round_trip() -> None:
    """Away from the poles the very angles come back, also in a mix with poles."""
    angles = random_angles(3, 200)
    angles[:, 1] = np.clip(angles[:, 1], 0.01, 179.99)
    mixed = np.concatenate([angles, np.array(POLES, dtype=float)])
    back = geometry.matrix_to_euler(geometry.euler_to_matrix(mixed))
    np.testing.assert_allclose(back[: len(angles)], angles, atol=1e-7)
    np.testing.assert_allclose(
        geometry.euler_to_matrix(back), geometry.euler_to_matrix(mixed), atol=1e-9
    )


def test_matrices_are_rotations() -> None:
    """Orthonormal and right-handed."""
    matrices = geometry.euler_to_matrix(random_angles(4, 50))
    identity = np.einsum("nij,nkj->nik", matrices, matrices)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-12)


def random_frames(seed: int, n: int, size: np.ndarray) -> np.ndarray:
    """Return random projection matrices."""
    rng = np.random.default_rng(seed)
    tilts = rng.uniform(-60, 60, (3, n))
    return geometry.projection_matrices(*tilts, rng.normal(0, 5, (n, 2)), 2.0, (200, 180), size)


def test_project_points_with_and_without_movement() -> None:
    """One position for all frames, or one a frame."""
    rng = np.random.default_rng(5)
    projections = random_frames(5, 4, np.array([200.0, 180, 60]))
    still = rng.uniform(0, 200, (6, 3))
    moving = still[:, None, :] + rng.normal(0, 3, (6, 4, 3))
    homogeneous = np.concatenate([moving, np.ones((6, 4, 1))], axis=-1)
    expected = np.einsum("fij,pfj->pfi", projections, homogeneous)[..., :3]
    np.testing.assert_allclose(geometry.project_points(projections, moving), expected, atol=TIGHT)
    expected = np.einsum("fij,pj->pfi", projections, np.c_[still, np.ones(6)])[..., :3]
    np.testing.assert_allclose(geometry.project_points(projections, still), expected, atol=TIGHT)


def test_depths_count_from_the_real_centre() -> None:
    """An odd tomogram size moves the centre of depth by half a pixel, unlike that of rotation."""
    size = np.array([201.0, 181.0, 61.0])
    projections = random_frames(6, 4, size)
    positions = np.array([[100.5, 90.5, 30.5], [10.0, 20.0, 50.0]])
    depth = geometry.depths_from_centre(projections, positions, size)
    np.testing.assert_allclose(depth[0], 0, atol=TIGHT)
    for f in range(4):
        row = projections[f, 2]
        expected = row @ [*positions[1], 1] - row @ [*(size / 2), 1]
        assert depth[1, f] == pytest.approx(expected, abs=TIGHT)


def test_offsets_turn_with_the_box() -> None:
    """The offset is subtracted, in pixels, after the box's rotation."""
    angles = random_angles(7, 3)
    rng = np.random.default_rng(7)
    coordinate, offset = rng.uniform(0, 100, (3, 3)), rng.normal(0, 8, (3, 3))
    found = geometry.apply_offset(coordinate, offset, geometry.euler_to_matrix(angles), 1.6)
    for i in range(3):
        expected = coordinate[i] - oracle.euler_to_matrix(*angles[i]) @ offset[i] / 1.6
        np.testing.assert_allclose(found[i], expected, atol=TIGHT)


@pytest.mark.parametrize(
    ("point", "is_inside"),
    [
        ((50, 40), True),
        ((16, 40), False),
        ((16.001, 40), True),
        ((84, 40), False),
        ((83.999, 40), True),
        ((50, 16), False),
        ((50, 16.001), True),
        ((50, 64), False),
        ((50, 63.999), True),
        ((84, 64), False),
        ((-50, 40), False),
    ],
)
def test_visibility_is_strict_at_every_edge(point: tuple[float, float], is_inside: bool) -> None:
    """A box that touches the edge of a 100 x 80 image is not inside (2.3)."""
    found = geometry.is_inside_image(np.array([[point]], dtype=float), (100, 80), 16.0)
    assert found.shape == (1, 1)
    assert found[0, 0] == is_inside
