"""Work for one rank, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Task:
    """The kept particles of one tomogram (or a range of them), with all that was decided.

    Attributes
    ----------
    number : int
        Place in the plan; results are put in this order.
    tomogram : int
        Place of the tomogram in the tomogram set.
    rows : ndarray, shape (m,), int64
        Rows of the particle set.
    stems : tuple of str
        Output path of each particle inside the output directory, without its suffix.
    visible : ndarray, shape (m, n_frames), bool
        Visible frames (spec 2.3).
    position : ndarray, shape (m, 3), float64
        Position p in unbinned pixels from the tomogram's corner.
    image_point : ndarray, shape (m, n_frames, 2), float64
        Projected position q = (x, y) in pixels of each tilt image, deformation included.
    box_rotation : ndarray, shape (m, 3, 3), float64
        Orientation of the box in the tomogram: A_sub, or A_full with `--apply_orientations`.
    particle_rotation : ndarray, shape (m, 3, 3), float64
        A_full, the orientation of the particle in the tomogram.
    optics_row : ndarray, shape (m,), int64
        Row of the optics group of each particle.
    """

    number: int
    tomogram: int
    rows: NDArray[np.int64]
    stems: tuple[str, ...]
    visible: NDArray[np.bool_]
    position: NDArray[np.floating]
    image_point: NDArray[np.floating]
    box_rotation: NDArray[np.floating]
    particle_rotation: NDArray[np.floating]
    optics_row: NDArray[np.int64]


@dataclass
class TaskResult:
    """What a worker did.

    Attributes
    ----------
    number : int
        The task's number.
    n_particles : int
        Particles extracted.
    bytes_written : int
        Bytes of all image files.
    seconds_loading, seconds_extracting, seconds_writing : float
        Wall time of the task's stages; writing is the sum over threads.
    n_clipped : int
        Values beyond the range of float16 that were clipped.
    n_not_finite : int
        Pixels of the tilt images used that were NaN or infinite.
    sums : tuple of ndarray or None
        Sums of the data volumes, shape (n, n, n), and of the weights, shape (n, n, n/2 + 1), for
        `--sum`.
    """

    number: int
    n_particles: int = 0
    bytes_written: int = 0
    seconds_loading: float = 0.0
    seconds_extracting: float = 0.0
    seconds_writing: float = 0.0
    n_clipped: int = 0
    n_not_finite: int = 0
    sums: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None
