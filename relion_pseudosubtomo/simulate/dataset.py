"""What is simulated: tilt series with alignment and optics, and particles with poses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.errors import UsageError
from relion_pseudosubtomo.simulate.ctf import Defocus, Microscope
from relion_pseudosubtomo.simulate.structure import Structure, make_structure

Floats = NDArray[np.floating]

HAND = -1
IN_PLANE_ROTATIONS_DEGREES = (85.0, -4.0, 84.0, 3.0)
X_TILT_SPREAD_DEGREES = 0.5
Z_ROTATION_SPREAD_DEGREES = 0.3
STAGE_ERROR_DEGREES = 0.2
SHIFT_SPREAD_ANGSTROM = 12.0
DEFOCUS_STEP_BETWEEN_TOMOGRAMS = 5000.0
DEFOCUS_SPREAD = 300.0
ASTIGMATISM_RANGE = (100.0, 600.0)
OFFSET_RANGE_ANGSTROM = 9.0
MOTION_WAVES = 3
MOST_TRIES_PER_PARTICLE = 2000
TOMOGRAM_STREAM = 2


@dataclass(frozen=True)
class Settings:
    """What to simulate; lengths in Angstrom unless the name says pixels.

    Attributes
    ----------
    n_tomograms, n_tilts, n_particles : int
        Numbers of tomograms, of tilt images in each, of particles in all.
    image_size_xy : tuple of int
        (width, height) of the tilt images in pixels.
    thickness_px : int
        Depth of the tomograms in unbinned pixels.
    pixel_size : float
        Of the tilt images.
    tilt_step : float
        Degrees between neighbouring tilts, symmetric about zero.
    dose_per_tilt : float
        e/A^2 for each tilt image.
    defocus : float
        Mean underfocus of the first tomogram; later ones step up.
    snr : float
        Variance of the signal over variance of the noise, by pixel, in the area of an undamaged
        particle.
    noise : bool
        Whether there is any noise; without it the signal has the same strength.
    motion : float
        Root mean square of the particles' motion along each axis; 0 for none.
    seed : int
        Of everything random, the structure included.
    microscope : Microscope
    """

    n_tomograms: int = 2
    n_tilts: int = 41
    n_particles: int = 240
    image_size_xy: tuple[int, int] = (1024, 960)
    thickness_px: int = 1600
    pixel_size: float = 1.5
    tilt_step: float = 3.0
    dose_per_tilt: float = 1.2
    defocus: float = 20000.0
    snr: float = 0.05
    noise: bool = True
    motion: float = 0.0
    seed: int = 0
    microscope: Microscope = field(default_factory=Microscope)

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        positive = {
            "tomograms": self.n_tomograms,
            "tilts": self.n_tilts,
            "particles": self.n_particles,
            "image width": self.image_size_xy[0],
            "image height": self.image_size_xy[1],
            "thickness": self.thickness_px,
            "pixel size": self.pixel_size,
            "SNR": self.snr,
        }
        for name, value in positive.items():
            if not value > 0:
                raise UsageError(f"{name}: expected a number above 0, found {value}")
        if self.seed < 0:
            raise UsageError(f"seed: expected 0 or more, found {self.seed}")
        if self.n_particles < self.n_tomograms:
            raise UsageError(
                f"particles: expected one or more in each of {self.n_tomograms} tomograms, "
                f"found {self.n_particles} in all"
            )


@dataclass(frozen=True)
class TiltSeries:
    """One simulated tilt series, frames in order of the tilt angle.

    Attributes
    ----------
    name : str
    size_xyz : ndarray, shape (3,)
        Tomogram size in unbinned pixels.
    stage_tilt, x_tilt, y_tilt, z_rot : ndarray, shape (n_frames,)
        Degrees.
    shift_xy : ndarray, shape (n_frames, 2)
        Alignment shifts in Angstrom.
    exposure_order : ndarray, shape (n_frames,), int64
        Place of each frame in time, from 0.
    pre_exposure : ndarray, shape (n_frames,)
        e/A^2.
    defocus : tuple of Defocus
        At the tomogram's centre, one a frame.
    projections : ndarray, shape (n_frames, 4, 4)
        Spec 2.1.
    """

    name: str
    size_xyz: Floats
    stage_tilt: Floats
    x_tilt: Floats
    y_tilt: Floats
    z_rot: Floats
    shift_xy: Floats
    exposure_order: NDArray[np.int64]
    pre_exposure: Floats
    defocus: tuple[Defocus, ...]
    projections: Floats


@dataclass(frozen=True)
class Particles:
    """The particles of one tomogram.

    Attributes
    ----------
    position : ndarray, shape (n, 3)
        Where the structure's centre is, in unbinned pixels from the tomogram's corner.
    coordinate : ndarray, shape (n, 3)
        What the STAR file says: the position before the refined offset is applied, pixels.
    offset : ndarray, shape (n, 3)
        Refined offset in Angstrom, in the axes of the box.
    subtomogram_angles, angles : ndarray, shape (n, 3)
        (rot, tilt, psi) in degrees of the box, and of the structure in the box.
    rotation : ndarray, shape (n, 3, 3)
        A_full: from the structure's axes to the tomogram's.
    trajectory : ndarray, shape (n, n_frames, 3)
        Motion in Angstrom in the tomogram's axes, zero where there is none.
    """

    position: Floats
    coordinate: Floats
    offset: Floats
    subtomogram_angles: Floats
    angles: Floats
    rotation: Floats
    trajectory: Floats

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.position)


def make_tilt_series(settings: Settings, index: int) -> TiltSeries:
    """Return the tilt series of tomogram `index`, dose-symmetric from zero tilt outwards."""
    rng = np.random.default_rng([settings.seed, TOMOGRAM_STREAM, index, 0])
    n = settings.n_tilts
    stage = np.arange(1 - n, n, 2, dtype=np.float64) * (settings.tilt_step / 2)
    order = np.empty(n, dtype=np.int64)
    order[np.lexsort((stage < 0, np.abs(stage)))] = np.arange(n)
    z_rot = IN_PLANE_ROTATIONS_DEGREES[index % len(IN_PLANE_ROTATIONS_DEGREES)]
    width, height = settings.image_size_xy
    is_turned = abs(np.sin(np.deg2rad(z_rot))) > np.sqrt(0.5)
    in_plane = (height, width) if is_turned else (width, height)
    size_xyz = np.array([*in_plane, settings.thickness_px], dtype=np.float64)
    x_tilt = rng.normal(0, X_TILT_SPREAD_DEGREES, n)
    y_tilt = stage + rng.normal(0, STAGE_ERROR_DEGREES, n)
    z_rots = z_rot + rng.normal(0, Z_ROTATION_SPREAD_DEGREES, n)
    shift_xy = rng.normal(0, SHIFT_SPREAD_ANGSTROM, (n, 2))
    mean_defocus = settings.defocus + index * DEFOCUS_STEP_BETWEEN_TOMOGRAMS
    return TiltSeries(
        name=f"TS_{index + 1:02d}",
        size_xyz=size_xyz,
        stage_tilt=stage,
        x_tilt=x_tilt,
        y_tilt=y_tilt,
        z_rot=z_rots,
        shift_xy=shift_xy,
        exposure_order=order,
        pre_exposure=order.astype(np.float64) * settings.dose_per_tilt,
        defocus=_draw_defocus(rng, mean_defocus, n),
        projections=geometry.projection_matrices(
            x_tilt, y_tilt, z_rots, shift_xy, settings.pixel_size, settings.image_size_xy, size_xyz
        ),
    )


def _draw_defocus(rng: np.random.Generator, mean: float, n: int) -> tuple[Defocus, ...]:
    middle = rng.normal(mean, DEFOCUS_SPREAD, n)
    astigmatism = rng.uniform(*ASTIGMATISM_RANGE, n)
    angle = rng.uniform(-90, 90, n)
    return tuple(
        Defocus(float(m + a / 2), float(m - a / 2), float(g))
        for m, a, g in zip(middle, astigmatism, angle, strict=True)
    )


def make_particles(
    settings: Settings, structure: Structure, tilt_series: TiltSeries, index: int, n: int
) -> Particles:
    """Return `n` particles of tomogram `index` that do not touch each other.

    They fill the whole field of view, so that some are cut by the edges of the images.
    """
    rng = np.random.default_rng([settings.seed, TOMOGRAM_STREAM, index, 1])
    position = _scatter(rng, settings, structure, tilt_series, n)
    subtomogram_angles, angles = draw_angles(rng, n), draw_angles(rng, n)
    box_rotation = geometry.euler_to_matrix(subtomogram_angles)
    offset = rng.uniform(-OFFSET_RANGE_ANGSTROM, OFFSET_RANGE_ANGSTROM, (n, 3))
    moved = np.einsum("nij,nj->ni", box_rotation, offset) / settings.pixel_size
    return Particles(
        position=position,
        coordinate=position + moved,
        offset=offset,
        subtomogram_angles=subtomogram_angles,
        angles=angles,
        rotation=box_rotation @ geometry.euler_to_matrix(angles),
        trajectory=_draw_motion(rng, settings, tilt_series.exposure_order, n),
    )


def draw_angles(rng: np.random.Generator, n: int) -> Floats:
    """Return uniformly distributed orientations (rot, tilt, psi) in degrees, shape (n, 3)."""
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1, n)))
    return np.stack([rng.uniform(-180, 180, n), tilt, rng.uniform(-180, 180, n)], axis=-1)


def _scatter(
    rng: np.random.Generator,
    settings: Settings,
    structure: Structure,
    tilt_series: TiltSeries,
    n: int,
) -> Floats:
    """Return positions at least a particle's diameter apart, inside in depth."""
    radius_px = structure.radius / settings.pixel_size
    lowest = np.array([0, 0, min(radius_px, tilt_series.size_xyz[2] / 2)])
    placed = np.empty((0, 3))
    for _ in range(n * MOST_TRIES_PER_PARTICLE):
        place = rng.uniform(lowest, tilt_series.size_xyz - lowest)
        if np.all(np.linalg.norm(placed - place, axis=1) > 2 * radius_px):
            placed = np.vstack([placed, place])
        if len(placed) == n:
            return placed
    raise UsageError(
        f"particles in {tilt_series.name}: expected room for {n}, found room for {len(placed)}. "
        "Ask for fewer particles, larger images or a thicker tomogram"
    )


def _draw_motion(
    rng: np.random.Generator, settings: Settings, exposure_order: NDArray[np.int64], n: int
) -> Floats:
    """Return smooth trajectories in the order of the frames, shape (n, n_frames, 3), Angstrom."""
    time = (exposure_order + 0.5) / len(exposure_order)
    waves = np.cos(np.pi * np.arange(1, MOTION_WAVES + 1)[:, None] * time)
    amplitude = rng.normal(0, np.sqrt(2 / MOTION_WAVES), (n, 3, MOTION_WAVES))
    return settings.motion * np.einsum("ncw,wf->nfc", amplitude, waves)


@dataclass(frozen=True)
class Dataset:
    """Everything that is simulated but the images.

    Attributes
    ----------
    settings : Settings
    structure : Structure
    tilt_series : tuple of TiltSeries
    particles : tuple of Particles
        One for each tilt series.
    """

    settings: Settings
    structure: Structure
    tilt_series: tuple[TiltSeries, ...]
    particles: tuple[Particles, ...]


def make_dataset(settings: Settings) -> Dataset:
    """Return the data set of the settings; the same settings give the same data set."""
    structure = make_structure(settings.seed)
    tilt_series = tuple(make_tilt_series(settings, i) for i in range(settings.n_tomograms))
    share, rest = divmod(settings.n_particles, settings.n_tomograms)
    particles = tuple(
        make_particles(settings, structure, series, i, share + (i < rest))
        for i, series in enumerate(tilt_series)
    )
    return Dataset(settings, structure, tilt_series, particles)
