"""Real-space masks of the images and volumes (spec 2.6, 2.10)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

CIRCLE_FALLOFF = 5.0


def raised_cosine(radius: Floats, outer: float, falloff: float) -> Floats:
    """Return 1 inside `outer - falloff`, 0 from `outer` on, half a cosine between them."""
    inner = radius < outer - falloff
    edge = (radius >= outer - falloff) & (radius < outer)
    if falloff <= 0:
        return inner.astype(np.float64)
    return np.where(
        inner, 1.0, np.where(edge, 0.5 - 0.5 * np.cos(np.pi * (outer - radius) / falloff), 0.0)
    )


def radius_2d(size: int) -> Floats:
    """Return the distance from pixel (size // 2, size // 2), shape (size, size)."""
    x = np.arange(size) - size // 2
    return np.hypot(x[:, None], x[None, :])


def grid_precorrection(radius: Floats, outer: float) -> Floats:
    """Return the correction for trilinear insertion: r / sin(pi r / outer), 0 near the edge."""
    out = np.where(radius < 1, 1.0, 0.0)
    inside = (radius >= 1) & (radius < outer - 1)
    out[inside] = radius[inside] / np.sin(np.pi * radius[inside] / outer)
    return out


@dataclass(frozen=True)
class ImageMask:
    """What is done to each binned image in real space.

    Attributes
    ----------
    subtract_mean : bool
        Whether the mean outside the circle is subtracted (circle crop).
    taper : ndarray, shape (n, n), float32
        Factor on the central pixels.
    inside : ndarray, shape (n + 1,), int32
        Half width of the circle in rows (s - n)/2 onwards.
    n_outside : int
        Pixels of the s x s image outside the circle.
    """

    subtract_mean: bool
    taper: NDArray[np.float32]
    inside: NDArray[np.int32]
    n_outside: int


def image_mask(s: int, n: int, *, circle_crop: bool, grid_precorr: bool) -> ImageMask:
    """Return the mask of an s x s image of which the central n x n are kept (spec 2.6)."""
    outer = n / 2
    radius = radius_2d(n)
    taper = np.ones((n, n))
    if circle_crop:
        taper *= raised_cosine(radius, outer, CIRCLE_FALLOFF)
    if grid_precorr:
        taper *= grid_precorrection(radius, outer)
    dy = np.arange(n + 1) - n // 2
    inside = np.floor(np.sqrt(outer**2 - dy.astype(np.float64) ** 2)).astype(np.int32)
    n_outside = int(np.count_nonzero(radius_2d(s) > outer))
    return ImageMask(circle_crop, taper.astype(np.float32), inside, n_outside)


def crop_circle(image: NDArray[np.float32]) -> None:
    """Apply the circle crop to a whole window in place (spec 2.4, step 1, `--circle_precrop`).

    Parameters
    ----------
    image : ndarray, shape (s0, s0), float32
        Radius and centre are s0 // 2, the falloff 5 unbinned pixels.
    """
    size = image.shape[0]
    radius = radius_2d(size)
    outside = radius > size // 2
    if outside.any():
        image -= np.float32(image[outside].mean(dtype=np.float64))
    image *= raised_cosine(radius, size // 2, CIRCLE_FALLOFF).astype(np.float32)


def taper_sphere(volume: NDArray[np.float32], falloff: float, *, centre: bool) -> None:
    """Apply the soft sphere of `--div` in place (spec 2.10).

    Parameters
    ----------
    volume : ndarray, shape (n, n, n)
    falloff : float
        Width of the edge, pixels.
    centre : bool
        Whether the mean, weighted with the mask, is subtracted first.
    """
    n = volume.shape[0]
    x = np.arange(n) - n // 2
    radius = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    mask = raised_cosine(radius, n / 2, falloff)
    if centre:
        volume -= np.float32(np.sum(volume * mask) / mask.sum())
    volume *= mask.astype(np.float32)
