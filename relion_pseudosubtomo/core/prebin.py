"""Tilt images made smaller once a tomogram, so that windows cut from them are small too.

Of a window of s0 pixels binning by b keeps the frequencies |k| <= s0 / (2 b). They need only every
q-th pixel, q <= b/2, of the window's circular convolution with a short filter: what decimation
folds onto them comes from the filter's stop band, and the pass band is divided out of the
transform (polyphase decimation; Crochiere and Rabiner 1983, Multirate Digital Signal Processing).
Further than M pixels from the window's ends, for a filter of 2 M + 1 taps, that convolution is the
tilt image's own, which all windows share; the few samples nearer to the ends are computed from the
window's pixels alone. All that is left of a difference is what the stop band lets through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels

#: M over q: the stop band is at 1e-4 or less of the pass band. A window needs 4 M pixels.
HALF_LENGTH = 3.5
#: Frequencies at which the filter is designed, and its stop band's weight in the fit beside that of
#: the pass band, which need not be flat.
_DESIGN_FREQUENCIES = 4001
_STOP_WEIGHT = 100.0
#: Taps are whole numbers of this, so that rounding in the fit differs on no machine.
_TAP_UNIT = 2.0**-20


def filter_taps(factor: int, binning: float) -> NDArray[np.float32]:
    """Return the filter: 1 in the kept band, 0 where decimation folds other frequencies onto it.

    Parameters
    ----------
    factor : int
        q.
    binning : float
        b, at least 2 q.

    Returns
    -------
    ndarray, shape (2 M + 1,), float32
        Symmetric, fitted by weighted least squares.
    """
    half_length, kept = math.ceil(HALF_LENGTH * factor), 1 / (2 * binning)
    frequency = np.linspace(0, 0.5, _DESIGN_FREQUENCIES)
    alias = np.rint(frequency * factor)
    stops = (np.abs(frequency - alias / factor) <= kept) & (alias > 0)
    passes = frequency <= kept
    weight = np.where(stops, _STOP_WEIGHT, passes)
    waves = 2 * np.cos(2 * np.pi * frequency[:, None] * np.arange(half_length + 1))
    waves[:, 0] = 1
    half = np.linalg.lstsq(waves * weight[:, None], passes * weight, rcond=None)[0]
    half = np.rint(half / _TAP_UNIT) * _TAP_UNIT
    return np.concatenate([half[:0:-1], half]).astype(np.float32)


def filter_response(
    taps: NDArray[np.float32], k: NDArray[np.floating], window: int
) -> NDArray[np.floating]:
    """Return by what the filter multiplies the frequencies k / s0, for a window of s0 pixels."""
    places = np.arange(len(taps)) - len(taps) // 2
    waves = np.cos(2 * np.pi / window * np.multiply.outer(k, places))
    return waves @ taps.astype(np.float64)


def binned_size(size: int, factor: int, reach: float) -> tuple[int, int]:
    """Return the samples along an axis of a binned image, and the pixels put before the image.

    Parameters
    ----------
    size : int
        Pixels of the tilt image along the axis.
    factor : int
        q.
    reach : float
        Pixels by which windows may reach past an edge of the image.

    Returns
    -------
    tuple of int
        (samples, margin); sample i is that of pixel q i - margin.
    """
    # a window's corner is rounded, and its first sample may be q - 1 pixels after it
    margin = factor * math.ceil((reach + 1) / factor + 1)
    return -(-(size + 2 * margin) // factor), margin


@dataclass(frozen=True)
class BinnedImages:
    """The tilt images of one tomogram, filtered, at every q-th pixel.

    Attributes
    ----------
    factor : int
        q.
    taps : ndarray, shape (2 M + 1,), float32
        The filter.
    margin : int
        Sample (y, x) is that of pixel (q y - margin, q x - margin) of the tilt image.
    samples : sequence of ndarray, shape (ny, nx), float32
        One a frame; empty for frames that are not used.
    """

    factor: int
    taps: NDArray[np.float32]
    margin: int
    samples: Sequence[NDArray[np.float32]]


def bin_images(
    image_bytes: Sequence[NDArray[np.uint8]],
    modes: Sequence[int],
    used: NDArray[np.bool_],
    factor: int,
    binning: float,
    reach: float,
    threads: int,
    before_image: Callable[[], None] = lambda: None,
) -> BinnedImages | None:
    """Return the used tilt images filtered, at every q-th pixel.

    Parameters
    ----------
    image_bytes : sequence of ndarray, shape (height, width * itemsize), uint8
        One a frame.
    modes : sequence of int
        Their MRC modes.
    used : ndarray, shape (n_frames,), bool
        Frames that are needed.
    factor : int
        q.
    binning : float
        b, at least 2 q.
    reach : float
        Pixels by which windows may reach past an edge of the image.
    threads : int
        Threads that share the images.
    before_image : callable
        Called before each image that is used; what it raises ends the work.

    Returns
    -------
    BinnedImages or None
        None where a used image holds a NaN or an infinite pixel, which would spread.
    """
    taps = filter_taps(factor, binning)

    def bin_frame(f: int) -> tuple[NDArray[np.float32], int]:
        if not used[f]:
            return np.empty((0, 0), np.float32), 0
        before_image()
        image, mode = image_bytes[f], modes[f]
        width = image.view(kernels.IMAGE_DTYPES[mode]).shape[1]
        (ny, margin), (nx, _) = (binned_size(n, factor, reach) for n in (len(image), width))
        samples = np.empty((ny, nx), np.float32)
        return samples, kernels.bin_image(image, mode, taps, factor, margin, samples)

    with ThreadPoolExecutor(threads) as pool:
        samples, n_bad = zip(*pool.map(bin_frame, range(len(used))), strict=True)
    if any(n_bad):
        return None
    return BinnedImages(factor, taps, binned_size(0, factor, reach)[1], samples)
