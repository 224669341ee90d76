"""2D deformations of the tilt images: q -> q + d(q) (spec 2.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def deform_points(
    kind: str,
    grid_xy: tuple[int, int],
    coefficients: Floats,
    points: Floats,
    image_size_xy: tuple[int, int],
) -> Floats:
    """Return deformed image points.

    Parameters
    ----------
    kind : {"linear", "Fourier", "spline"}
        The model.
    grid_xy : tuple of int
        Its grid (gx, gy); the linear model has none.
    coefficients : ndarray, shape (n_frames, n_coefficients)
        Pixels; `n_coefficients_needed` says how many are used.
    points : ndarray, shape (n, n_frames, 2)
        (x, y) in pixels.
    image_size_xy : tuple of int
        (width, height).

    Returns
    -------
    ndarray, shape (n, n_frames, 2)
    """
    if kind == "linear":
        return points + _linear(coefficients, points, image_size_xy)
    if kind == "Fourier":
        return points + _fourier(grid_xy, coefficients, points, image_size_xy)
    return points + _spline(grid_xy, coefficients, points, image_size_xy)


def _linear(c: Floats, points: Floats, image_size_xy: tuple[int, int]) -> Floats:
    x = points[..., 0] - image_size_xy[0] / 2
    y = points[..., 1] - image_size_xy[1] / 2
    return np.stack([c[:, 0] * x, c[:, 1] * x + c[:, 2] * y], axis=-1)


def fourier_frequencies(grid_xy: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the (x, y) of the Fourier model's frequencies, in units of pi/width and pi/height."""
    gx, gy = grid_xy
    out = []
    for y in range(gy):
        if y < gy // 2:
            out += [(x, y) for x in range(1 if y == 0 else 0, gx // 2 + 1)]
        else:
            out += [(x, y - gy) for x in range(1, gx // 2 + 1)]
    return out


def _fourier(
    grid_xy: tuple[int, int], c: Floats, points: Floats, image_size_xy: tuple[int, int]
) -> Floats:
    frequencies = np.array(fourier_frequencies(grid_xy), dtype=np.float64).reshape(-1, 2)
    n = len(frequencies)
    phase = points @ (np.pi * frequencies / np.asarray(image_size_xy)).T  # (n, frames, N)
    pairs = c[:, : 4 * n].reshape(len(c), 2, n, 2)
    cosine = np.einsum("pfk,fdk->pfd", np.cos(phase), pairs[..., 0])
    return cosine + np.einsum("pfk,fdk->pfd", np.sin(phase), pairs[..., 1])


def _hermite(t: Floats) -> Floats:
    return np.stack(
        [1 - 3 * t**2 + 2 * t**3, 3 * t**2 - 2 * t**3, t - 2 * t**2 + t**3, -(t**2) + t**3],
        axis=-1,
    )


def _spline(
    grid_xy: tuple[int, int], c: Floats, points: Floats, image_size_xy: tuple[int, int]
) -> Floats:
    grid = np.asarray(grid_xy)
    place = points / (np.asarray(image_size_xy) / (grid - 1))
    place = np.clip(place, 0, grid - 1 - 1e-10)
    cell = np.floor(place).astype(np.int64)
    basis_x, basis_y = (_hermite(place[..., i] - cell[..., i]) for i in range(2))
    # (frames, component, y, x, (value, slope_x, slope_y, twist))
    nodes = c[:, : 8 * grid[0] * grid[1]].reshape(len(c), 2, grid[1], grid[0], 4)
    frame = np.arange(len(c))[None, :]
    at = {
        (a, b): nodes[frame, :, cell[..., 1] + b, cell[..., 0] + a] for a in (0, 1) for b in (0, 1)
    }
    value, slope_x, slope_y, twist = range(4)
    rows = (
        (
            at[0, 0][..., value],
            at[0, 1][..., value],
            at[0, 0][..., slope_y],
            at[0, 1][..., slope_y],
        ),
        (
            at[1, 0][..., value],
            at[1, 1][..., value],
            at[1, 0][..., slope_y],
            at[1, 1][..., slope_y],
        ),
        (
            at[0, 0][..., slope_x],
            at[0, 1][..., slope_x],
            at[0, 0][..., twist],
            at[0, 1][..., twist],
        ),
        (
            at[1, 0][..., slope_x],
            at[1, 1][..., slope_x],
            at[1, 0][..., twist],
            at[1, 1][..., twist],
        ),
    )
    patch = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    return np.einsum("pfi,pfdij,pfj->pfd", basis_x, patch, basis_y)
