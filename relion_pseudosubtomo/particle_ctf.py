"""What the images of a particle were multiplied by: CTF and dose weight (spec 2.4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.core.aberrations import aberration_phase
from relion_pseudosubtomo.core.ctf import ctf_envelope, ctf_phase_coefficients
from relion_pseudosubtomo.core.dose import dose_weight
from relion_pseudosubtomo.core.frames import slice_frequencies
from relion_pseudosubtomo.model import ParticleSet, Tomogram

Floats = NDArray[np.floating]


def weighted_ctf(
    tomogram: Tomogram,
    particle_set: ParticleSet,
    row: int,
    frames: NDArray[np.int64],
    box: int,
    pixel_size: float,
) -> Iterator[Floats]:
    """Yield CTF times dose weight of each frame, half-complex [ky, kx] (spec 2.4, steps 4 and 5).

    At the depth of the coordinate, which is where the particle was extracted.

    Parameters
    ----------
    tomogram : Tomogram
        The particle's.
    particle_set : ParticleSet
        As extracted.
    row : int
        Of the particle.
    frames : ndarray, int64
        Frames of the tomogram.
    box : int
        n, pixels.
    pixel_size : float
        Of the images, Angstrom.

    Yields
    ------
    ndarray, shape (n, n/2 + 1), float64
    """
    position = particle_set.coordinate[row : row + 1]
    depth = geometry.depths_from_centre(tomogram.projections, position, tomogram.size_xyz)[0]
    extra = tomogram.hand * tomogram.pixel_size * tomogram.defocus_slope * depth
    turns = ctf_phase_coefficients(
        tomogram.defocus_u + extra,
        tomogram.defocus_v + extra,
        tomogram.defocus_angle,
        tomogram.phase_shift,
        tomogram.voltage,
        tomogram.spherical_aberration,
        tomogram.amplitude_contrast,
    )
    k_x, k_y = slice_frequencies(box, pixel_size)
    k2 = k_y[:, None] ** 2 + k_x**2
    terms = np.stack([np.ones_like(k2), k2 * 0 + k_x**2, k_y[:, None] * k_x, k2 - k_x**2, k2**2])
    even = particle_set.optics.even_zernike[particle_set.optics_row[row]]
    aberration = aberration_phase(even, k_x, k_y, odd=False).T if len(even) else 0.0
    for f in frames:
        gamma = 2 * np.pi * np.tensordot(turns[f], terms, 1) + aberration
        envelope = ctf_envelope(k2, tomogram.ctf_scale[f], tomogram.ctf_bfactor[f])
        dose = dose_weight(np.sqrt(k2), tomogram.pre_exposure[f], tomogram.bfactor_per_dose)
        yield -np.sin(gamma) * envelope * dose
