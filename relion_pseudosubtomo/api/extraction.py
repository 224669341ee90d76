"""Extraction in memory: from the arrays of a tilt series to particles, without any file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core.geometry import projection_matrices
from relion_pseudosubtomo.core.inputs import Aberrations
from relion_pseudosubtomo.core.subtomogram import ParticleExtractor
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import format_findings
from relion_pseudosubtomo.loading import prepare_images
from relion_pseudosubtomo.model import FrameImage, OpticsGroups, ParticleSet, Task, Tomogram
from relion_pseudosubtomo.options import JobOptions, check_options
from relion_pseudosubtomo.placement import place_particles
from relion_pseudosubtomo.plan import inside_frames, usable_frames
from relion_pseudosubtomo.worker import extraction_settings, particle_views

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class TiltSeries:
    """The images of a tilt series, and all that is known of them.

    Attributes
    ----------
    images : ndarray, shape (n_frames, height, width)
        float32, float16, int8, int16 or uint16.
    projections : ndarray, shape (n_frames, 4, 4), float64
        From (x, y, z, 1) in pixels from the tomogram's corner to (x, y, depth, 1) in pixels of the
        tilt image; `project` makes them of angles and shifts.
    pixel_size : float
        Of the tilt images, Angstrom.
    size_xyz : tuple of float
        Tomogram size in pixels of the tilt images.
    dose : ndarray, shape (n_frames,)
        Before each frame, e/A^2.
    defocus_u, defocus_v, defocus_angle : ndarray, shape (n_frames,)
        Angstrom, Angstrom, degrees; positive is underfocus.
    phase_shift : ndarray, shape (n_frames,), or None
        Degrees; None for none.
    voltage, spherical_aberration, amplitude_contrast : float
        kV, mm, fraction.
    hand : float
        rlnTomoHand: the sign of the change of defocus with depth.
    """

    images: NDArray[Any]
    projections: Floats
    pixel_size: float
    size_xyz: tuple[float, float, float]
    dose: Floats
    defocus_u: Floats
    defocus_v: Floats
    defocus_angle: Floats
    phase_shift: Floats | None = None
    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.07
    hand: float = -1.0

    @staticmethod
    def project(
        images: NDArray[Any],
        pixel_size: float,
        size_xyz: tuple[float, float, float],
        tilt: Floats,
        rotation: Floats | float = 0.0,
        shift_xy_angstrom: Floats | None = None,
    ) -> Floats:
        """Return the projections of a tilt series aligned by angles and shifts, as RELION does.

        Parameters
        ----------
        images : ndarray, shape (n_frames, height, width)
        pixel_size : float
            Angstrom.
        size_xyz : tuple of float
            Tomogram size, pixels of the tilt images.
        tilt : ndarray, shape (n_frames,)
            About the Y axis, degrees (rlnTomoYTilt).
        rotation : float or ndarray, shape (n_frames,), optional
            In the image plane, degrees (rlnTomoZRot).
        shift_xy_angstrom : ndarray, shape (n_frames, 2), optional
            Angstrom (rlnTomoX/YShiftAngst).

        Returns
        -------
        ndarray, shape (n_frames, 4, 4)
        """
        n, height, width = images.shape
        shifts = np.zeros((n, 2)) if shift_xy_angstrom is None else shift_xy_angstrom
        zero = np.zeros(n)
        return projection_matrices(
            zero,
            np.asarray(tilt, np.float64),
            zero + rotation,
            shifts,
            pixel_size,
            (width, height),
            np.asarray(size_xyz, np.float64),
        )


@dataclass(frozen=True)
class Extracted:
    """A particle that was extracted in memory.

    Attributes
    ----------
    images : ndarray, shape (n_visible, n, n) or (n, n, n), float32
        2D images of the visible frames, or the pseudo-subtomogram [z, y, x].
    weights : ndarray, shape (2, n, n, n/2 + 1), float32, or None
        3D: CTF^2 weights, then multiplicity; half-complex, FFTW order.
    visible : ndarray, shape (n_frames,), bool
        Frames in which the particle's cropped box is inside the image, within the maximum dose.
    pixel_size : float
        Of the images, Angstrom.
    """

    images: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    visible: Flags
    pixel_size: float


def extract_stacks(
    series: TiltSeries,
    positions: Floats,
    *,
    box: int,
    crop: int | None = None,
    binning: float = 1.0,
    **options: Any,
) -> Iterator[Extracted]:
    """Yield the 2D stack of each particle, as a run with `--stack2d` writes it.

    Parameters
    ----------
    series : TiltSeries
    positions : ndarray, shape (n_particles, 3)
        (x, y, z) in pixels of the tilt images from the tomogram's corner.
    box, crop : int
        `--b` and `--crop`, binned pixels; no crop is the box itself.
    binning : float
        `--bin`.
    **options
        Other options of the command line by name, e.g. `max_dose=50.0`, `no_ctf=True`.

    Yields
    ------
    Extracted
        One a position, in order; one that no frame sees has an empty stack.

    Raises
    ------
    InputError
        For options that make no sense.
    """
    job = _make_options(box, crop, binning, {**options, "stack2d": True})
    return _extract(series, np.asarray(positions, np.float64), None, job)


def extract_pseudo_subtomograms(
    series: TiltSeries,
    positions: Floats,
    angles: Floats | None = None,
    *,
    box: int,
    crop: int | None = None,
    binning: float = 1.0,
    **options: Any,
) -> Iterator[Extracted]:
    """Yield the 3D pseudo-subtomogram of each particle, as a run writes it.

    Parameters
    ----------
    series, positions, box, crop, binning, **options
        As for `extract_stacks`.
    angles : ndarray, shape (n_particles, 3), optional
        rlnTomoSubtomogramRot/Tilt/Psi, degrees: how the boxes are turned.

    Yields
    ------
    Extracted
        One a position, in order; one that no frame sees has a volume of zeros.

    Raises
    ------
    InputError
        For options that make no sense.
    """
    job = _make_options(box, crop, binning, options)
    return _extract(series, np.asarray(positions, np.float64), angles, job)


def _make_options(
    box: int, crop: int | None, binning: float, options: dict[str, Any]
) -> JobOptions:
    job = JobOptions("", box, box if crop is None else crop, binning, **options)
    findings = check_options(job)
    if findings.errors:
        raise InputError(format_findings(findings))
    return job


def _extract(
    series: TiltSeries, positions: Floats, angles: Floats | None, options: JobOptions
) -> Iterator[Extracted]:
    tomogram = _make_tomogram(series)
    particle_set = _make_particle_set(series, positions, angles)
    rows = np.arange(len(positions))
    placed = place_particles(options, tomogram, particle_set, None, rows)
    visible = inside_frames(options, tomogram, placed) & usable_frames(options, tomogram)
    used = np.any(visible, axis=0)
    loaded = prepare_images(options, tomogram, 0, list(series.images), used)
    task = Task(0, 0, 0, rows, ("",) * len(rows), visible)
    extractor, n = ParticleExtractor(extraction_settings(options)), options.crop
    pixel_size = options.binning * series.pixel_size
    for view in particle_views(tomogram, task, placed):
        arguments = loaded.images, loaded.tables, view, Aberrations()
        if options.stack2d:
            images, weights = extractor.extract_stack(*arguments), None
        else:
            subtomogram = extractor.extract_subtomogram(*arguments)
            images = subtomogram.data.copy()
            weights = subtomogram.weights.reshape(2, n, n, n // 2 + 1).copy()
        yield Extracted(images, weights, view.visible, pixel_size)


def _make_tomogram(series: TiltSeries) -> Tomogram:
    n, height, width = series.images.shape
    zero, one = np.zeros(n), np.ones(n)
    return Tomogram(
        name="",
        size_xyz=np.asarray(series.size_xyz, np.float64),
        pixel_size=series.pixel_size,
        hand=series.hand,
        voltage=series.voltage,
        spherical_aberration=series.spherical_aberration,
        amplitude_contrast=series.amplitude_contrast,
        optics_group_name="",
        defocus_slope=1.0,
        bfactor_per_dose=0.0,
        projections=np.asarray(series.projections, np.float64),
        pre_exposure=np.asarray(series.dose, np.float64),
        defocus_u=np.asarray(series.defocus_u, np.float64),
        defocus_v=np.asarray(series.defocus_v, np.float64),
        defocus_angle=np.asarray(series.defocus_angle, np.float64),
        ctf_scale=one,
        ctf_bfactor=zero,
        phase_shift=zero if series.phase_shift is None else np.asarray(series.phase_shift),
        frames=tuple(FrameImage("", i) for i in range(n)),
        image_size_xy=(width, height),
    )


def _make_particle_set(series: TiltSeries, positions: Floats, angles: Floats | None) -> ParticleSet:
    n = len(positions)
    zero, none = np.zeros((n, 3)), np.zeros(n, np.int64)
    no_terms = (np.zeros(0),)
    optics = OpticsGroups({}, np.array([1]), np.array([series.pixel_size]), no_terms, no_terms)
    return ParticleSet(
        path="",
        columns={},
        general={},
        optics=optics,
        tomogram=none,
        names=np.full(n, "", dtype=object),
        coordinate=positions,
        offset=zero,
        subtomogram_angles=zero if angles is None else np.asarray(angles, np.float64),
        angles=zero,
        optics_row=none,
        half=none,
    )
