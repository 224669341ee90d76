"""Trajectories: where each particle was in each frame, relative to its position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trajectories:
    """A trajectory set matched to a particle set (spec 1.5).

    Attributes
    ----------
    path : str
        The file they were read from.
    shifts : tuple of ndarray
        One array a particle, in the particle set's order, shape (n_frames, 3), float64:
        (x, y, z) in Angstrom in the tomogram's axes.
    n_tables : int
        Particles in the file, which may have more than the particle set.
    by_order : bool
        Whether the file's tables have no names of particles: it fits that one particle file alone.
    """

    path: str
    shifts: tuple[NDArray[np.floating], ...]
    n_tables: int
    by_order: bool = False

    def stack(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the shifts of these rows, all of one tomogram, shape (m, n_frames, 3)."""
        return np.stack([self.shifts[row] for row in rows])
