"""One tomogram ready for extraction: its tilt images and all that its particles share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core.ctf import ctf_phase_coefficients, electron_wavelength
from relion_pseudosubtomo.core.frames import FrameTables, make_frame_tables
from relion_pseudosubtomo.core.inputs import TiltImages
from relion_pseudosubtomo.core.noise import noise_weight, spread_noise_weight
from relion_pseudosubtomo.core.prebin import bin_images
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.model import Tomogram
from relion_pseudosubtomo.options import JobOptions


class LoadingStopped(Exception):
    """The job was told to stop; what was loaded is of no use."""


@dataclass(frozen=True)
class LoadedTomogram:
    """Tilt images and weights of one tomogram.

    Attributes
    ----------
    index : int
        Place of the tomogram in the tomogram set.
    images : TiltImages
        Mapped files, or converted arrays; with binned images where they are used.
    tables : FrameTables
        Weights of the used frames.
    """

    index: int
    images: TiltImages
    tables: FrameTables


def load_tomogram(
    options: JobOptions,
    tomogram: Tomogram,
    index: int,
    used: NDArray[np.bool_],
    *,
    prebin: int,
    threads: int,
    stop: Callable[[], bool] = lambda: False,
) -> LoadedTomogram:
    """Map or read the tilt images of a tomogram; compute the weights of its used frames.

    Parameters
    ----------
    options : JobOptions
    tomogram : Tomogram
    index : int
        Its place in the tomogram set.
    used : ndarray, shape (n_frames,), bool
        Frames in which any particle is visible; only these are read.
    prebin : int
        Factor q of the binned images that are made too; 1: none are.
    threads : int
        Threads that make them, and measure the noise of images.
    stop : callable
        Asked before each image that is read as a whole.

    Raises
    ------
    LoadingStopped
        Once `stop` has returned True.
    """
    if options.preload:
        images = []
        for image in mrc.read_series(tomogram.frames, np.flatnonzero(used).tolist()):
            images.append(image)
            _look_for_stop(stop)
    else:
        images = mrc.map_series(tomogram.frames)
        mrc.read_ahead([images[f] for f in np.flatnonzero(used)])
    _check_sizes(tomogram, images, used)
    return prepare_images(
        options, tomogram, index, images, used, prebin=prebin, threads=threads, stop=stop
    )


def _look_for_stop(stop: Callable[[], bool]) -> None:
    if stop():
        raise LoadingStopped


def _check_sizes(
    tomogram: Tomogram, images: Sequence[NDArray[Any]], used: NDArray[np.bool_]
) -> None:
    """Check that the images are still those by which the particles' frames were chosen."""
    width, height = tomogram.image_size_xy
    for f in np.flatnonzero(used).tolist():
        if images[f].shape != (height, width):
            found = " x ".join(map(str, images[f].shape[::-1]))
            raise InputError(
                f"{tomogram.frames[f].path} has changed since it was checked: expected images of "
                f"{width} x {height} pixels, found {found}"
            )


def prepare_images(
    options: JobOptions,
    tomogram: Tomogram,
    index: int,
    images: Sequence[NDArray[Any]],
    used: NDArray[np.bool_],
    *,
    prebin: int = 1,
    threads: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> LoadedTomogram:
    """Bin tilt images where that is wanted, and compute the weights of the used frames.

    Parameters
    ----------
    images : sequence of ndarray, shape (height, width)
        One a frame.
    options, tomogram, index, used, prebin, threads, stop
        As for `load_tomogram`.
    """
    ready = TiltImages.from_arrays(images)
    look = partial(_look_for_stop, stop)
    noise = _noise_weights(options, ready, used, threads, look) if options.whiten else None
    tables = make_frame_tables(
        box=options.box,
        binned_pixel_size=options.binning * tomogram.pixel_size,
        used=used,
        dose=tomogram.pre_exposure,
        bfactor_per_dose=tomogram.bfactor_per_dose,
        ctf_phase=ctf_phase_coefficients(
            tomogram.defocus_u,
            tomogram.defocus_v,
            tomogram.defocus_angle,
            tomogram.phase_shift,
            tomogram.voltage,
            tomogram.spherical_aberration,
            tomogram.amplitude_contrast,
        ),
        wavelength=electron_wavelength(tomogram.voltage),
        ctf_scale=tomogram.ctf_scale,
        ctf_bfactor=tomogram.ctf_bfactor,
        cutoff=options.cutoff_fract,
        noise=noise,
    )
    if prebin > 1:
        binned = bin_images(
            ready.image_bytes,
            ready.modes,
            used,
            prebin,
            options.binning,
            options.window_reach,
            threads,
            look,
        )
        ready = replace(ready, binned=binned)  # None where pixels are NaN or infinite
    return LoadedTomogram(index, ready, tables)


def _noise_weights(
    options: JobOptions,
    images: TiltImages,
    used: NDArray[np.bool_],
    threads: int,
    before_image: Callable[[], None],
) -> NDArray[np.float32]:
    noise = np.zeros((len(used), options.box // 2 + 1, options.box), np.float32)

    def measure(f: int) -> None:
        before_image()
        weight = noise_weight(images.image_bytes[f], images.modes[f], options.window)
        noise[f] = spread_noise_weight(weight, options.box, options.binning)

    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(measure, np.flatnonzero(used).tolist()), maxlen=0)  # errors are raised
    return noise
