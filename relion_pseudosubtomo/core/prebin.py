"""Tilt images made smaller once a tomogram, for windows that are cut from them afterwards.

A window of b times the box holds frequencies far beyond those that binning by b keeps. Fourier
cropping the whole image by q <= b/2 first leaves a band twice as wide as the one that is kept, so
that only what leaks from beyond it into the window's edges is lost.
"""

from __future__ import annotations

import math
import queue
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels
from relion_pseudosubtomo.core.subtomogram import TiltImages
from relion_pseudosubtomo.core.windows import WindowTransform

#: Small pixels, of the nearest edge pixel, on each side beyond those that windows reach: the
#: transform takes the image as periodic, and what rings at its ends stays in there.
GUARD = 16


def prebinned_axis(size: int, factor: int, reach: float) -> tuple[int, int]:
    """Return the length of an axis after Fourier cropping, and the pixels put before the image.

    Windows are cut from the edge pixels repeated before the crop, as in exact extraction; those
    repeated after it would be an edge pixel that its neighbours were mixed into.

    Parameters
    ----------
    size : int
        Pixels of the image along the axis.
    factor : int
        q.
    reach : float
        Pixels by which windows may reach past an edge of the image.

    Returns
    -------
    tuple of int
        (length in small pixels, margin before the image in pixels of the image); the margin is a
        multiple of q, so that small pixel i lies at pixel q i - margin.
    """
    # a window's corner is rounded to small pixels, so it may lie half a one further out
    margin = math.ceil(reach / factor + 0.5) + GUARD
    needed = -(-size // factor) + 2 * margin
    # lengths with a higher power of two are faster by more than the few pixels that they add
    length = 4 * fft.fast_even_length(-(-needed // 4))
    return length, factor * ((length - size // factor) // 2)


class ImageBinner:
    """Plans and scratch arrays of one thread for Fourier cropping whole tilt images.

    Parameters
    ----------
    image_size_xy : tuple of int
        (width, height) of the images.
    factor : int
        q, at least 2.
    reach : float
        Pixels by which windows may reach past an edge of the image.
    """

    def __init__(self, image_size_xy: tuple[int, int], factor: int, reach: float) -> None:
        (nx, self._before_x), (ny, self._before_y) = (
            prebinned_axis(size, factor, reach) for size in image_size_xy
        )
        half = nx // 2 + 1
        self._window = WindowTransform((factor * ny, factor * nx), nx)
        self._scale = np.float32(1.0 / (factor * ny * factor * nx))
        self._columns_fs = fft.zeros((half, ny), np.complex64)
        self._columns_rs = fft.padded_columns(1, half, ny)[0]
        self._rows_fs = fft.zeros((ny, half), np.complex64)
        self._rows_rs = fft.zeros((ny, nx), np.float32)
        self._to_columns = fft.plan_backward(self._columns_fs, self._columns_rs)
        self._to_rows = fft.plan_backward(self._rows_fs, self._rows_rs)

    def bin(self, image_bytes: NDArray, mode: int) -> NDArray[np.float32] | None:
        """Return the image with its margins, Fourier-cropped by q, in the same grey scale.

        Parameters
        ----------
        image_bytes : ndarray, shape (height, width * itemsize), uint8
            The tilt image as bytes.
        mode : int
            Its MRC mode.

        Returns
        -------
        ndarray, shape (ny, nx), float32, or None
            None where a pixel is NaN or infinite, which would spread over the whole image.
        """
        corner = np.array([[-self._before_x, -self._before_y]])
        n_bad = self._window.transform([image_bytes], [mode], corner)
        if n_bad:
            return None
        half = self._columns_fs.shape[1] // 2
        (columns,) = self._window.columns
        self._columns_fs[:, :half] = columns[:, :half]
        self._columns_fs[:, half:] = columns[:, -half:]
        self._columns_fs *= self._scale
        self._to_columns.execute()
        kernels.transpose_rows(self._columns_rs, 0, self._rows_fs)
        self._to_rows.execute()
        return self._rows_rs.copy()


def prebin_images(
    images: TiltImages,
    image_size_xy: tuple[int, int],
    used: NDArray[np.bool_],
    factor: int,
    reach: float,
    threads: int,
) -> TiltImages:
    """Return the used tilt images Fourier-cropped by q; the images as they are where one is bad.

    Parameters
    ----------
    images : TiltImages
        Of one tomogram.
    image_size_xy : tuple of int
        Their (width, height).
    used : ndarray, shape (n_frames,), bool
        Frames that are needed.
    factor : int
        q.
    reach : float
        Pixels by which windows may reach past an edge of the image.
    threads : int
        Threads that share the images.

    Returns
    -------
    TiltImages
        With `prebin` 1 where a used image holds a NaN or an infinite pixel.
    """
    idle: queue.SimpleQueue[ImageBinner] = queue.SimpleQueue()
    for _ in range(threads):
        idle.put(ImageBinner(image_size_xy, factor, reach))

    def bin_frame(f: int) -> NDArray[np.float32] | None:
        if not used[f]:
            return np.empty((0, 0), np.float32)
        binner = idle.get()
        try:
            return binner.bin(images.image_bytes[f], images.modes[f])
        finally:
            idle.put(binner)

    with ThreadPoolExecutor(threads) as pool:
        binned = list(pool.map(bin_frame, range(len(used))))
    whole = [image for image in binned if image is not None]
    if len(whole) < len(binned):
        return images
    margin_x, margin_y = (prebinned_axis(size, factor, reach)[1] for size in image_size_xy)
    return TiltImages.from_arrays(whole, factor, (margin_x, margin_y))
