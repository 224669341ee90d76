"""Tomograms: tilt images, alignment, defocus, dose and optics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FrameImage:
    """Where one tilt image is: image `index` (from 0) of the MRC file `path`."""

    path: str
    index: int


@dataclass(frozen=True)
class Deformation:
    """2D deformation model of the tilt images of one tomogram (spec 2.2).

    Attributes
    ----------
    kind : {"linear", "spline", "Fourier"}
        The model.
    grid_xy : tuple of int
        Grid size (gx, gy); unused by the linear model.
    coefficients : ndarray, shape (n_frames, n_coefficients), float64
        In pixels, in the order of spec 2.2.
    """

    kind: str
    grid_xy: tuple[int, int]
    coefficients: NDArray[np.floating]


@dataclass(frozen=True)
class Tomogram:
    """One tomogram and its tilt series (spec 1.3). Frames are in file order everywhere.

    Attributes
    ----------
    name : str
        Unique name.
    size_xyz : ndarray, shape (3,), float64
        Tomogram size (W, H, D) in unbinned pixels as given; -999 where it is missing.
    pixel_size : float
        Of the tilt images, in Angstrom.
    hand : float
        Sign of the change of defocus with depth.
    voltage, spherical_aberration, amplitude_contrast : float
        kV, mm, and a fraction.
    optics_group_name : str
        Name of the optics group.
    defocus_slope : float
        Factor on the change of defocus with depth.
    bfactor_per_dose : float
        A^2 per e/A^2; 0 selects the standard dose weighting (spec 2.4, step 5).
    projections : ndarray, shape (n_frames, 4, 4), float64
        Projection matrices, (x, y, z, 1) in unbinned pixels from the tomogram's corner to
        (x, y, depth, 1) in pixels of the tilt image.
    pre_exposure : ndarray, shape (n_frames,), float64
        Dose before each frame, e/A^2.
    defocus_u, defocus_v, defocus_angle : ndarray, shape (n_frames,), float64
        Angstrom, Angstrom, degrees.
    ctf_scale, ctf_bfactor, phase_shift : ndarray, shape (n_frames,), float64
        Factor, A^2, degrees.
    frames : tuple of FrameImage
        The tilt images.
    image_size_xy : tuple of int
        (width, height) of every tilt image in pixels.
    deformation : Deformation or None
        2D deformation model.
    nominal_tilt : ndarray, shape (n_frames,) or None
        Stage tilt in degrees, used by true subtomograms only.
    reconstructions : tuple of str
        The reconstructed volume, or its two halves; empty where there is none.
    tomogram_binning : float or None
        Binning of the reconstructed volume.
    """

    name: str
    size_xyz: NDArray[np.floating]
    pixel_size: float
    hand: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    optics_group_name: str
    defocus_slope: float
    bfactor_per_dose: float
    projections: NDArray[np.floating]
    pre_exposure: NDArray[np.floating]
    defocus_u: NDArray[np.floating]
    defocus_v: NDArray[np.floating]
    defocus_angle: NDArray[np.floating]
    ctf_scale: NDArray[np.floating]
    ctf_bfactor: NDArray[np.floating]
    phase_shift: NDArray[np.floating]
    frames: tuple[FrameImage, ...]
    image_size_xy: tuple[int, int]
    deformation: Deformation | None = None
    nominal_tilt: NDArray[np.floating] | None = None
    reconstructions: tuple[str, ...] = ()
    tomogram_binning: float | None = None

    @property
    def n_frames(self) -> int:
        """Number of tilt images."""
        return len(self.frames)


@dataclass(frozen=True)
class TomogramSet:
    """All tomograms in file order.

    Attributes
    ----------
    path : str
        The file they were read from.
    tomograms : tuple of Tomogram
        In the order of the global table.
    failed : dict of str to str
        Tomograms whose images cannot be used, and why; only with `--allow_failures`.
    without_ctf_scale : frozenset of str
        Tomograms whose tilt table has no rlnCtfScalefactor: `ctf_scale` is RELION's 1 there.
    """

    path: str
    tomograms: tuple[Tomogram, ...]
    failed: dict[str, str] = field(default_factory=dict)
    without_ctf_scale: frozenset[str] = frozenset()

    def index_by_name(self) -> dict[str, int]:
        """Return name -> place in `tomograms`."""
        return {tomogram.name: i for i, tomogram in enumerate(self.tomograms)}
