"""The known structure: Gaussian blobs, whose volume and projections have closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Complexes = NDArray[np.complexfloating]

N_BLOBS = 48
SEMI_AXES_ANGSTROM = (72.0, 52.0, 36.0)
ARM_CENTRE_ANGSTROM = (38.0, 46.0, 18.0)
ARM_RADIUS_ANGSTROM = 30.0
LEAST_DISTANCE_ANGSTROM = 16.0
SIGMA_RANGE_ANGSTROM = (1.4, 4.0)
EXTENT_IN_SIGMAS = 3.0
STRUCTURE_STREAM = 1
PHASE_STEP = 16
"""Phases are products of a coarse and a fine one: few exponentials for many frequencies."""


@dataclass(frozen=True)
class Structure:
    """A sum of isotropic three-dimensional Gaussians.

    Attributes
    ----------
    centres_xyz : ndarray, shape (n_blobs, 3)
        Angstrom, relative to the centre of the box.
    sigma : ndarray, shape (n_blobs,)
        Standard deviations in Angstrom.
    weight : ndarray, shape (n_blobs,)
        Integral of each Gaussian over space.
    """

    centres_xyz: Floats
    sigma: Floats
    weight: Floats

    @property
    def radius(self) -> float:
        """Radius in Angstrom of the sphere about the centre that holds nearly all of it."""
        reach = np.linalg.norm(self.centres_xyz, axis=1) + EXTENT_IN_SIGMAS * self.sigma
        return float(np.max(reach))


def make_structure(seed: int = 0) -> Structure:
    """Return the structure of a seed: a flat body with an arm on one side, without symmetry.

    Blobs lie at random places at least `LEAST_DISTANCE_ANGSTROM` apart, inside a sphere some 160 A
    across; every third one is wide, the others are narrow enough to carry detail.
    """
    rng = np.random.default_rng([seed, STRUCTURE_STREAM])
    centres: list[Floats] = []
    while len(centres) < N_BLOBS:
        place = rng.uniform(-1, 1, 3) * np.max(SEMI_AXES_ANGSTROM)
        distances = np.linalg.norm(np.reshape(centres, (-1, 3)) - place, axis=1)
        if _is_in_body(place) and np.all(distances > LEAST_DISTANCE_ANGSTROM):
            centres.append(place)
    narrow, wide = SIGMA_RANGE_ANGSTROM
    middle = (narrow + wide) / 2
    is_wide = np.arange(N_BLOBS) % 3 == 0
    sigma = rng.uniform(np.where(is_wide, middle, narrow), np.where(is_wide, wide, middle))
    weight = rng.uniform(0.5, 1.5, N_BLOBS)
    places = np.array(centres)
    places -= np.average(places, axis=0, weights=weight)
    return Structure(places, sigma, weight)


def _is_in_body(place_xyz: Floats) -> bool:
    in_ellipsoid = np.sum((place_xyz / SEMI_AXES_ANGSTROM) ** 2) < 1
    in_arm = np.linalg.norm(place_xyz - np.array(ARM_CENTRE_ANGSTROM)) < ARM_RADIUS_ANGSTROM
    return bool(in_ellipsoid or in_arm)


def transform_projection(
    structure: Structure, rotation: Floats, centre_xy_px: Floats, size: int, pixel_size: float
) -> Complexes:
    """Return the Fourier transform of a projection, exact at any position.

    Parameters
    ----------
    structure : Structure
    rotation : ndarray, shape (3, 3)
        From the structure's axes to the image's (x, y, depth).
    centre_xy_px : ndarray, shape (2,)
        Where the structure's centre falls, in pixels from the middle of pixel (0, 0).
    size : int
        Width and height of the image in pixels, even.
    pixel_size : float
        Angstrom.

    Returns
    -------
    ndarray, shape (size, size // 2 + 1), complex128, half-complex [y, x]
        NumPy's convention (`irfft2` gives the image): per square Angstrom, with the frequencies
        at Nyquist, where a real image has no phase, set to zero.

    Notes
    -----
    A Gaussian factorises, so that the sum over blobs is a product of two small matrices.
    """
    points = structure.centres_xyz @ rotation[:2].T / pixel_size + centre_xy_px
    sigma = structure.sigma / pixel_size
    along_x = _factors(size, points[:, 0], sigma)
    along_y = _mirror(_factors(size, points[:, 1], sigma))
    return (along_y * (structure.weight / pixel_size**2)) @ along_x.T


def project_structure(
    structure: Structure, rotation: Floats, centre_xy_px: Floats, size: int, pixel_size: float
) -> Floats:
    """Return the projection itself, shape (size, size) as [y, x]; see `transform_projection`."""
    image_fs = transform_projection(structure, rotation, centre_xy_px, size, pixel_size)
    return np.fft.irfft2(image_fs, s=(size, size))


def reference_volume(box: int, pixel_size: float, structure: Structure | None = None) -> Floats:
    """Sample the structure on a grid, limited to the frequencies that the grid can hold.

    Parameters
    ----------
    box : int
        Voxels along each side; the structure's centre is at voxel (box // 2) of each axis.
    pixel_size : float
        Angstrom.
    structure : Structure, optional
        By default that of seed 0.

    Returns
    -------
    ndarray, shape (box, box, box), float64, [z, y, x]
        Density per cubic Angstrom. What lies outside a small box is cut off, not wrapped.
    """
    structure = make_structure() if structure is None else structure
    needed = 2 * math.ceil(structure.radius / pixel_size) + 2
    size = max(box + box % 2, needed)
    points = structure.centres_xyz / pixel_size + size // 2
    sigma = structure.sigma / pixel_size
    along_x = _factors(size, points[:, 0], sigma)
    along_y, along_z = (_mirror(_factors(size, points[:, a], sigma)) for a in (1, 2))
    volume_fs = np.stack([(along_y * (structure.weight * z)) @ along_x.T for z in along_z])
    volume = np.fft.irfftn(volume_fs, s=(size, size, size), axes=(0, 1, 2)) / pixel_size**3
    start = size // 2 - box // 2
    inside = slice(start, start + box)
    return volume[inside, inside, inside]


def _factors(size: int, position_px: Floats, sigma_px: Floats) -> Complexes:
    """Return the transforms along one axis, shape (size // 2 + 1, n_blobs); none at Nyquist."""
    half = size // 2 + 1
    k = np.fft.rfftfreq(size)[:, None]
    amplitude = np.exp(-2 * (np.pi * k * sigma_px) ** 2) * (k < 0.5)
    turn = -2j * np.pi * position_px / size
    fine = np.exp(turn * np.arange(PHASE_STEP)[:, None])
    coarse = np.exp(turn * np.arange(0, half, PHASE_STEP)[:, None])
    phase = (coarse[:, None] * fine).reshape(-1, len(position_px))[:half]
    return amplitude * phase


def _mirror(factors: Complexes) -> Complexes:
    """Add the negative frequencies, in FFT order, to the factors of an even size."""
    return np.concatenate([factors[:-1], factors[:0:-1].conj()])
