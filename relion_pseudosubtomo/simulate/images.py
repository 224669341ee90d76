"""Tilt images: every particle's projection, put through the microscope at its own depth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.simulate import ctf
from relion_pseudosubtomo.simulate.dataset import HAND, Dataset, draw_angles
from relion_pseudosubtomo.simulate.structure import transform_projection

Floats = NDArray[np.floating]
Images = NDArray[np.float32]

BACKGROUND = 10.0
"""Mean of the tilt images; the standard deviation of their noise is 1."""
CALIBRATION_VIEWS = 24
CALIBRATION_STREAM = 3
NOISE_STREAM = 4
FAINT_AMPLITUDE = 0.1
PATCH_STEP_PX = 16


def make_patch_grid(dataset: Dataset) -> tuple[int, ctf.FrequencyGrid]:
    """Return the patch in which a particle is drawn: its size in pixels and its frequencies.

    It holds the particle and what the strongest defocus spreads, up to the frequency at which
    the structure fades or the pixels end.
    """
    settings = dataset.settings
    fading = math.sqrt(-math.log(FAINT_AMPLITUDE) / 2) / (np.pi * np.min(dataset.structure.sigma))
    highest = min(fading, 0.5 / settings.pixel_size)
    defocus = max(frame.u for series in dataset.tilt_series for frame in series.defocus)
    spread = settings.microscope.wavelength * defocus * highest
    needed_px = 2 * (dataset.structure.radius + spread) / settings.pixel_size
    size = PATCH_STEP_PX * math.ceil(needed_px / PATCH_STEP_PX)
    return size, ctf.FrequencyGrid(size, settings.pixel_size)


def measure_signal_variance(dataset: Dataset) -> float:
    """Return the variance by pixel of undamaged particle images, in the disc of the particle.

    The mean over random views, each at the defocus of one of the tilt images.
    """
    rng = np.random.default_rng([dataset.settings.seed, CALIBRATION_STREAM])
    size, grid = make_patch_grid(dataset)
    defocus = [frame for series in dataset.tilt_series for frame in series.defocus]
    y, x = np.indices((size, size)) - size // 2
    disc = np.hypot(x, y) < dataset.structure.radius / dataset.settings.pixel_size
    centre = np.full(2, size // 2, dtype=np.float64)
    variances = []
    for i, rotation in enumerate(geometry.euler_to_matrix(draw_angles(rng, CALIBRATION_VIEWS))):
        image_fs = transform_projection(
            dataset.structure, rotation, centre, size, dataset.settings.pixel_size
        )
        frame = defocus[i * len(defocus) // CALIBRATION_VIEWS]
        image_fs *= ctf.DepthCtf(grid, dataset.settings.microscope, frame).at(0)
        variances.append(np.var(np.fft.irfft2(image_fs, s=(size, size))[disc]))
    return float(np.mean(variances))


def render_tilt_series(dataset: Dataset, index: int) -> Iterator[Images]:
    """Yield the tilt images of tomogram `index` in file order, shape (height, width).

    Protein is dark on a bright background. Noise is white, Gaussian and of variance 1.
    """
    settings = dataset.settings
    strength = math.sqrt(settings.snr / measure_signal_variance(dataset))
    width, height = settings.image_size_xy
    for frame in range(settings.n_tilts):
        image = BACKGROUND - strength * render_signal(dataset, index, frame)
        if settings.noise:
            rng = np.random.default_rng([settings.seed, NOISE_STREAM, index, frame])
            image += rng.standard_normal((height, width), dtype=np.float32)
        yield image.astype(np.float32)


def render_signal(dataset: Dataset, index: int, frame: int) -> Floats:
    """Return the particles of one tilt image, protein positive, before scaling, [y, x]."""
    settings, series = dataset.settings, dataset.tilt_series[index]
    particles = dataset.particles[index]
    size, grid = make_patch_grid(dataset)
    projection = series.projections[frame : frame + 1]
    moved = particles.position + particles.trajectory[:, frame] / settings.pixel_size
    image_point = geometry.project_points(projection, moved)[:, 0, :2]
    depth = geometry.depths_from_centre(projection, particles.position, series.size_xyz)[:, 0]
    depth_ctf = ctf.DepthCtf(grid, settings.microscope, series.defocus[frame])
    left = ctf.damage(grid, series.pre_exposure[frame])
    width, height = settings.image_size_xy
    image = np.zeros((height, width))
    for i in range(len(particles)):
        corner = np.floor(image_point[i]).astype(int) - size // 2
        if np.any(corner <= -size) or np.any(corner >= settings.image_size_xy):
            continue
        image_fs = transform_projection(
            dataset.structure,
            projection[0, :3, :3] @ particles.rotation[i],
            image_point[i] - corner,
            size,
            settings.pixel_size,
        )
        image_fs *= depth_ctf.at(HAND * settings.pixel_size * depth[i]) * left
        patch = np.fft.irfft2(image_fs.astype(np.complex64), s=(size, size))
        add_patch(image, patch, corner)
    return image


def add_patch(image: Floats, patch: NDArray[np.floating], corner_xy: NDArray[np.int_]) -> None:
    """Add to `image` the part of `patch`, its corner at `corner_xy`, that lies inside."""
    height, width = image.shape
    x, y = corner_xy
    rows = slice(max(y, 0), max(min(y + patch.shape[0], height), 0))
    columns = slice(max(x, 0), max(min(x + patch.shape[1], width), 0))
    if rows.start < rows.stop and columns.start < columns.stop:
        image[rows, columns] += patch[
            rows.start - y : rows.stop - y, columns.start - x : columns.stop - x
        ]
