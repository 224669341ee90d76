"""Extraction in memory: from the arrays of a tilt series to particles, without any file."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relion_pseudosubtomo.core.geometry import projection_matrices
from relion_pseudosubtomo.core.inputs import Aberrations
from relion_pseudosubtomo.core.kernels import IMAGE_DTYPES
from relion_pseudosubtomo.core.noise import check_noise_window
from relion_pseudosubtomo.core.subtomogram import ParticleExtractor
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import format_findings, list_first
from relion_pseudosubtomo.loading import prepare_images
from relion_pseudosubtomo.model import FrameImage, OpticsGroups, ParticleSet, Task, Tomogram
from relion_pseudosubtomo.options import JobOptions, check_options
from relion_pseudosubtomo.placement import place_particles
from relion_pseudosubtomo.plan import inside_frames, usable_frames
from relion_pseudosubtomo.worker import extraction_settings, particle_views

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

#: Options that change the numbers of both kinds, and those of 3D alone. All others are about files,
#: or about which particles are kept.
_OPTIONS = frozenset(
    {
        "max_dose",
        "common_tilts",
        "whiten",
        "no_ctf",
        "no_ic",
        "no_circle_crop",
        "circle_precrop",
        "grid_precorr",
        "exact_centre",
    }
)
_OPTIONS_3D = frozenset({"cutoff_fract", "cone_weight", "cone_angle", "cone_sig0"})


@dataclass(frozen=True)
class TiltSeries:
    """The images of a tilt series, and all that is known of them.

    Attributes
    ----------
    images : ndarray, shape (n_frames, height, width)
        float32, float16, int8, int16 or uint16; others are refused, for the caller to convert.
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
    ctf_scale : ndarray, shape (n_frames,), or None
        rlnCtfScalefactor; None for 1.
    ctf_bfactor : ndarray, shape (n_frames,), or None
        rlnCtfBfactor, A^2; None for none.
    defocus_slope : float
        rlnTomoDefocusSlope: factor on the change of defocus with depth.
    bfactor_per_dose : float
        rlnCtfBfactorPerElectronDose, A^2 per e/A^2; 0 for the usual dose weights.
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
    ctf_scale: Floats | None = None
    ctf_bfactor: Floats | None = None
    defocus_slope: float = 1.0
    bfactor_per_dose: float = 0.0

    @staticmethod
    def project(
        images: NDArray[Any],
        pixel_size: float,
        size_xyz: tuple[float, float, float],
        tilt: Floats,
        rotation: Floats | float = 0.0,
        shift_xy_angstrom: Floats | None = None,
        *,
        x_tilt: Floats | float = 0.0,
        exact_centre: bool = False,
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
        x_tilt : float or ndarray, shape (n_frames,), optional
            About the X axis, degrees (rlnTomoXTilt).
        exact_centre : bool, optional
            Rotate about the true centre of odd sizes, as a run with `--exact_centre`; RELION's is
            half a pixel off. Give the same option to the extraction.

        Returns
        -------
        ndarray, shape (n_frames, 4, 4)

        Raises
        ------
        InputError
            For angles or shifts that are not finite, or too few or too many.
        """
        n, height, width = images.shape
        shifts = np.zeros((n, 2)) if shift_xy_angstrom is None else shift_xy_angstrom
        rotations, x_tilts = (
            np.full(n, angle) if np.ndim(angle) == 0 else angle for angle in (rotation, x_tilt)
        )
        return projection_matrices(
            _read("x_tilt", x_tilts, n),
            _read("tilt", tilt, n),
            _read("rotation", rotations, n),
            _read("shift_xy_angstrom", shifts, n, 2),
            pixel_size,
            (width, height),
            _read("size_xyz", size_xyz, 3),
            real_halves=exact_centre,
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
    n_not_finite : int
        Pixels of its windows that were NaN or infinite, counted in each visible frame: 2D images
        that touch one are spoilt, and so is the whole of a volume.
    """

    images: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    visible: Flags
    pixel_size: float
    n_not_finite: int = 0


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
        Options of the command line by name: max_dose, common_tilts, whiten, no_ctf, no_ic,
        no_circle_crop, circle_precrop, grid_precorr, exact_centre.

    Yields
    ------
    Extracted
        One a position, in order; one that no frame sees has an empty stack.

    Raises
    ------
    InputError
        For options that make no sense or have none here, and for arrays of another shape or type,
        or, but for the images, with numbers that are not finite; at the call, not at the first
        particle.
    """
    job = _make_options(box, crop, binning, options, stack2d=True)
    particle_set = _make_particle_set(series, positions)
    return _extract(series, _make_tomogram(series, job), particle_set, job)


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
    series, positions, box, crop, binning
        As for `extract_stacks`.
    angles : ndarray, shape (n_particles, 3), optional
        rlnTomoSubtomogramRot/Tilt/Psi, degrees: how the boxes are turned.
    **options
        As for `extract_stacks`, and cutoff_fract, cone_weight, cone_angle, cone_sig0.

    Yields
    ------
    Extracted
        One a position, in order; one that no frame sees has a volume of zeros.

    Raises
    ------
    InputError
        As for `extract_stacks`.
    """
    job = _make_options(box, crop, binning, options, stack2d=False)
    particle_set = _make_particle_set(series, positions, angles)
    return _extract(series, _make_tomogram(series, job), particle_set, job)


def _make_options(
    box: int, crop: int | None, binning: float, options: dict[str, Any], *, stack2d: bool
) -> JobOptions:
    taken = _OPTIONS if stack2d else _OPTIONS | _OPTIONS_3D
    others = options.keys() - taken
    if others:
        raise InputError(
            f"Options of an extraction in memory: expected {', '.join(sorted(taken))}, found "
            f"{list_first(sorted(others))}. Leave out what changes no numbers here."
        )
    box = _read_size("box", box)
    crop = box if crop is None else _read_size("crop", crop)
    job = JobOptions("", box, crop, binning, stack2d=stack2d, **options)
    findings = check_options(job)
    if findings.errors:
        raise InputError(format_findings(findings))
    return job


def _read_size(what: str, size: int) -> int:
    try:
        return operator.index(size)
    except TypeError as error:
        raise InputError(f"{what}: expected a whole number, found {size!r}") from error


def _extract(
    series: TiltSeries, tomogram: Tomogram, particle_set: ParticleSet, options: JobOptions
) -> Iterator[Extracted]:
    rows = np.arange(len(particle_set))
    placed = place_particles(options, tomogram, particle_set, None, rows)
    visible = inside_frames(options, tomogram, placed) & usable_frames(options, tomogram)
    used = np.any(visible, axis=0)
    loaded = prepare_images(options, tomogram, 0, list(series.images), used)
    task = Task(0, 0, 0, rows, ("",) * len(rows), visible)
    extractor, n = ParticleExtractor(extraction_settings(options)), options.crop
    pixel_size = options.binning * series.pixel_size
    for view in particle_views(tomogram, task, placed):
        arguments = loaded.images, loaded.tables, view, Aberrations()
        seen = extractor.n_not_finite
        if options.stack2d:
            images, weights = extractor.extract_stack(*arguments), None
        else:
            subtomogram = extractor.extract_subtomogram(*arguments)
            images = subtomogram.data.copy()
            weights = subtomogram.weights.reshape(2, n, n, n // 2 + 1).copy()
        n_bad = extractor.n_not_finite - seen
        yield Extracted(images, weights, view.visible, pixel_size, n_bad)


def _check_series(series: TiltSeries, options: JobOptions) -> None:
    """Refuse images and microscopes that extraction would fail at, or misread."""
    images, contrast = series.images, series.amplitude_contrast
    types = [np.dtype(dtype) for dtype in IMAGE_DTYPES.values()]
    for what, found, is_good, expected in (
        ("Shape of images", images.shape, images.ndim == 3, "(n_frames, height, width)"),
        (
            "Type of images",
            images.dtype,
            images.dtype.newbyteorder("=") in types,
            ", ".join(dtype.name for dtype in types),
        ),
        ("pixel_size", series.pixel_size, series.pixel_size > 0, "more than 0 A"),
        ("voltage", series.voltage, series.voltage > 0, "more than 0 kV"),
        ("amplitude_contrast", contrast, 0 <= contrast <= 1, "a fraction"),
        ("hand", series.hand, abs(series.hand) == 1, "1 or -1"),
    ):
        if not is_good:
            raise InputError(f"{what} of a tilt series: expected {expected}, found {found}")
    if options.whiten:
        check_noise_window(images.shape[1:], options.window)


def _read(what: str, values: ArrayLike, *shape: int | str) -> Floats:
    """Return finite numbers of this shape as float64; lengths that are words may be any."""
    array = np.asarray(values, np.float64)
    lengths = zip(shape, array.shape, strict=False)
    if array.ndim != len(shape) or any(n != m for n, m in lengths if not isinstance(n, str)):
        expected = ", ".join(map(str, shape))
        raise InputError(f"Shape of {what}: expected ({expected}), found {array.shape}")
    n_bad = np.count_nonzero(~np.isfinite(array))
    if n_bad:
        raise InputError(f"{what}: expected finite numbers, found {n_bad} that are not")
    return array


def _make_tomogram(series: TiltSeries, options: JobOptions) -> Tomogram:
    _check_series(series, options)
    n, height, width = series.images.shape

    def of_frames(name: str, default: float) -> Floats:
        values = getattr(series, name)
        return np.full(n, default) if values is None else _read(name, values, n)

    return Tomogram(
        name="",
        size_xyz=_read("size_xyz", series.size_xyz, 3),
        pixel_size=series.pixel_size,
        hand=series.hand,
        voltage=series.voltage,
        spherical_aberration=float(_read("spherical_aberration", series.spherical_aberration)),
        amplitude_contrast=series.amplitude_contrast,
        optics_group_name="",
        defocus_slope=float(_read("defocus_slope", series.defocus_slope)),
        bfactor_per_dose=float(_read("bfactor_per_dose", series.bfactor_per_dose)),
        projections=_read("projections", series.projections, n, 4, 4),
        pre_exposure=_read("dose", series.dose, n),
        defocus_u=_read("defocus_u", series.defocus_u, n),
        defocus_v=_read("defocus_v", series.defocus_v, n),
        defocus_angle=_read("defocus_angle", series.defocus_angle, n),
        ctf_scale=of_frames("ctf_scale", 1.0),
        ctf_bfactor=of_frames("ctf_bfactor", 0.0),
        phase_shift=of_frames("phase_shift", 0.0),
        frames=tuple(FrameImage("", i) for i in range(n)),
        image_size_xy=(width, height),
    )


def _make_particle_set(
    series: TiltSeries, positions: Floats, angles: Floats | None = None
) -> ParticleSet:
    positions = _read("positions", positions, "n_particles", 3)
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
        subtomogram_angles=zero if angles is None else _read("angles", angles, n, 3),
        angles=zero,
        optics_row=none,
        half=none,
    )
