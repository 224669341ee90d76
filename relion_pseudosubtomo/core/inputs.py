"""What an extraction is given: settings, tilt images, aberrations, and how a particle is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.prebin import BinnedImages

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ExtractionSettings:
    """What is done to every particle; the symbols are those of spec 2.

    Attributes
    ----------
    box, crop, window : int
        s and n in binned, s0 in unbinned pixels.
    binning : float
        b.
    stack2d : bool
        2D stacks rather than 3D.
    apply_ctf, invert_contrast, circle_crop, circle_precrop, grid_precorr : bool
        Steps of spec 2.4 and 2.6.
    cone : tuple of float or None
        (opening angle in degrees, width at the origin in voxels) of the cone weight (spec 2.9).
    exact_scale : bool
        For windows where b s is no whole number: exact in scale and centre, unlike RELION.
    prebin : int
        q: windows are cut from binned images (`core.prebin`), for windows of b s pixels; 1: from
        the tilt images themselves.
    average : bool
        Slices can be inserted into an average too; they need a circle crop.
    """

    box: int
    crop: int
    window: int
    binning: float
    stack2d: bool = False
    apply_ctf: bool = True
    invert_contrast: bool = True
    circle_crop: bool = True
    circle_precrop: bool = False
    grid_precorr: bool = False
    cone: tuple[float, float] | None = None
    exact_scale: bool = False
    prebin: int = 1
    average: bool = False

    @property
    def real_space_round_trip(self) -> bool:
        """Whether images go back to real space at all (spec 2.6)."""
        return self.stack2d or self.circle_crop or self.grid_precorr

    @property
    def inserts_slices(self) -> bool:
        """Whether slices are inserted into any volume."""
        return self.average or not self.stack2d

    @property
    def average_scale(self) -> float:
        """Factor on masked slices: an average's projections have the grey values of 2D stacks."""
        return 1.0 if self.stack2d else self.box / self.binning


@dataclass(frozen=True)
class TiltImages:
    """The tilt images of one tomogram, in memory or memory-mapped.

    Attributes
    ----------
    image_bytes : sequence of ndarray, shape (height, width * itemsize), uint8
        One a frame.
    modes : sequence of int
        MRC mode of each image's bytes: 0, 1, 2, 6 or 12.
    binned : BinnedImages or None
        The same images made smaller, if windows are to be cut from them.
    """

    image_bytes: Sequence[NDArray[np.uint8]]
    modes: Sequence[int]
    binned: BinnedImages | None = None

    @property
    def prebin(self) -> int:
        """Factor q of the binned images; 1 where there are none."""
        return 1 if self.binned is None else self.binned.factor

    @cached_property
    def views(self) -> Any:
        """The images as the compiled kernels see them, taken once."""
        samples = None if self.binned is None else self.binned.samples
        return kernels.ImageViews(self.image_bytes, self.modes, samples)

    @classmethod
    def from_arrays(cls, images: Sequence[NDArray[Any]]) -> TiltImages:
        """Return images of shape (height, width); other byte orders and layouts are converted."""
        pairs = [view_bytes(image) for image in images]
        return cls([seen for seen, _ in pairs], [mode for _, mode in pairs])


def view_bytes(pixels: NDArray[Any]) -> tuple[NDArray[np.uint8], int]:
    """Return pixels as the kernels read them; other byte orders and layouts are converted.

    Parameters
    ----------
    pixels : ndarray, shape (..., width)
        Of a type that MRC files have.

    Returns
    -------
    pixel_bytes : ndarray, shape (..., width * itemsize), uint8
    mode : int
        Their MRC mode.
    """
    native = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    modes = {np.dtype(dtype): mode for mode, dtype in kernels.IMAGE_DTYPES.items()}
    return native.view(np.uint8), modes[native.dtype]


@dataclass(frozen=True)
class Aberrations:
    """Optical aberrations of one optics group on a slice, [kx, ky] (spec 2.5).

    Attributes
    ----------
    even_turns : ndarray, shape (s/2 + 1, s), float64, or None
        Phase of the CTF in turns.
    odd_factor : ndarray, shape (s/2 + 1, s), complex64, or None
        exp(-i phase) on the image.
    """

    even_turns: NDArray[np.floating] | None = None
    odd_factor: NDArray[np.complex64] | None = None


@dataclass(frozen=True)
class ParticleView:
    """How one particle is seen in the frames of its tomogram.

    Attributes
    ----------
    visible : ndarray, shape (n_frames,), bool
        Frames that are used.
    image_point : ndarray, shape (n_frames, 2), float64
        Projected position (x, y) in pixels of the tilt image.
    extra_defocus : ndarray, shape (n_frames,), float64
        Defocus beyond that of the tomogram's centre, Angstrom.
    slice_axes : ndarray, shape (n_frames, 2, 3), float64
        First two rows of the projection times the box's orientation: the slice's x and y axes in
        the box, (x, y, z), before the factor n/s.
    particle_rotation : ndarray, shape (3, 3), float64
        A_full, for the cone weight.
    """

    visible: NDArray[np.bool_]
    image_point: Floats
    extra_defocus: Floats
    slice_axes: Floats
    particle_rotation: Floats
