"""The packed volume that slices are inserted into, and its way back to real space (spec 2.8)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels, scratch
from relion_pseudosubtomo.core.windows import factor_pairs


def make_packed_volume(box: int) -> NDArray[np.float32]:
    """Return an empty packed volume, as `kernels.insert_slice` needs it for box `box`."""
    return scratch.zeros((box + 3, box + 3, box // 2 + 2, 4), np.float32)


class CubeTransform:
    """Backward transform of a half-complex volume to a real cube, not normalised.

    One axis after the other, which is faster than FFTW's estimated plan of all three. Rows of a
    power of two real numbers are folded to half as many complex ones first; for other lengths
    FFTW's real transform is the faster one. Planes lie a little further apart than they are large,
    as columns do (`fft.padded_columns`).

    Parameters
    ----------
    n : int
        Voxels along each side, even.

    Attributes
    ----------
    data_fs : ndarray, shape (n, n, n/2 + 1), complex64
        To be filled, FFTW order; `execute` destroys it.
    data : ndarray, shape (n, n, n), float32
        Result, [z, y, x].
    """

    def __init__(self, n: int) -> None:
        self.data_fs = fft.padded_planes(n, n, n // 2 + 1)
        self.data: NDArray[np.float32] = scratch.zeros((n, n, n), np.float32)
        self._folded = self.data.view(np.complex64) if n & (n - 1) == 0 else None
        if self._folded is not None:
            turn = 1j * np.exp(2j * np.pi * np.arange(n // 2) / n)
            self._factors = factor_pairs(1 + turn, 1 - turn)
            last = fft.plan_backward(self._folded, self._folded)
        else:
            last = fft.plan_backward(self.data_fs, self.data)
        across = (fft.plan_backward(self.data_fs, self.data_fs, (axis,)) for axis in (0, 1))
        self._volume_plans = (*across, last)

    def execute(self) -> None:
        """Fill `data`."""
        z, y, x = self._volume_plans
        z.execute()
        y.execute()
        if self._folded is not None:
            kernels.fold_rows(self.data_fs, self._factors, self._folded)
        x.execute()
