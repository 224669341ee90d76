"""Windows of no whole number of binned pixels, exact in scale (`--exact_centre`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels, scratch
from relion_pseudosubtomo.core.masks import crop_circle


class ScaledWindowTransform:
    """Transform of a window of s0 x s0 pixels at the frequencies k / (b s) of a box of s pixels.

    A fast transform has the frequencies k / s0, and RELION takes them for k / (b s): its images are
    s0 / (b s) too small (spec 2). Here the sums are taken at the frequencies themselves. They are
    matrix products in double precision, rounded once at the end, so that hardly a bit depends on
    the library that does them; it takes some three times as long.

    Parameters
    ----------
    window, box : int
        s0 in unbinned and s in binned pixels.
    binning : float
        b.
    circle_precrop : bool
        As for `windows.WindowTransform`, which this stands in for.

    Attributes
    ----------
    columns : ndarray, shape (s/2 + 1, s), complex64
        Result of `transform`: [kx, ky], ky in FFT order, origin at the window's corner, in the
        scale of a fast transform of the window.
    """

    def __init__(self, window: int, box: int, binning: float, *, circle_precrop: bool) -> None:
        half, extent = box // 2 + 1, binning * box
        pixels = np.arange(window)
        turns_x = -2 * np.pi / extent * np.outer(pixels, np.arange(half))
        turns_y = -2 * np.pi / extent * np.outer(np.fft.fftfreq(box, 1 / box), pixels)
        self._waves_x = np.concatenate([np.cos(turns_x), np.sin(turns_x)], axis=1)
        self._waves_y = window / extent * np.exp(1j * turns_y)
        self._circle_precrop = circle_precrop
        self._pixels = scratch.zeros((window, window), np.float32)
        self.columns: NDArray[np.complex64] = scratch.zeros((half, box), np.complex64)

    def transform(
        self, image_bytes: NDArray[np.uint8], mode: int, corner: NDArray[np.int64]
    ) -> int:
        """Fill `columns` from a window of an image; return how many pixels are not finite.

        Parameters as for `windows.WindowTransform.transform`.
        """
        n_bad: int = kernels.copy_rows(image_bytes, mode, corner, 0, self._pixels)
        if self._circle_precrop:
            crop_circle(self._pixels)
        half = len(self.columns)
        parts = self._pixels.astype(np.float64) @ self._waves_x
        self.columns[:] = (self._waves_y @ (parts[:, :half] + 1j * parts[:, half:])).T
        return n_bad
