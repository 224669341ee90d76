"""The packed volume that slices are inserted into, and its way back to real space (spec 2.8)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels, scratch
from relion_pseudosubtomo.core.windows import factor_pairs


def make_packed_volume(box: int) -> NDArray[np.float32]:
    """Return an empty packed volume, as `kernels.insert_slice` needs it for box `box`."""
    return scratch.zeros((box + 3, box + 3, box // 2 + 2, 4), np.float32)


#: Bytes of the lines that are transformed at once, at most: with the results they stay in cache.
BLOCK_BYTES = 16384


class CubeTransform:
    """Backward transform of a half-complex volume to a real cube, not normalised.

    First along z, then plane by plane along y and x, so that a plane is in cache until it is done.
    Rows along x are folded to half as many complex numbers, whose transform is faster.

    Along z and y FFTW's estimated plans are good where a line is transformed in one piece. Else
    they are several times slower in place, or across rows, than from one row in cache to another:
    there lines are transposed into rows first, a block at a time.

    The loops are here in Python, and in the compiled `kernels.CubeRunner`, which takes the same
    arrays and plans and gives the same bits.

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
    rows_fs : ndarray, shape (n, n/2 + 1), complex64
        One plane, [y, kx].
    factors : ndarray, shape (4, n/2, 2), float32
        Of `kernels.fold_rows`.
    folded, rows : ndarray, shape (n, n/2), complex64, and (n, n), float32
        A plane's rows before and after `row_plan`.
    depth_plan, plane_plan, edge_plan : plan or None
        Along z in `data_fs`, and along y in all columns of `rows_fs` but the last, and in that one,
        where lines are transformed in one piece.
    line_plan : plan or None
        From `lines` to `lines_fs`, where they are not.
    lines, lines_fs : ndarray, shape (block, n), complex64
        Lines along z or y.
    """

    def __init__(self, n: int) -> None:
        half = n // 2 + 1
        self.data_fs = fft.padded_planes(n, n, half)
        self.data: NDArray[np.float32] = scratch.zeros((n, n, n), np.float32)
        self.rows_fs: NDArray[np.complex64] = scratch.zeros((n, half), np.complex64)
        self.folded: NDArray[np.complex64] = scratch.zeros((n, n // 2), np.complex64)
        self.rows: NDArray[np.float32] = scratch.zeros((n, n), np.float32)
        turn = 1j * np.exp(2j * np.pi * np.arange(n // 2) / n)
        self.factors = factor_pairs(1 + turn, 1 - turn)
        self.row_plan = fft.plan_backward(self.folded, self.rows.view(np.complex64))
        self.depth_plan: fft.Plan = None
        self.plane_plan: fft.Plan = None
        self.edge_plan: fft.Plan = None
        self.line_plan: fft.Plan = None
        if fft.is_one_piece(n):
            self.depth_plan = fft.plan_backward(self.data_fs, self.data_fs, (0,))
            # an odd number of columns would not be taken four at a time
            inner, edge = self.rows_fs[:, :-1], self.rows_fs[:, -1:]
            self.plane_plan = fft.plan_backward(inner, inner, (0,))
            self.edge_plan = fft.plan_backward(edge, edge, (0,))
        else:
            n_blocks = -(-half * n * 8 // BLOCK_BYTES)
            shape = -(-half // n_blocks), n
            self.lines, self.lines_fs = (fft.padded_columns(*shape) for _ in range(2))
            self.line_plan = fft.plan_backward(self.lines, self.lines_fs)
        self._runner = kernels.CubeRunner and kernels.CubeRunner(self)

    def execute(self) -> None:
        """Fill `data`."""
        if self._runner is not None:
            self._runner.run()
            return
        if self.depth_plan is not None:
            self.depth_plan.execute()
        else:
            for y in range(len(self.data)):
                self._transform_lines(self.data_fs[:, y], self.data_fs[:, y])
        for z, plane in enumerate(self.data_fs):
            if self.plane_plan is not None:
                self.rows_fs[:] = plane
                self.plane_plan.execute()
                self.edge_plan.execute()
            else:
                self._transform_lines(plane, self.rows_fs)
            kernels.fold_rows(self.rows_fs, self.factors, self.folded)
            self.row_plan.execute()
            self.data[z] = self.rows

    def _transform_lines(self, source: NDArray, target: NDArray) -> None:
        """Transform the columns of n rows, a block of columns at a time."""
        for x in range(0, source.shape[1], len(self.lines)):
            columns = slice(x, min(x + len(self.lines), source.shape[1]))
            n_lines = columns.stop - x
            self.lines[:n_lines] = source[:, columns].T
            self.line_plan.execute()
            target[:, columns] = self.lines_fs[:n_lines].T
