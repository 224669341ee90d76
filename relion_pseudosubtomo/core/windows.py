"""Cut a window out of a tilt image, transform it, keep the frequencies that binning keeps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels, scratch
from relion_pseudosubtomo.core.masks import crop_circle

#: Rows transformed at once: a block of input and output stays in the second-level cache.
BLOCK_BYTES = 300_000

#: Lengths of complex lines for which FFTW's estimated plans take half the time a number of others.
FAST_LENGTHS = frozenset(
    (48, 64, 80, 96, 120, 128, 144, 160, 192, 200, 240, 256, 320, 384, 400, 512, 640, 1024, 1280)
)

#: How much longer others take; and, in units of what a fast length takes for a number and a step of
#: log2: joining a part at one frequency, of rows and of columns, and dealing out a column's number.
_SLOW, _JOIN_ROW, _JOIN_COLUMN, _DEAL_COLUMN = 2.2, 4.0, 1.5, 3.0


class WindowTransform:
    """Transform of a window of s0 x s0 pixels, pruned to the columns kx = 0 .. s/2.

    A row of s0 real pixels is taken as s0/2 complex numbers, dealt out to p parts; the transforms
    of the parts, each p times shorter, are joined at the s/2 + 1 frequencies that are kept only
    (decimation in time; Cooley and Tukey 1965). An odd row is one part with zero imaginary parts.
    Long columns are dealt out in the same way, row by row.

    Parameters
    ----------
    window : int
        s0, pixels along each side.
    box : int
        s, binned pixels along x.
    circle_precrop : bool
        Whether the window is multiplied by a circle first (spec 2.4).
    cut_before : bool
        Whether whole windows are cut by others, into `rows`.

    Attributes
    ----------
    rows : ndarray, shape (n_rows, s0), float32
        Pixels of a block of rows.
    parts, parts_fs : ndarray, shape (n_rows, n_parts, length), complex64
        The same memory where s0 is even, dealt out to parts, and their transforms.
    factors : ndarray, shape (n_parts, 4, s/2 + 1, 2), float32
        What joins the parts (`join_factors`).
    gathered : ndarray, shape (s/2 + 1, s0), complex64
        Transforms of all rows, [kx, row].
    column_parts_fs : ndarray, shape (s/2 + 1, n_parts, length), complex64, or None
        Transforms of the parts of the columns, where they are dealt out.
    column_factors : ndarray, shape (n_parts, 2, s, 2), float32
        What joins those.
    columns : ndarray, shape (s/2 + 1, s0), or (s/2 + 1, s) where they were dealt out, complex64
        Result: [kx, ky], origin at the window's corner, not normalised.
    row_plan, column_plan : plan
        From `parts` to `parts_fs`, and from `gathered` to `columns` or to `column_parts_fs`.
    """

    def __init__(
        self,
        window: int,
        box: int,
        *,
        circle_precrop: bool = False,
        cut_before: bool = False,
    ) -> None:
        half = box // 2 + 1
        n_parts, length = split_row(window, window if cut_before else box)
        n_blocks = 1 if cut_before else max(1, -(-4 * window * window // BLOCK_BYTES))
        block = -(-window // n_blocks)
        self.parts = scratch.zeros((block, n_parts, length), np.complex64)
        self.parts_fs = scratch.zeros(self.parts.shape, np.complex64)
        self._is_odd = window % 2 == 1
        # rows of an odd window fill the real parts alone: the zeros beside them have to last
        self.row_plan = fft.plan_forward(self.parts, self.parts_fs, keeps_source=self._is_odd)
        self.factors = join_factors(window, half, n_parts)
        if self._is_odd:
            self.rows = scratch.zeros((block, window), np.float32)
        else:
            self.rows = self.parts.view(np.float32).reshape(block, window)
        self.gathered = fft.padded_columns(half, window)
        self._plan_columns(box)
        self._whole = scratch.zeros((window, window), np.float32) if circle_precrop else None

    def _plan_columns(self, box: int) -> None:
        half, window = self.gathered.shape
        n_parts = split_column(window, box)
        self.column_parts_fs: NDArray[np.complex64] | None = None
        if n_parts == 1:
            self.columns: NDArray[np.complex64] = scratch.zeros((half, window), np.complex64)
            self.column_plan = fft.plan_forward(self.gathered, self.columns)
            return
        self.column_parts_fs = scratch.zeros((half, n_parts, window // n_parts), np.complex64)
        self.column_factors = column_factors(window, box, n_parts)
        self.columns = scratch.zeros((half, box), np.complex64)
        dealt = self.gathered.reshape(half, window // n_parts, n_parts).swapaxes(1, 2)
        self.column_plan = fft.plan_forward(dealt, self.column_parts_fs)

    def transform(
        self, image_bytes: NDArray[np.uint8], mode: int, corner: NDArray[np.int64]
    ) -> int:
        """Fill `columns` from a window of an image; return how many pixels are not finite.

        Parameters
        ----------
        image_bytes : ndarray, shape (height, width * itemsize), uint8
            The tilt image as bytes.
        mode : int
            Its MRC mode.
        corner : ndarray, shape (2,), int64
            First pixel (x, y) of the window; outside the image the nearest edge pixel is repeated.
        """
        if self._whole is None:
            return self._transform(image_bytes, mode, corner)
        n_bad: int = kernels.copy_rows(image_bytes, mode, corner, 0, self._whole)
        crop_circle(self._whole)
        self._transform(self._whole.view(np.uint8), 2, 0 * corner)
        return n_bad

    def _transform(
        self, image_bytes: NDArray[np.uint8], mode: int, corner: NDArray[np.int64]
    ) -> int:
        height, n_parts, n_bad = self.gathered.shape[1], self.parts.shape[1], 0
        for first in range(0, height, len(self.rows)):
            block = self.rows[: height - first]
            n_bad += kernels.copy_rows(image_bytes, mode, corner, first, block, n_parts)
            self._transform_rows(first)
        self._transform_columns()
        return n_bad

    def transform_rows(self) -> None:
        """Fill `columns` from a whole window that `rows` holds."""
        self._transform_rows(0)
        self._transform_columns()

    def _transform_rows(self, first: int) -> None:
        if self._is_odd:
            self.parts.real[:, 0] = self.rows
        self.row_plan.execute()
        kernels.join_rows(self.parts_fs, self.factors, first, self.gathered)

    def _transform_columns(self) -> None:
        self.column_plan.execute()
        if self.column_parts_fs is not None:
            kernels.join_columns(self.column_parts_fs, self.column_factors, self.columns)


def split_row(window: int, box: int) -> tuple[int, int]:
    """Return into how many parts a row of a window is dealt, and the complex length of each.

    Those that take the least time, of parts that have all frequencies that are kept, or of one.
    """
    if window % 2:
        return 1, window
    n, kept = window // 2, box // 2 + 1
    parts = [1, *(p for p in range(2, n // kept + 1) if n % p == 0)]
    best = min(parts, key=lambda p: _transform_cost(n, p) + _JOIN_ROW * p * kept)
    return best, n // best


def split_column(window: int, box: int) -> int:
    """Return into how many parts a column of a window is dealt; 1: it is transformed as it is.

    Those that take the least time, of parts of a fast length that have all frequencies of the box,
    or of one.
    """

    def cost(parts: int) -> float:
        dealt = _JOIN_COLUMN * parts * box + _DEAL_COLUMN * window if parts > 1 else 0
        return _transform_cost(window, parts) + dealt

    lengths = [length for length in FAST_LENGTHS if length >= box and window % length == 0]
    return min([1, *(window // length for length in sorted(lengths))], key=cost)


def _transform_cost(n: int, parts: int) -> float:
    length = n // parts
    return n * float(np.log2(length)) * (1 if length in FAST_LENGTHS else _SLOW)


def column_factors(window: int, box: int, parts: int) -> NDArray[np.float32]:
    """Return the factors with which `kernels.join_columns` joins the parts of a column.

    Returns
    -------
    ndarray, shape (parts, 2, box, 2), float32
    """
    k = np.fft.fftfreq(box, 1 / box)
    turn = np.exp(-2j * np.pi * np.arange(parts)[:, None] * k / window)
    pairs = (turn.real, turn.real), (-turn.imag, turn.imag)
    columns = [np.stack(pair, axis=-1) for pair in pairs]
    return np.ascontiguousarray(np.stack(columns, axis=1), np.float32)


def join_factors(window: int, n_columns: int, parts: int) -> NDArray[np.float32]:
    """Return the factors with which `kernels.join_rows` joins the parts of a row.

    Returns
    -------
    ndarray, shape (parts, 4, n_columns, 2), float32
    """
    k = np.arange(n_columns)
    if window % 2:
        near, far = np.ones((2, 1, n_columns), np.complex128) * [[[1]], [[0]]]
    else:
        turn = np.exp(-2j * np.pi * k / window)
        part = np.exp(-4j * np.pi * np.arange(parts)[:, None] * k / window) / 2
        near, far = part * (1 - 1j * turn), part * (1 + 1j * turn)
    return factor_pairs(near, far)


def factor_pairs(near: NDArray[np.complexfloating], far: NDArray[np.complexfloating]) -> NDArray:
    """Return complex factors, shape (..., n), of numbers and of the conjugates of others.

    Laid out as `kernels.join_rows` and `kernels.fold_rows` multiply them: (..., 4, n, 2), float32.
    """
    pairs = (near.real, near.real), (-near.imag, near.imag), (far.real, -far.real)
    columns = [np.stack(pair, axis=-1) for pair in (*pairs, (far.imag, far.imag))]
    return np.ascontiguousarray(np.stack(columns, axis=-3), np.float32)


def window_corners(image_points: NDArray[np.floating], window: int) -> NDArray[np.int64]:
    """Return the corner o = round_half_away(q) - s0/2 of each window (spec 2.4, step 1)."""
    rounded = np.copysign(np.floor(np.abs(image_points) + 0.5), image_points)
    return rounded.astype(np.int64) - window // 2


def shift_cycles(
    image_points: NDArray[np.floating],
    window: int,
    box: int,
    binning: float,
    *,
    exact_scale: bool = False,
) -> NDArray[np.floating]:
    """Return the phase ramp's cycles a frequency step that move the particle to the origin.

    For an even window (q - o) / (b s), as in RELION. For an odd one the origin is the window's
    centre pixel s0 // 2, and only the rest of the shift is scaled by b s (spec 2).

    Parameters
    ----------
    image_points : ndarray, shape (..., 2)
        Projected positions q.
    exact_scale : bool
        Whether the transform is that of `exact_windows`, at the frequencies k / (b s).

    Returns
    -------
    ndarray, shape (..., 2)
    """
    inside = image_points - window_corners(image_points, window)
    if window % 2 == 0 or exact_scale:
        return inside / (binning * box)
    centre = window // 2
    return centre / window + (inside - centre) / (binning * box)
