"""Cut a window out of a tilt image, transform it, keep the frequencies that binning keeps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels
from relion_pseudosubtomo.core.masks import crop_circle

#: Rows transformed at once: a block of input and output stays in the second-level cache.
BLOCK_BYTES = 200_000


class WindowTransform:
    """Transform of a window of s0 x s0 pixels, pruned to the columns kx = 0 .. s/2.

    Attributes
    ----------
    columns : ndarray, shape (s/2 + 1, s0), complex64
        Result of `transform`: [kx, ky], origin at the window's corner, not normalised.
    """

    def __init__(self, window: int, box: int, *, circle_precrop: bool) -> None:
        self._window = window
        n_blocks = max(1, -(-4 * window * window // BLOCK_BYTES))
        self._block = -(-window // n_blocks)
        half = window // 2 + 1
        self._rows_rs = fft.zeros((self._block, window), np.float32)
        self._rows_fs = fft.zeros((self._block, half), np.complex64)
        self._row_plan = fft.plan_forward(self._rows_rs, self._rows_fs)
        self._gathered = fft.zeros((box // 2 + 1, window), np.complex64)
        self.columns: NDArray[np.complex64] = fft.zeros((box // 2 + 1, window), np.complex64)
        self._column_plan = fft.plan_forward(self._gathered, self.columns)
        self._whole = fft.zeros((window, window), np.float32) if circle_precrop else None

    @property
    def nbytes(self) -> int:
        """Bytes of the scratch arrays."""
        whole = 0 if self._whole is None else self._whole.nbytes
        return self._rows_rs.nbytes + self._rows_fs.nbytes + 2 * self.columns.nbytes + whole

    def transform(self, image_bytes: NDArray, mode: int, corner_x: int, corner_y: int) -> int:
        """Fill `columns` from the window at a corner; return how many of its pixels are not finite.

        Parameters
        ----------
        image_bytes : ndarray, shape (height, width * itemsize), uint8
            The tilt image as bytes.
        mode : int
            Its MRC mode.
        corner_x, corner_y : int
            First pixel of the window; outside the image the nearest edge pixel is repeated.
        """
        n_bad = 0
        if self._whole is not None:
            n_bad = kernels.copy_rows(image_bytes, mode, corner_x, corner_y, self._whole)
            crop_circle(self._whole)
        for row in range(0, self._window, self._block):
            rows = self._rows_rs[: self._window - row]
            if self._whole is not None:
                rows[:] = self._whole[row : row + len(rows)]
            else:
                n_bad += kernels.copy_rows(image_bytes, mode, corner_x, corner_y + row, rows)
            self._row_plan.execute()
            kernels.transpose_rows(self._rows_fs, row, self._gathered)
        self._column_plan.execute()
        return n_bad


def window_corners(image_points: NDArray[np.floating], window: int) -> NDArray[np.int64]:
    """Return the corner o = round_half_away(q) - s0/2 of each window (spec 2.4, step 1)."""
    rounded = np.copysign(np.floor(np.abs(image_points) + 0.5), image_points)
    return rounded.astype(np.int64) - window // 2


def shift_cycles(
    image_points: NDArray[np.floating], window: int, box: int, binning: float
) -> NDArray[np.floating]:
    """Return the phase ramp's cycles a frequency step that move the particle to the origin.

    For an even window (q - o) / (b s), as in RELION. For an odd one the origin is the window's
    centre pixel s0 // 2, and only the rest of the shift is scaled by b s (spec 2).

    Parameters
    ----------
    image_points : ndarray, shape (..., 2)
        Projected positions q.

    Returns
    -------
    ndarray, shape (..., 2)
    """
    inside = image_points - window_corners(image_points, window)
    if window % 2 == 0:
        return inside / (binning * box)
    centre = window // 2
    return centre / window + (inside - centre) / (binning * box)
