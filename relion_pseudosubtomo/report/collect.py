"""What workers collect for the report while they extract: a few small pictures and sums."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.inputs import TiltImages, view_bytes
from relion_pseudosubtomo.model import Task, Tomogram
from relion_pseudosubtomo.report.store import Piece, ReportStore, TiltPictures

Floats = NDArray[np.floating]
Greys = NDArray[np.uint8]

#: Pixels of the longer side of a small tilt image, at most.
TILT_PIXELS = 400

#: Rows of each block of pixels that are averaged: enough to see ice and gold, and quickly read.
ROWS_PER_BLOCK = 4

#: Pixels of an example particle's side, at most, and how many there are a tomogram.
EXAMPLE_PIXELS = 96
EXAMPLES = 6

#: Shares of the pixels that may be all black or all white, in percent.
_GREY_PERCENTILES = (0.5, 99.5)

_MID_GREY = 127


def tilt_angles(projections: Floats) -> Floats:
    """Return the angle between each frame's beam and the tomogram's z axis in degrees."""
    beam = projections[:, 2, :3]
    length = np.maximum(np.linalg.norm(beam, axis=1), np.finfo(float).tiny)
    return np.rad2deg(np.arccos(np.clip(beam[:, 2] / length, -1, 1)))


def choose_frames(projections: Floats, used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the least and the most tilted of the used frames, shape (2,)."""
    frames = np.flatnonzero(used)
    tilt = tilt_angles(projections)[frames]
    return frames[[int(np.argmin(tilt)), int(np.argmax(tilt))]]


def choose_examples(n_particles: int) -> NDArray[np.int64]:
    """Return the places of a tomogram's examples among its kept particles, evenly spread."""
    return np.unique(np.linspace(0, n_particles - 1, EXAMPLES).astype(np.int64))


def shrink(image: NDArray, longest: int) -> tuple[Floats, int]:
    """Return an image as means of blocks, of which some rows only are read, and the block size.

    Parameters
    ----------
    image : ndarray, shape (height, width)
        Of a type that MRC files have; mapped or in memory.
    longest : int
        Pixels of the result's longer side, at most.

    Returns
    -------
    small : ndarray, shape (height // size, width // size) or one more where that is 0, float32
    size : int
        Pixels of a block along each axis.

    Raises
    ------
    OSError
        If the image cannot be read any more.
    """
    image_bytes, mode = view_bytes(image)
    size = max(1, -(-max(image.shape) // longest))
    height, width = (max(1, n // size) for n in image.shape)
    small = np.empty((height, width), np.float32)
    rows = np.empty((min(size, ROWS_PER_BLOCK), width * size), np.float32)
    for y in range(height):
        kernels.copy_rows(image_bytes, mode, np.array([0, y * size]), 0, rows)
        small[y] = rows.mean(axis=0).reshape(width, size).mean(axis=1)
    return small, size


def to_grey(image: Floats) -> Greys:
    """Return an image in grey values of its own; mid-grey where it is not finite, or all one."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, _GREY_PERCENTILES) if finite.size else (0.0, 0.0)
    if high <= low:
        return np.full(image.shape, _MID_GREY, np.uint8)
    grey = (np.clip(image, low, high) - low) * (255 / (high - low))
    return np.nan_to_num(grey, nan=_MID_GREY).astype(np.uint8)


def draw_tilts(images: TiltImages, frames: NDArray[np.int64]) -> TiltPictures:
    """Return small pictures of some tilt images."""
    pictures, scale = [], 1
    for frame in frames:
        image = images.image_bytes[frame].view(kernels.IMAGE_DTYPES[images.modes[frame]])
        small, scale = shrink(image, TILT_PIXELS)
        pictures.append(to_grey(small))
    return TiltPictures(frames, np.stack(pictures), scale)


class Spectrum:
    """Radial averages of power spectra of square images.

    Parameters
    ----------
    size : int
        n, pixels of a side.
    """

    def __init__(self, size: int) -> None:
        k_y, k_x = np.fft.fftfreq(size, 1 / size)[:, None], np.arange(size // 2 + 1)
        self._shell = np.rint(np.hypot(k_y, k_x)).astype(np.int64).ravel()
        weight = np.where((k_x == 0) | (2 * k_x == size), 1.0, 2.0)
        self._weight = np.broadcast_to(weight, (size, len(k_x))).ravel()
        self._count = np.bincount(self._shell, self._weight)
        self._size = size

    def average(self, image: Floats) -> Floats:
        """Return the mean power of each shell below Nyquist, shape (n / 2,)."""
        image_fs = np.fft.rfft2(image)
        power = (image_fs.real**2 + image_fs.imag**2).ravel() / self._size**2
        sums = np.bincount(self._shell, self._weight * power)
        return (sums / self._count)[: self._size // 2]


class Collector:
    """Collects from the particles of one task; threads may add at the same time.

    Parameters
    ----------
    tomogram : Tomogram
    task : Task
    used : ndarray, shape (n_frames,), bool
        Frames in which any kept particle of the whole tomogram is visible.
    fingerprint : str
        Of the tomogram's whole task.
    images : TiltImages or None
        None for true subtomograms, which need none.
    n_whole : int
        Particles of the tomogram's whole task, of which the examples are chosen.
    is_3d : bool
        Whether particles are volumes rather than stacks of images.
    """

    def __init__(
        self,
        tomogram: Tomogram,
        task: Task,
        used: NDArray[np.bool_],
        fingerprint: str,
        images: TiltImages | None,
        *,
        n_whole: int,
        is_3d: bool,
    ) -> None:
        self._tomogram = tomogram.name
        self._task = task
        self._fingerprint = fingerprint
        self._is_3d = is_3d
        is_first = task.first == 0
        self._tilts: TiltPictures | None = None
        if is_first and images is not None:
            frames = choose_frames(tomogram.projections, used)
            self._tilts = draw_tilts(images, frames)
        self._wanted = set((choose_examples(n_whole) - task.first).tolist())
        dose = np.where(task.visible, tomogram.pre_exposure, np.inf)
        before = np.arange(dose.shape[1]) < np.argmin(dose, axis=1)[:, None]
        self._slice = np.sum(before & task.visible, axis=1)
        self._lock = threading.Lock()
        self._spectrum: Spectrum | None = None
        self._sums: tuple[NDArray[np.float32], Floats] | None = None
        self._n_summed = 0
        self._n_not_finite = 0
        self._examples: dict[int, Greys] = {}

    def add(self, i: int, particle: NDArray[np.float32]) -> None:
        """Add particle i of the task: a volume [z, y, x], or its images [frame, y, x]."""
        picture = particle.sum(axis=0) if self._is_3d else particle[self._slice[i]]
        spectrum = self._spectrum = self._spectrum or Spectrum(len(picture))
        is_finite = bool(np.isfinite(picture).all())  # one such pixel would blank the mean
        power = spectrum.average(picture) if is_finite else np.zeros(len(picture) // 2)
        with self._lock:
            if self._sums is None:
                self._sums = np.zeros_like(picture), np.zeros_like(power)
            if is_finite:
                self._sums[0][:] += picture
                self._sums[1][:] += power
                self._n_summed += 1
            else:
                self._n_not_finite += 1
            if i in self._wanted:
                self._examples[i] = to_grey(shrink(picture, EXAMPLE_PIXELS)[0])

    def write(self, store: ReportStore, n_particles: int) -> None:
        """Write what the first particles of the task, those that were done, look like."""
        if self._sums is None:
            return
        first = self._task.first
        places = sorted(i for i in self._examples if i < n_particles)
        side = len(next(iter(self._examples.values()), ()))
        examples = [self._examples[i] for i in places]
        piece = Piece(
            fingerprint=self._fingerprint,
            first=first,
            stop=first + n_particles,
            n_summed=self._n_summed,
            picture_sum=self._sums[0],
            power_sum=self._sums[1],
            places=first + np.array(places, dtype=np.int64),
            examples=np.array(examples, np.uint8).reshape(len(places), side, side),
            tilts=self._tilts,
            n_not_finite=self._n_not_finite,
        )
        store.write_piece(self._tomogram, piece)
