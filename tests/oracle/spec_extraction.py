"""The mathematics of pseudo-subtomogram extraction, stated as plainly as possible.

Everything here is double-precision NumPy, written from the specification's page on extraction
(section numbers below are that page's) and shares no code with the program under test. Clarity
comes before speed: a particle of the reference cases takes some hundredths of a second.

Conventions (section 2): arrays are indexed [z, y, x]; points and vectors are (x, y, z) or (x, y).
A half-complex array of an m x m image holds kx = 0..m/2 and, in FFT order, the signed ky. All
Fourier transforms are unitary (``norm="ortho"``). Names follow the specification: `s` is the box
in binned pixels, `n` the cropped box, `s0` the box in unbinned pixels, `b` the binning factor.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
IntArray = NDArray[np.int64]

CROP_FALLOFF_PX = 5.0
"""Width of the cosine edge of the circle crop (2.6)."""
SMALLEST_CTF = 1e-8
"""CTF values closer to zero than this are moved away from it (2.4 step 4)."""
DIVISION_THRESHOLD = 1e-3
"""Share of the radial average below which a weight is raised before a division (2.10)."""
BOX_EDGE_PX = 2
"""Width of the soft edge of a true subtomogram's sphere (2.11)."""
TIE_SHARE = 0.5
"""Share of a projection's samples that lie exactly on the limiting radius (2.11, project_box)."""


@dataclass(frozen=True)
class Options:
    """The options that change numbers; names and defaults are the command line's."""

    box: int
    crop: int | None = None
    binning: float = 1.0
    stack2d: bool = False
    real_subtomo: bool = False
    max_dose: float = 0.0
    min_frames: int = 1
    cutoff_fract: float = 0.01
    circle_precrop: bool = False
    no_circle_crop: bool = False
    grid_precorr: bool = False
    no_ctf: bool = False
    no_ic: bool = False
    whiten: bool = False
    dont_apply_offsets: bool = False
    apply_orientations: bool = False
    cone_weight: bool = False
    cone_angle: float = 10.0
    cone_sig0: float = 2.0
    snr: float = 0.0
    taper: float = 5.0
    no_center: bool = False

    @property
    def s(self) -> int:
        """Box size in binned pixels."""
        return self.box

    @property
    def n(self) -> int:
        """Cropped box size in binned pixels."""
        return self.box if self.crop is None else self.crop

    @property
    def s0(self) -> int:
        """Box size in unbinned pixels (section 2)."""
        return math.floor(self.binning * self.box + 0.5)

    @property
    def sign(self) -> float:
        """-1 where the contrast is inverted, +1 with ``--no_ic``."""
        return 1.0 if self.no_ic else -1.0


@dataclass(frozen=True)
class Frame:
    """One tilt image with what its row of the tilt series says.

    `image` has shape (h, w); `projection` is the 4x4 matrix of 2.1; defocus in Angstrom, angles
    in degrees, dose in e/A^2.
    """

    image: FloatArray
    projection: FloatArray
    dose: float
    defocus_u: float
    defocus_v: float
    defocus_angle: float
    ctf_scale: float = 1.0
    ctf_bfactor: float = 0.0
    phase_shift: float = 0.0
    deformation: FloatArray | None = None
    nominal_tilt: float = 0.0

    @property
    def size_wh(self) -> tuple[int, int]:
        """Image width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True)
class Tomogram:
    """A tilt series and the optics it was taken with; sizes in unbinned pixels."""

    name: str
    frames: list[Frame]
    size_xyz: FloatArray
    pixel_size: float
    hand: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    defocus_slope: float = 1.0
    bfactor_per_dose: float = 0.0
    deformation_type: str = ""
    deformation_grid: tuple[int, int] = (0, 0)
    volume: FloatArray | None = None
    volume_binning: float = 1.0

    @property
    def centre_xyz(self) -> FloatArray:
        """The real half of the size, on which particle coordinates are centred (2.1)."""
        return self.size_xyz / 2


@dataclass(frozen=True)
class Particle:
    """One particle: where it is (unbinned pixels from the corner) and how it is turned."""

    name: str
    coordinate_px: FloatArray
    offset_angstrom: FloatArray = field(default_factory=lambda: np.zeros(3))
    a_sub: FloatArray = field(default_factory=lambda: np.eye(3))
    a_part: FloatArray = field(default_factory=lambda: np.eye(3))
    trajectory_angstrom: FloatArray | None = None
    optics_pixel_size: float = 1.0
    even_zernike: FloatArray = field(default_factory=lambda: np.zeros(0))
    odd_zernike: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def a_full(self) -> FloatArray:
        """Orientation of the particle in the tomogram, A_sub A_part (2.1)."""
        return self.a_sub @ self.a_part


@dataclass(frozen=True)
class Slice:
    """What one visible frame gives: transform, weight and dose weight, half-complex (s, s/2+1)."""

    transform: ComplexArray
    weight: FloatArray
    dose_weight: FloatArray


@dataclass
class Accumulators:
    """Data D, weight C and multiplicity M of 2.8, half-complex (n, n, n/2+1) in FFT order."""

    data: ComplexArray
    weight: FloatArray
    multiplicity: FloatArray

    @classmethod
    def zeros(cls, n: int) -> Accumulators:
        """Return empty accumulators for a box of n^3 voxels."""
        shape = (n, n, n // 2 + 1)
        return cls(np.zeros(shape, dtype=complex), np.zeros(shape), np.zeros(shape))


# Frequencies and transforms (section 2, introduction)


def signed_frequencies(m: int) -> IntArray:
    """Return the signed frequency of each index of an FFT of length m: y < m/2 ? y : y - m."""
    index = np.arange(m)
    return np.where(index < m / 2, index, index - m)


def frequency_grid_2d(m: int) -> tuple[IntArray, IntArray]:
    """Return kx of shape (1, m//2+1) and ky of shape (m, 1) of a half-complex image, integers."""
    return np.arange(m // 2 + 1)[None, :], signed_frequencies(m)[:, None]


def frequency_grid_3d(n: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return broadcastable kx, ky, kz of a half-complex (n, n, n/2+1) volume, integers."""
    signed = signed_frequencies(n)
    return np.arange(n // 2 + 1)[None, None, :], signed[None, :, None], signed[:, None, None]


def transform_centred(image: FloatArray) -> ComplexArray:
    """Transform a square image with its centre pixel (floor(m/2), floor(m/2)) as origin."""
    return np.fft.rfft2(np.fft.ifftshift(image), norm="ortho")


def inverse_transform_centred(spectrum: ComplexArray) -> FloatArray:
    """Transform a half-complex (m, m/2+1) array back, with the origin at pixel (m/2, m/2)."""
    m = spectrum.shape[0]
    return np.fft.fftshift(np.fft.irfft2(spectrum, s=(m, m), norm="ortho"))


def inverse_transform_volume(spectrum: ComplexArray) -> FloatArray:
    """Transform a half-complex (n, n, n/2+1) volume back, unitary, without any shift."""
    n = spectrum.shape[0]
    return np.fft.irfftn(spectrum, s=(n, n, n), axes=(0, 1, 2), norm="ortho")


def transform_volume(volume: FloatArray) -> ComplexArray:
    """Transform an n^3 volume forward, unitary, without any shift."""
    return np.fft.rfftn(volume, norm="ortho")


def distance_from_centre(m: int, dimensions: int) -> FloatArray:
    """Return each pixel's distance from pixel (floor(m/2), ...) of an m^dimensions array."""
    squares = (np.arange(m) - m // 2) ** 2.0
    total = np.zeros((m,) * dimensions)
    for axis in range(dimensions):
        shape = [1] * dimensions
        shape[axis] = m
        total = total + squares.reshape(shape)
    return np.sqrt(total)


# 2.1 Geometry


def round_half_away(value: FloatArray) -> IntArray:
    """Round to the nearest integer, halves away from zero."""
    return (np.sign(value) * np.floor(np.abs(value) + 0.5)).astype(int)


def translation_matrix(vector_xyz: FloatArray) -> FloatArray:
    """Return the 4x4 matrix that adds `vector_xyz`."""
    matrix = np.eye(4)
    matrix[:3, 3] = vector_xyz
    return matrix


def axis_rotation(axis: str, angle_degrees: float) -> FloatArray:
    """Return the 4x4 right-handed rotation about "x", "y" or "z" (2.1)."""
    c, s = math.cos(math.radians(angle_degrees)), math.sin(math.radians(angle_degrees))
    matrix = np.eye(4)
    rotations = {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }
    matrix[:3, :3] = rotations[axis]
    return matrix


def projection_matrix(
    x_tilt: float,
    y_tilt: float,
    z_rot: float,
    shift_px: tuple[float, float],
    image_size_wh: tuple[int, int],
    tomogram_size_xyz: FloatArray,
) -> FloatArray:
    """Return the 4x4 projection matrix of a tilt (2.1).

    Parameters
    ----------
    x_tilt, y_tilt, z_rot : float
        rlnTomoXTilt, rlnTomoYTilt, rlnTomoZRot in degrees.
    shift_px : tuple of float
        rlnTomoXShiftAngst and rlnTomoYShiftAngst divided by the pixel size.
    image_size_wh : tuple of int
        Width and height of the tilt image in pixels; its integer halves are used.
    tomogram_size_xyz : numpy.ndarray
        Size of the tomogram in unbinned pixels; its halves truncated towards zero are used.

    Returns
    -------
    numpy.ndarray
        Matrix acting on (x, y, z, 1) in unbinned pixels from the tomogram's corner.
    """
    image_centre = np.array([image_size_wh[0] // 2, image_size_wh[1] // 2, 0.0])
    tomogram_centre = np.trunc(np.asarray(tomogram_size_xyz) / 2)
    return (
        translation_matrix(np.array([*shift_px, 0.0]))
        @ translation_matrix(image_centre)
        @ axis_rotation("z", z_rot)
        @ axis_rotation("y", y_tilt)
        @ axis_rotation("x", x_tilt)
        @ translation_matrix(-tomogram_centre)
    )


def euler_to_matrix(rot: float, tilt: float, psi: float) -> FloatArray:
    """Return the 3x3 matrix of the ZYZ angles rot (phi), tilt (theta), psi in degrees (2.1)."""
    phi, theta, psi = np.radians([rot, tilt, psi])
    c_phi, c_theta, c_psi = np.cos([phi, theta, psi])
    s_phi, s_theta, s_psi = np.sin([phi, theta, psi])
    return np.array(
        [
            [
                c_psi * c_theta * c_phi - s_psi * s_phi,
                c_psi * c_theta * s_phi + s_psi * c_phi,
                -c_psi * s_theta,
            ],
            [
                -s_psi * c_theta * c_phi - c_psi * s_phi,
                -s_psi * c_theta * s_phi + c_psi * c_phi,
                s_psi * s_theta,
            ],
            [s_theta * c_phi, s_theta * s_phi, c_theta],
        ]
    )


def matrix_to_euler(a: FloatArray) -> tuple[float, float, float]:
    """Return the angles (rot, tilt, psi) in degrees of a 3x3 rotation matrix (2.1)."""
    sin_theta = math.hypot(a[0, 2], a[1, 2])
    theta = math.atan2(sin_theta, a[2, 2])
    if sin_theta > 1e-6:
        phi = math.atan2(a[2, 1], a[2, 0])
        psi = math.atan2(a[1, 2], -a[0, 2])
    else:
        phi = 0.0
        psi = math.atan2(-a[1, 0], a[0, 0]) if a[2, 2] > 0 else math.atan2(a[1, 0], -a[0, 0])
    return math.degrees(phi), math.degrees(theta), math.degrees(psi)


def particle_position(particle: Particle, tomogram: Tomogram, options: Options) -> FloatArray:
    """Return the position p in unbinned pixels, offset applied where the options say so (2.1)."""
    skip_offset = options.dont_apply_offsets and not options.apply_orientations
    if skip_offset and not options.real_subtomo:
        return particle.coordinate_px
    return particle.coordinate_px - (
        particle.a_sub @ particle.offset_angstrom / tomogram.pixel_size
    )


def image_point(
    particle: Particle, tomogram: Tomogram, frame_index: int, options: Options
) -> FloatArray:
    """Return q, the particle's place (x, y) in a frame, in pixels (2.1, 2.2)."""
    frame = tomogram.frames[frame_index]
    position = particle_position(particle, tomogram, options)
    if particle.trajectory_angstrom is not None:
        position = position + particle.trajectory_angstrom[frame_index] / tomogram.pixel_size
    q = (frame.projection @ np.append(position, 1.0))[:2]
    if frame.deformation is not None and tomogram.deformation_type:
        q = deform(
            tomogram.deformation_type,
            q,
            frame.deformation,
            frame.size_wh,
            tomogram.deformation_grid,
        )
    return q


def depth_px(particle: Particle, tomogram: Tomogram, frame_index: int, options: Options) -> float:
    """Return dz, the depth from the tomogram's centre in pixels, without trajectory (2.4)."""
    row = tomogram.frames[frame_index].projection[2]
    position = particle_position(particle, tomogram, options)
    return float(row @ np.append(position, 1.0) - row @ np.append(tomogram.centre_xyz, 1.0))


# 2.2 Deformations


def deform(
    kind: str,
    q: FloatArray,
    coefficients: FloatArray,
    image_size_wh: tuple[int, int],
    grid: tuple[int, int],
) -> FloatArray:
    """Return q + d(q) for a "linear", "spline" or "Fourier" deformation (2.2)."""
    displacement = {
        "linear": displacement_linear,
        "spline": displacement_spline,
        "Fourier": displacement_fourier,
    }[kind]
    return q + displacement(q, coefficients, image_size_wh, grid)


def displacement_linear(
    q: FloatArray, c: FloatArray, image_size_wh: tuple[int, int], grid: tuple[int, int]
) -> FloatArray:
    """Return d(q) of the linear model: three values, the grid is ignored (2.2)."""
    rx, ry = q - np.array(image_size_wh) / 2
    return np.array([c[0] * rx, c[1] * rx + c[2] * ry])


def displacement_fourier(
    q: FloatArray, c: FloatArray, image_size_wh: tuple[int, int], grid: tuple[int, int]
) -> FloatArray:
    """Return d(q) of the Fourier model: N pairs (re, im) for dx, then N for dy (2.2)."""
    (w, h), (gx, gy) = image_size_wh, grid
    frequencies = []
    for y in range(gy):
        first_x = 1 if y == 0 or y >= gy // 2 else 0
        signed_y = y if y < gy // 2 else y - gy
        frequencies += [
            (x * math.pi / w, signed_y * math.pi / h) for x in range(first_x, gx // 2 + 1)
        ]
    angle = np.array(frequencies) @ q
    pairs = np.reshape(c[: 4 * len(frequencies)], (2, len(frequencies), 2))
    return pairs[:, :, 0] @ np.cos(angle) + pairs[:, :, 1] @ np.sin(angle)


def displacement_spline(
    q: FloatArray, c: FloatArray, image_size_wh: tuple[int, int], grid: tuple[int, int]
) -> FloatArray:
    """Return d(q) of the spline model: (value, slope_x, slope_y, twist) a node (2.2)."""
    (w, h), (gx, gy) = image_size_wh, grid
    nodes = np.reshape(c, (2, gy, gx, 4))
    g = np.array([q[0] / (w / (gx - 1)), q[1] / (h / (gy - 1))])
    g = np.clip(g, 0, np.array([gx, gy]) - 1 - 1e-10)
    i, j = np.floor(g).astype(int)
    u, v = g - np.floor(g)

    def basis(t: float) -> FloatArray:
        return np.array(
            [1 - 3 * t**2 + 2 * t**3, 3 * t**2 - 2 * t**3, t - 2 * t**2 + t**3, -(t**2) + t**3]
        )

    displacement = np.zeros(2)
    for component in range(2):
        d00, d10 = nodes[component, j, i], nodes[component, j, i + 1]
        d01, d11 = nodes[component, j + 1, i], nodes[component, j + 1, i + 1]
        value, slope_x, slope_y, twist = range(4)
        f = np.array(
            [
                [d00[value], d01[value], d00[slope_y], d01[slope_y]],
                [d10[value], d11[value], d10[slope_y], d11[slope_y]],
                [d00[slope_x], d01[slope_x], d00[twist], d01[twist]],
                [d10[slope_x], d11[slope_x], d10[twist], d11[twist]],
            ]
        )
        displacement[component] = basis(u) @ f @ basis(v)
    return displacement


# 2.3 Visibility


def visible_frames(particle: Particle, tomogram: Tomogram, options: Options) -> NDArray[np.bool_]:
    """Return one flag a frame: the cropped box lies inside the image, the dose is allowed (2.3)."""
    margin = options.binning * options.n / 2
    flags = []
    for index, frame in enumerate(tomogram.frames):
        x, y = image_point(particle, tomogram, index, options)
        w, h = frame.size_wh
        inside = margin < x < w - margin and margin < y < h - margin
        flags.append(inside and (options.max_dose <= 0 or frame.dose <= options.max_dose))
    return np.array(flags)


# 2.4 Window, binning, CTF, dose


def cut_window(image: FloatArray, corner_xy: IntArray, size: int) -> FloatArray:
    """Cut a size x size window; pixels outside the image repeat the nearest edge (2.3, 2.4)."""
    h, w = image.shape
    columns = np.clip(corner_xy[0] + np.arange(size), 0, w - 1)
    rows = np.clip(corner_xy[1] + np.arange(size), 0, h - 1)
    return image[np.ix_(rows, columns)].astype(np.float64)


def crop_spectrum(spectrum: ComplexArray, s: int) -> ComplexArray:
    """Keep the s x s lowest frequencies: kx = 0..s/2, ky = 0..s/2-1, -s/2..-1 (2.4 step 2)."""
    rows = signed_frequencies(s) % spectrum.shape[0]
    return spectrum[rows, : s // 2 + 1]


def shift_phases(s: int, shift_xy: FloatArray) -> ComplexArray:
    """Return exp(+2 pi i (tx kx + ty ky)/s), half-complex (s, s/2+1) (2.4 step 3)."""
    kx, ky = frequency_grid_2d(s)
    return np.exp(2j * np.pi * (shift_xy[0] * kx + shift_xy[1] * ky) / s)


def ctf_image(
    s: int,
    pixel_size: float,
    frame: Frame,
    tomogram: Tomogram,
    dz_px: float,
    even_phase: FloatArray,
) -> FloatArray:
    """Return the CTF at a particle's depth, half-complex (s, s/2+1) (2.4 step 4).

    Parameters
    ----------
    s : int
        Box size in binned pixels.
    pixel_size : float
        Binned pixel size in Angstrom.
    frame, tomogram : Frame, Tomogram
        Defocus, CTF extras and optics.
    dz_px : float
        Depth of the particle in unbinned pixels.
    even_phase : numpy.ndarray
        Even aberration in radians (2.5), half-complex, added to the phase.
    """
    kx, ky = (k / (s * pixel_size) for k in frequency_grid_2d(s))
    k2 = kx**2 + ky**2
    shift = tomogram.hand * tomogram.pixel_size * tomogram.defocus_slope * dz_px
    u, v = frame.defocus_u + shift, frame.defocus_v + shift
    cos_a = math.cos(math.radians(frame.defocus_angle))
    sin_a = math.sin(math.radians(frame.defocus_angle))
    axx = -(u * cos_a**2 + v * sin_a**2)
    ayy = -(u * sin_a**2 + v * cos_a**2)
    axy = -(u - v) * sin_a * cos_a
    energy = 1000 * tomogram.voltage
    wavelength = 12.2643247 / math.sqrt(energy * (1 + 0.978466e-6 * energy))
    cs = 1e7 * tomogram.spherical_aberration
    q = tomogram.amplitude_contrast
    gamma = (
        math.pi * wavelength * (axx * kx**2 + 2 * axy * kx * ky + ayy * ky**2)
        + math.pi / 2 * cs * wavelength**3 * k2**2
        - math.radians(frame.phase_shift)
        - math.atan(q / math.sqrt(1 - q**2))
        + even_phase
    )
    ctf = -np.sin(gamma) * np.exp(-frame.ctf_bfactor * k2 / 4) * frame.ctf_scale
    return np.where(np.abs(ctf) < SMALLEST_CTF, np.copysign(SMALLEST_CTF, ctf), ctf)


def dose_weight(
    s: int, pixel_size: float, dose: float, bfactor_per_dose: float = 0.0
) -> FloatArray:
    """Return the dose weight, half-complex (s, s/2+1), 1 at the origin (2.4 step 5)."""
    kx, ky = frequency_grid_2d(s)
    k = np.hypot(kx, ky) / (s * pixel_size)
    if bfactor_per_dose > 0:
        return np.exp(-bfactor_per_dose * dose * k**2 / 4)
    weight = np.ones_like(k)
    critical = 0.245 * k[k > 0] ** -1.665 + 2.81
    weight[k > 0] = np.exp(-dose / (2 * critical))
    return weight


def extract_frame(
    particle: Particle, tomogram: Tomogram, frame_index: int, options: Options
) -> Slice:
    """Return one visible frame's transform, particle at the origin, and its weights (2.4).

    The real-space steps of 2.6 are not included.
    """
    frame, s, s0, b = tomogram.frames[frame_index], options.s, options.s0, options.binning
    pixel_size = b * tomogram.pixel_size

    q = image_point(particle, tomogram, frame_index, options)
    corner = round_half_away(q) - s0 // 2
    window = cut_window(frame.image, corner, s0)
    if options.circle_precrop:
        window = circle_crop(window, boundary=0)
    transform = transform_centred(window)
    if b != 1:
        transform = crop_spectrum(transform, s) / b
    # s0/2 below b for an odd window; s/2 for an even one whose size is not b s, as RELION has it.
    centre = s / 2 if s0 % 2 == 0 else (s0 // 2) / b
    transform = transform * shift_phases(s, (q - corner) / b - centre)

    dose = dose_weight(s, pixel_size, frame.dose, tomogram.bfactor_per_dose)
    if options.no_ctf:
        transform = transform * options.sign
        weight = np.ones_like(dose)
    else:
        even_phase = aberration_phase("even", particle, s, b)
        dz = depth_px(particle, tomogram, frame_index, options)
        c = ctf_image(s, pixel_size, frame, tomogram, dz, even_phase) * dose
        transform = transform * options.sign * c
        weight = c**2
    transform = transform * np.exp(-1j * aberration_phase("odd", particle, s, b))
    if options.whiten:
        whitening = noise_weight(frame.image, options)
        transform, weight = transform * whitening, weight * whitening
    if options.stack2d:
        transform = transform / b
    return Slice(transform, weight, dose)


# 2.5 Aberrations


def zernike_radial(n: int, m: int, rho: FloatArray) -> FloatArray:
    """Return the radial Zernike polynomial R_n^m(rho), m >= 0 (2.5)."""
    total = np.zeros_like(rho)
    for j in range((n - m) // 2 + 1):
        factor = (-1) ** j * math.factorial(n - j)
        factor /= (
            math.factorial(j) * math.factorial((n + m) // 2 - j) * math.factorial((n - m) // 2 - j)
        )
        total += factor * rho ** (n - 2 * j)
    return total


def zernike_index(parity: str, i: int) -> tuple[int, int]:
    """Return (m, n) of the i-th coefficient of an "even" or "odd" list (2.5)."""
    if parity == "even":
        row = math.isqrt(i)
        return 2 * (i - row**2 - row), 2 * row
    row = (math.isqrt(1 + 4 * i) - 1) // 2
    n = 2 * row + 1
    return 2 * (i - row**2 - row) - n, n


def aberration_phase(parity: str, particle: Particle, s: int, binning: float) -> FloatArray:
    """Return the "even" or "odd" aberration in radians, half-complex (s, s/2+1) (2.5)."""
    coefficients = particle.even_zernike if parity == "even" else particle.odd_zernike
    kx, ky = frequency_grid_2d(s)
    scale = 1 / (s * binning * particle.optics_pixel_size)
    rho = np.hypot(kx, ky) * scale
    phi = np.arctan2(ky * scale, kx * scale)
    phase = np.zeros_like(rho)
    for i, coefficient in enumerate(coefficients):
        m, n = zernike_index(parity, i)
        angular = np.cos(m * phi) if m >= 0 else np.sin(-m * phi)
        phase += coefficient * zernike_radial(n, abs(m), rho) * angular
    return phase


# 2.6 Real-space steps


def circle_crop(image: FloatArray, boundary: float) -> FloatArray:
    """Subtract the mean outside a circle and mask with a soft edge (2.6).

    `boundary` is the distance between the circle and the image's edge, in pixels.
    """
    m = image.shape[0]
    r = distance_from_centre(m, 2)
    radius = m // 2 - boundary
    outside = image[r > radius]
    mean = outside.mean() if outside.size else 0.0
    edge = 0.5 - 0.5 * np.cos(np.pi * (radius - r) / CROP_FALLOFF_PX)
    mask = np.where(r < radius - CROP_FALLOFF_PX, 1.0, np.where(r < radius, edge, 0.0))
    return mask * (image - mean)


def grid_precorrection(image: FloatArray, boundary: float) -> FloatArray:
    """Divide by the transform of linear interpolation inside the circle (2.6)."""
    m = image.shape[0]
    r = distance_from_centre(m, 2)
    radius = m // 2 - boundary
    inside = (r >= 1) & (r < radius - 1)
    factor = np.where(r < 1, 1.0, 0.0)
    factor[inside] = r[inside] / np.sin(np.pi * r[inside] / radius)
    return image * factor


def apply_real_space_steps(transform: ComplexArray, options: Options) -> FloatArray:
    """Transform back to pixel (s/2, s/2) and apply the circle crop and the correction (2.6)."""
    boundary = (options.s - options.n) // 2
    image = inverse_transform_centred(transform)
    if not options.no_circle_crop:
        image = circle_crop(image, boundary)
    if options.grid_precorr:
        image = grid_precorrection(image, boundary)
    return image


# 2.7 Noise whitening


def radial_average(values: FloatArray, radius: FloatArray, last_bin: int) -> FloatArray:
    """Average over shells 0..last_bin with linear splatting (2.7, 2.10).

    Each sample at radius r adds its share 1-frac to bin floor(r) and frac to the next; a share
    beyond the last bin is lost.
    """
    low = np.floor(radius).astype(int)
    fraction = radius - low
    total, weights = np.zeros(last_bin + 1), np.zeros(last_bin + 1)
    for bins, share in ((low, 1 - fraction), (low + 1, fraction)):
        inside = bins <= last_bin
        np.add.at(total, bins[inside], (share * values)[inside])
        np.add.at(weights, bins[inside], share[inside])
    return total / np.where(weights > 0, weights, 1.0)


def interpolate_radially(profile: FloatArray, radius: FloatArray) -> FloatArray:
    """Read a radial profile back, linear between bins, clamped to the last one (2.7, 2.10)."""
    return np.interp(radius, np.arange(len(profile)), profile)


def noise_weight(image: FloatArray, options: Options) -> FloatArray:
    """Return the whitening filter of one tilt image, half-complex (s, s/2+1) (2.7)."""
    s0, step = options.s0, options.s0 // 2
    h, w = image.shape
    if min(h, w) < s0:
        raise ValueError(f"no {s0} x {s0} block fits in a {w} x {h} tilt image")
    powers = [
        np.abs(np.fft.rfft2(image[y : y + s0, x : x + s0].astype(float), norm="ortho")) ** 2
        for y in range(0, h - s0 + 1, step)
        for x in range(0, w - s0 + 1, step)
    ]
    kx, ky = frequency_grid_2d(s0)
    profile = radial_average(np.mean(powers, axis=0), np.hypot(kx, ky), s0 // 2)
    weight = np.zeros_like(profile)
    weight[profile > 0] = 1 / np.sqrt(profile[profile > 0])
    kx, ky = frequency_grid_2d(options.s)
    return interpolate_radially(weight, np.hypot(kx, ky) * options.binning)


# 2.8 Fourier insertion


def insert_slice(
    accumulators: Accumulators, image: Slice, u: FloatArray, v: FloatArray, cutoff: float
) -> None:
    """Add one frame's central slice to the accumulators, in place (2.8).

    Parameters
    ----------
    accumulators : Accumulators
        Half-complex (n, n, n/2+1).
    image : Slice
        Half-complex (s, s/2+1); `weight` and `dose_weight` likewise.
    u, v : numpy.ndarray
        First and second row of projection times orientation times n/s, in (x, y, z).
    cutoff : float
        Smallest dose weight (exclusive) of a row's last sample.
    """
    s, n = image.transform.shape[0], accumulators.weight.shape[0]
    scale = np.linalg.norm(u) * np.linalg.norm(v)
    kx, ky = np.broadcast_arrays(*frequency_grid_2d(s))

    allowed = (kx <= np.sqrt(s**2 / 4 - ky**2)) & (image.dose_weight > cutoff)
    last_x = np.where(allowed, kx, -1).max(axis=1, keepdims=True)
    first_x = np.where(np.arange(s) < s // 2, 0, 1)[:, None]
    used = (kx >= first_x) & (kx <= last_x)

    value, weight = image.transform[used], image.weight[used]
    g = kx[used][:, None] * u + ky[used][:, None] * v
    flip = g[:, 0] < 0
    g[flip] = -g[flip]
    value = np.where(flip, value.conj(), value)

    for corner in itertools.product((0, 1), repeat=3):
        j = np.floor(g).astype(int) + corner
        m = scale * np.prod(1 - np.abs(g - j), axis=1)
        inside = (j[:, 0] <= n // 2) & np.all((j[:, 1:] >= -n // 2) & (j[:, 1:] < n // 2), axis=1)
        add_samples(accumulators, j[inside], m[inside], value[inside], weight[inside])


def add_samples(
    accumulators: Accumulators,
    j: IntArray,
    m: FloatArray,
    value: ComplexArray,
    weight: FloatArray,
) -> None:
    """Add m value, m weight and m at the voxels j (x, y, z), and their mates where x = 0 (2.8)."""
    n = accumulators.weight.shape[0]
    mate = j[:, 0] == 0
    # The value is conjugated at the mate; weight and multiplicity are real.
    for points, shares, values, weights in (
        (j, m, value, weight),
        (-j[mate], m[mate], value[mate].conj(), weight[mate]),
    ):
        voxels = (points[:, 2] % n, points[:, 1] % n, points[:, 0])
        np.add.at(accumulators.data, voxels, shares * values)
        np.add.at(accumulators.weight, voxels, shares * weights)
        np.add.at(accumulators.multiplicity, voxels, shares)


def finish_volume(data: ComplexArray, options: Options) -> FloatArray:
    """Return the real n^3 data volume of the accumulated transform D (2.8)."""
    n = options.n
    x, y, z = frequency_grid_3d(n)
    signs = np.where((x + y + z) % 2 == 0, 1.0, -1.0)
    return inverse_transform_volume(data * signs * options.s / (n * math.sqrt(options.binning)))


# 2.9 Cone weight


def cone_factor(a_full: FloatArray, options: Options) -> FloatArray:
    """Return the cone weight m, half-complex (n, n, n/2+1) (2.9)."""
    k = np.stack(np.broadcast_arrays(*frequency_grid_3d(options.n)), axis=-1)
    turned = k @ a_full.T
    width = np.abs(turned[..., 2]) * math.sin(math.radians(options.cone_angle) / 2)
    t = np.hypot(turned[..., 0], turned[..., 1]) / (width + options.cone_sig0)
    return 1 - np.exp(-(t**2) / 2)


# 2.10 Extra volumes


def expand_centred(half: FloatArray) -> FloatArray:
    """Expand a half-complex real array to n^3 by Friedel symmetry, zero at (n/2, n/2, n/2)."""
    n = half.shape[0]
    full = np.zeros((n, n, n))
    full[:, :, : n // 2 + 1] = half
    mates = -np.arange(n) % n
    x = np.arange(n // 2 + 1, n)
    full[:, :, x] = half[np.ix_(mates, mates, n - x)]
    return np.fft.fftshift(full)


def divide_or_zero(numerator: NDArray, denominator: FloatArray) -> NDArray:
    """Return the quotient, 0 where the denominator is 0."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, 0.0, numerator / safe)


def divide_by_weight(data: FloatArray, weight: FloatArray, options: Options) -> FloatArray:
    """Return the volume divided by its weight, Wiener or heuristic, without taper (2.10)."""
    n = data.shape[0]
    transform = transform_volume(data)
    if options.snr > 0:
        return inverse_transform_volume(transform / (weight + 1 / options.snr))
    x, y, z = frequency_grid_3d(n)
    radius = np.sqrt(x**2 + y**2 + z**2)
    average = radial_average(weight, radius, n // 2)
    threshold = DIVISION_THRESHOLD * interpolate_radially(average, radius)
    quotient = divide_or_zero(transform, np.maximum(weight, threshold))
    return inverse_transform_volume(np.where(np.floor(radius) + 1 > n // 2, 0.0, quotient))


def taper_sphere(volume: FloatArray, options: Options) -> FloatArray:
    """Mask with a soft sphere, after subtracting the mean under it (2.10)."""
    n = volume.shape[0]
    r = distance_from_centre(n, 3)
    edge = 0.5 - 0.5 * np.cos(np.pi * (n / 2 - r) / options.taper)
    mask = np.where(r < n / 2 - options.taper, 1.0, np.where(r < n / 2, edge, 0.0))
    mean = 0.0 if options.no_center else (mask * volume).sum() / mask.sum()
    return mask * (volume - mean)


def sum_volumes(outputs: list[dict[str, FloatArray]], options: Options) -> dict[str, FloatArray]:
    """Return "sum_data", "sum_weight" and "sum_div" of many particles' outputs (2.10)."""
    data = np.sum([output["data"] for output in outputs], axis=0)
    weight = np.sum([output["weights"][: options.n] for output in outputs], axis=0)
    return {
        "sum_data": data,
        "sum_weight": expand_centred(weight),
        "sum_div": divide_by_weight(data, weight, options),
    }


# Sections 2.4 to 2.10 together


def extract_particle(
    particle: Particle, tomogram: Tomogram, options: Options
) -> dict[str, FloatArray]:
    """Extract one particle from all the frames in which it is visible.

    Returns
    -------
    dict
        With ``stack2d``: "stack2d" of shape (visible, n, n). Otherwise "data" (n, n, n),
        "weights" (2n, n, n/2+1; weight, then multiplicity), "ctf2", "multi", "div", "data_nrm"
        and "ctf2_nrm", each (n, n, n). The key is the file's suffix in lower case.
    """
    visible = np.flatnonzero(visible_frames(particle, tomogram, options))
    if options.stack2d:
        return {"stack2d": extract_stack(particle, tomogram, options, visible)}

    accumulators = Accumulators.zeros(options.n)
    orientation = particle.a_full if options.apply_orientations else particle.a_sub
    for index in visible:
        image = extract_frame(particle, tomogram, int(index), options)
        if not options.no_circle_crop or options.grid_precorr:
            transform = transform_centred(apply_real_space_steps(image.transform, options))
            image = Slice(transform, image.weight, image.dose_weight)
        rows = tomogram.frames[index].projection[:2, :3] @ orientation * options.n / options.s
        insert_slice(accumulators, image, rows[0], rows[1], options.cutoff_fract)

    data = finish_volume(accumulators.data, options)
    weight, multiplicity = accumulators.weight, accumulators.multiplicity
    if options.cone_weight:
        cone = cone_factor(particle.a_full, options)
        data = inverse_transform_volume(transform_volume(data) * cone)
        weight, multiplicity = weight * cone, multiplicity * cone
    normalised = divide_or_zero(transform_volume(data), multiplicity)
    return {
        "data": data,
        "weights": np.concatenate([weight, multiplicity]),
        "ctf2": expand_centred(weight),
        "multi": expand_centred(multiplicity),
        "div": taper_sphere(divide_by_weight(data, weight, options), options),
        "data_nrm": inverse_transform_volume(normalised),
        "ctf2_nrm": expand_centred(divide_or_zero(weight, multiplicity)),
    }


def extract_stack(
    particle: Particle, tomogram: Tomogram, options: Options, visible: IntArray
) -> FloatArray:
    """Return the cropped images of the visible frames, shape (visible, n, n) (2.6)."""
    first, n = (options.s - options.n) // 2, options.n
    images = []
    for index in visible:
        image = extract_frame(particle, tomogram, int(index), options)
        full = apply_real_space_steps(image.transform, options)
        images.append(full[first : first + n, first : first + n])
    return np.array(images)


# 2.11 True subtomograms


def real_subtomogram_size(options: Options, volume_binning: float) -> int:
    """Return the even box size d in voxels of the reconstructed volume (2.11)."""
    exact = options.n * options.binning / volume_binning
    d = math.floor(exact + 0.5)
    if d % 2:
        d += 1 if exact >= d else -1
    return d


def cut_sphere(volume: FloatArray, centre_xyz: FloatArray, d: int, sign: float) -> FloatArray:
    """Cut a background-subtracted sphere with a soft edge from a reconstructed volume (2.11).

    `centre_xyz` is in voxels; the result has shape (d, d, d) with the centre at (d/2, d/2, d/2).
    """
    k = np.arange(-d // 2, d // 2)
    # Index arrays of the box's x, y and z, truncated towards zero.
    x, y, z = (np.trunc(k + c).astype(int) for c in centre_xyz)
    valid = [(i > 0) & (i < m) for i, m in zip((x, y, z), volume.shape[::-1], strict=True)]
    inside = valid[2][:, None, None] & valid[1][None, :, None] & valid[0][None, None, :]
    clipped = [np.clip(i, 0, m - 1) for i, m in zip((z, y, x), volume.shape, strict=True)]
    values = sign * volume[np.ix_(*clipped)].astype(np.float64)

    r2 = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2
    selected = inside & (r2 <= math.floor(d**2 / 4 + 0.5))
    rim = selected & (r2 >= math.floor((d - 2 * BOX_EDGE_PX) ** 2 / 4 + 0.5))
    background = values[rim].mean() if rim.any() else 0.0
    box = np.where(selected, values - background, 0.0)
    edge = (d / 2 - np.sqrt(r2)) / BOX_EDGE_PX
    return np.where(rim, box * edge, box)


def project_box(box_transform: ComplexArray, u: FloatArray, v: FloatArray) -> FloatArray:
    """Return the d x d line-integral projection of a padded transform (2.11).

    Samples with |k| = d/2 exactly (2 for d = 24, but 6 for d = 30) are a tie that RELION decides by
    the last bit of |kx u + ky v|^2 <= (d/2)^2: about half of them are there and half are not.
    They are taken at half their value, which stays closer to RELION than leaving all out or in.

    Parameters
    ----------
    box_transform : numpy.ndarray
        Full (2d, 2d, 2d) transform, plain forward sum, box centre as origin, FFT order.
    u, v : numpy.ndarray
        First two rows of the frame's projection, (x, y, z).
    """
    m = box_transform.shape[0]
    d = m // 2
    frequency = signed_frequencies(d)
    kx, ky = np.broadcast_arrays(frequency[None, :], frequency[:, None])
    k2 = kx**2 + ky**2
    used = k2 <= d**2 / 4
    g = 2 * (kx[used][:, None] * u + ky[used][:, None] * v)
    samples = np.zeros(len(g), dtype=complex)
    for corner in itertools.product((0, 1), repeat=3):
        j = np.floor(g).astype(int) + corner
        share = np.prod(1 - np.abs(g - j), axis=1)
        samples += share * box_transform[j[:, 2] % m, j[:, 1] % m, j[:, 0] % m]
    spectrum = np.zeros((d, d), dtype=complex)
    spectrum[used] = np.where(k2[used] == d**2 / 4, TIE_SHARE, 1.0) * samples
    return np.fft.fftshift(np.fft.ifft2(spectrum).real)


def extract_real_subtomogram(
    particle: Particle, tomogram: Tomogram, options: Options
) -> dict[str, FloatArray]:
    """Cut a box from the reconstructed volume and project it along the visible tilts (2.11).

    Returns
    -------
    dict
        "data" of shape (visible, d, d).
    """
    if tomogram.volume is None:
        raise ValueError(f"tomogram {tomogram.name} has no reconstructed volume")
    d = real_subtomogram_size(options, tomogram.volume_binning)
    centre = particle_position(particle, tomogram, options) / tomogram.volume_binning
    box = cut_sphere(tomogram.volume, centre, d, options.sign)

    box = box / np.sinc(distance_from_centre(d, 3) / (2 * d)) ** 2
    padded = np.pad(box, d // 2)
    transform = np.fft.fftn(np.fft.ifftshift(padded))
    frequency = signed_frequencies(2 * d)
    k2 = frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + frequency**2
    transform[k2 > d**2] = 0

    visible = np.flatnonzero(visible_frames(particle, tomogram, options))
    rows = [tomogram.frames[index].projection[:2, :3] for index in visible]
    return {"data": np.array([project_box(transform, u, v) for u, v in rows])}
