"""From a particle's position to its place, depth and visibility in every tilt image (spec 2.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def rotation_x(degrees: Floats) -> Floats:
    """Return right-handed 4x4 rotations about x, shape (n, 4, 4), for angles of shape (n,)."""
    c, s = _cos_sin(degrees)
    return _matrices([[1, 0, 0], [0, c, -s], [0, s, c]], len(c))


def rotation_y(degrees: Floats) -> Floats:
    """Return right-handed 4x4 rotations about y, shape (n, 4, 4), for angles of shape (n,)."""
    c, s = _cos_sin(degrees)
    return _matrices([[c, 0, s], [0, 1, 0], [-s, 0, c]], len(c))


def rotation_z(degrees: Floats) -> Floats:
    """Return right-handed 4x4 rotations about z, shape (n, 4, 4), for angles of shape (n,)."""
    c, s = _cos_sin(degrees)
    return _matrices([[c, -s, 0], [s, c, 0], [0, 0, 1]], len(c))


def _cos_sin(degrees: Floats) -> tuple[Floats, Floats]:
    angle = np.deg2rad(np.atleast_1d(np.asarray(degrees, dtype=np.float64)))
    return np.cos(angle), np.sin(angle)


def _matrices(rows: list[list[Any]], n: int) -> Floats:
    out = np.zeros((n, 4, 4))
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            out[:, i, j] = value
    out[:, 3, 3] = 1
    return out


def translation(x: Floats | float, y: Floats | float, z: Floats | float) -> Floats:
    """Return 4x4 translations, shape (n, 4, 4); the shifts broadcast against each other."""
    shift = np.stack(np.broadcast_arrays(*(np.atleast_1d(v) for v in (x, y, z))), axis=-1)
    out = np.zeros((len(shift), 4, 4))
    out[:] = np.eye(4)
    out[:, :3, 3] = shift
    return out


def projection_matrices(
    x_tilt: Floats,
    y_tilt: Floats,
    z_rot: Floats,
    shift_xy_angstrom: Floats,
    pixel_size: float,
    image_size_xy: tuple[int, int],
    size_xyz: Floats,
    *,
    real_halves: bool = False,
) -> Floats:
    """Return the projection matrix of every frame (spec 2.1).

    Parameters
    ----------
    x_tilt, y_tilt, z_rot : ndarray, shape (n_frames,)
        Alignment angles in degrees.
    shift_xy_angstrom : ndarray, shape (n_frames, 2)
        Alignment shifts (x, y) in Angstrom.
    pixel_size : float
        Of the tilt images, Angstrom.
    image_size_xy : tuple of int
        (width, height) of the tilt images.
    size_xyz : ndarray, shape (3,)
        Tomogram size in unbinned pixels; its integer halves are the rotation centre.
    real_halves : bool
        Rotate about the real halves instead, from which centred coordinates count; RELION does
        not, so that odd sizes put it half a pixel off.

    Returns
    -------
    ndarray, shape (n_frames, 4, 4)
        Acting on (x, y, z, 1) in unbinned pixels from the tomogram's corner.
    """
    shift = np.asarray(shift_xy_angstrom, dtype=np.float64) / pixel_size
    half = np.asarray(size_xyz, dtype=np.float64) / 2
    if not real_halves:
        half = np.trunc(half)
    width, height = image_size_xy
    return (
        translation(shift[:, 0] + width // 2, shift[:, 1] + height // 2, 0.0)
        @ rotation_z(z_rot)
        @ rotation_y(y_tilt)
        @ rotation_x(x_tilt)
        @ translation(-half[0], -half[1], -half[2])
    )


def alignment_angles(projections: Floats) -> Floats:
    """Return the angles that `projection_matrices` makes of these rotations.

    Parameters
    ----------
    projections : ndarray, shape (n_frames, 4, 4)
        Their upper left 3x3 is a rotation.

    Returns
    -------
    ndarray, shape (n_frames, 3)
        (X tilt, Y tilt, Z rotation) in degrees, the Y tilt within -90 to 90.
    """
    a = projections
    y_tilt = np.arctan2(-a[:, 2, 0], np.hypot(a[:, 2, 1], a[:, 2, 2]))
    x_tilt = np.arctan2(a[:, 2, 1], a[:, 2, 2])
    z_rot = np.arctan2(a[:, 1, 0], a[:, 0, 0])
    return np.rad2deg(np.stack([x_tilt, y_tilt, z_rot], axis=1))


def alignment_shifts(
    projections: Floats,
    pixel_size: float,
    image_size_xy: tuple[int, int],
    size_xyz: Floats,
    *,
    real_halves: bool = False,
) -> Floats:
    """Return the shifts (x, y) in Angstrom that `projection_matrices` makes of these matrices.

    Parameters
    ----------
    projections : ndarray, shape (n_frames, 4, 4)
    pixel_size, image_size_xy, size_xyz, real_halves
        As there.

    Returns
    -------
    ndarray, shape (n_frames, 2)
    """
    half = np.asarray(size_xyz, dtype=np.float64) / 2
    centre = np.append(half if real_halves else np.trunc(half), 1.0)
    width, height = image_size_xy
    return (projections[:, :2] @ centre - (width // 2, height // 2)) * pixel_size


def euler_to_matrix(angles: Floats) -> Floats:
    """Return the matrices A of ZYZ Euler angles (spec 2.1).

    Parameters
    ----------
    angles : ndarray, shape (..., 3)
        (rot, tilt, psi) in degrees.

    Returns
    -------
    ndarray, shape (..., 3, 3)
    """
    radians = np.deg2rad(np.asarray(angles, dtype=np.float64))
    cf, ct, cp = (np.cos(radians[..., i]) for i in range(3))
    sf, st, sp = (np.sin(radians[..., i]) for i in range(3))
    rows = (
        (cp * ct * cf - sp * sf, cp * ct * sf + sp * cf, -cp * st),
        (-sp * ct * cf - cp * sf, -sp * ct * sf + cp * cf, sp * st),
        (st * cf, st * sf, ct),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_euler(matrices: Floats) -> Floats:
    """Return the ZYZ Euler angles (rot, tilt, psi) in degrees of rotation matrices (spec 2.1).

    Parameters
    ----------
    matrices : ndarray, shape (..., 3, 3)

    Returns
    -------
    ndarray, shape (..., 3)
        With rot = 0 where the tilt is 0 or 180 degrees and rot and psi are one rotation.
    """
    a = np.asarray(matrices, dtype=np.float64)
    sin_tilt = np.hypot(a[..., 0, 2], a[..., 1, 2])
    tilt = np.arctan2(sin_tilt, a[..., 2, 2])
    regular = sin_tilt > 1e-6
    rot = np.where(regular, np.arctan2(a[..., 2, 1], a[..., 2, 0]), 0.0)
    psi_pole = np.where(
        a[..., 2, 2] > 0,
        np.arctan2(-a[..., 1, 0], a[..., 0, 0]),
        np.arctan2(a[..., 1, 0], -a[..., 0, 0]),
    )
    psi = np.where(regular, np.arctan2(a[..., 1, 2], -a[..., 0, 2]), psi_pole)
    return np.rad2deg(np.stack([rot, tilt, psi], axis=-1))


def apply_offset(
    coordinate: Floats, offset_angstrom: Floats, box_rotation: Floats, pixel_size: float
) -> Floats:
    """Return positions p = coordinate - A_sub offset / px (spec 2.1), pixels, shape (n, 3)."""
    return coordinate - np.einsum("nij,nj->ni", box_rotation, offset_angstrom) / pixel_size


def project_points(projections: Floats, positions: Floats) -> Floats:
    """Project positions into every frame.

    Parameters
    ----------
    projections : ndarray, shape (n_frames, 4, 4)
    positions : ndarray, shape (n, 3) or (n, n_frames, 3)
        Pixels from the tomogram's corner; one a frame with trajectories.

    Returns
    -------
    ndarray, shape (n, n_frames, 3)
        (x, y) in pixels of the tilt image, and the depth in pixels.
    """
    positions = np.asarray(positions, dtype=np.float64)
    if positions.ndim == 2:
        positions = positions[:, None, :]
    points = np.empty((3, len(positions), len(projections)))
    for point, row in zip(points, projections[:, :3].transpose(1, 2, 0), strict=True):
        # written out: einsum is slow here, and a matrix product's last bits depend on its size
        np.multiply(row[0], positions[..., 0], out=point)
        point += row[1] * positions[..., 1]
        point += row[2] * positions[..., 2]
        point += row[3]
    return np.moveaxis(points, 0, -1)


def depths_from_centre(projections: Floats, positions: Floats, size_xyz: Floats) -> Floats:
    """Return how much deeper than the tomogram's centre each position lies (spec 2.4, step 4).

    Parameters
    ----------
    projections : ndarray, shape (n_frames, 4, 4)
    positions : ndarray, shape (n, 3)
        Pixels, without trajectories.
    size_xyz : ndarray, shape (3,)
        Tomogram size; its real halves are the centre.

    Returns
    -------
    ndarray, shape (n, n_frames)
        Unbinned pixels.
    """
    centre = np.asarray(size_xyz, dtype=np.float64) / 2
    return np.einsum("fj,nj->nf", projections[:, 2, :3], positions - centre)


def is_inside_image(
    image_points: Floats, image_size_xy: tuple[int, int], radius: float
) -> NDArray[np.bool_]:
    """Return which projected points keep `radius` pixels from every image edge (spec 2.3).

    Parameters
    ----------
    image_points : ndarray, shape (..., 2)
        (x, y) in pixels.
    image_size_xy : tuple of int
        (width, height).
    radius : float
        Half the cropped box in unbinned pixels.
    """
    size = np.asarray(image_size_xy, dtype=np.float64)
    return np.all((image_points > radius) & (image_points < size - radius), axis=-1)
