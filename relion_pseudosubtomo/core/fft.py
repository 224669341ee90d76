"""Fourier transforms: the only module that makes pyFFTW's plans; kernels execute some of them.

Plans are estimated, never measured: a measured plan differs from process to process in its last
bits, also between a run and its restart (spec 4.2). Every plan uses one thread and belongs to one
thread of the program, with its own arrays. Transforms are not normalised; callers fold the factor
into a weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyfftw
from numpy.typing import NDArray

from relion_pseudosubtomo.core import scratch

#: The longest power of two that FFTW transforms in one piece.
_LONGEST_PIECE = 128

#: A planned transform between two fixed arrays; `execute()` runs it without the GIL.
Plan = Any


def is_one_piece(n: int) -> bool:
    """Return whether FFTW transforms lines of n numbers in one piece, fast wherever they lie."""
    return n & (n - 1) == 0 and n <= _LONGEST_PIECE


def padded_columns(n_columns: int, length: int) -> NDArray[np.complex64]:
    """Return zeroed columns, [column, row], a little further apart than they are long.

    Columns that lie a power of two apart share a few cache sets, which makes any access across
    them several times slower.
    """
    return scratch.zeros((n_columns, length + 8), np.complex64)[:, :length]


def aligned_rows(n_rows: int, length: int) -> NDArray[np.complex64]:
    """Return zeroed rows of complex numbers, each beginning with a cache line of its own.

    So a plan for some of them serves as many others. They lie an odd number of cache lines apart,
    for the reason that `padded_columns` has.
    """
    n_lines = -(-length // 8) | 1
    return scratch.zeros((n_rows, 8 * n_lines), np.complex64)[:, :length]


def padded_planes(n_planes: int, n_rows: int, length: int) -> NDArray[np.complex64]:
    """Return zeroed planes of rows, [plane, row, place], apart as `padded_columns` are."""
    planes = scratch.zeros((n_planes, n_rows * length + 8), np.complex64)
    return planes[:, : n_rows * length].reshape(n_planes, n_rows, length)


def plan_forward(
    source: NDArray,
    target: NDArray,
    axes: tuple[int, ...] = (-1,),
    *,
    keeps_source: bool = False,
) -> Plan:
    """Return a plan of the forward transform, real or complex by the arrays' types.

    Without `keeps_source` the plan may use `source` as scratch space: which sizes do is FFTW's
    choice.
    """
    return _plan(source, target, axes, "FFTW_FORWARD", keeps_source=keeps_source)


def plan_backward(source: NDArray, target: NDArray, axes: tuple[int, ...] = (-1,)) -> Plan:
    """Return a plan of the backward transform; a complex-to-real one destroys `source`."""
    return _plan(source, target, axes, "FFTW_BACKWARD")


def _plan(
    source: NDArray,
    target: NDArray,
    axes: tuple[int, ...],
    direction: str,
    *,
    keeps_source: bool = False,
) -> Plan:
    flags = ("FFTW_ESTIMATE",) if keeps_source else ("FFTW_ESTIMATE", "FFTW_DESTROY_INPUT")
    return pyfftw.FFTW(source, target, axes=axes, direction=direction, flags=flags, threads=1)


def forward_3d(volume: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return the unitary half-complex transform of a real cube, shape (n, n, n/2 + 1)."""
    n = volume.shape[0]
    source = pyfftw.zeros_aligned(volume.shape, dtype=np.float32)
    target = pyfftw.zeros_aligned((n, n, n // 2 + 1), dtype=np.complex64)
    plan = plan_forward(source, target, axes=(0, 1, 2))
    source[:] = volume
    plan.execute()
    target *= np.float32(n**-1.5)
    return target


def backward_3d(transform: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the unitary inverse of a half-complex transform of shape (n, n, n/2 + 1)."""
    n = transform.shape[0]
    source = pyfftw.zeros_aligned(transform.shape, dtype=np.complex64)
    target = pyfftw.zeros_aligned((n, n, n), dtype=np.float32)
    plan = plan_backward(source, target, axes=(0, 1, 2))
    source[:] = transform
    plan.execute()
    target *= np.float32(n**-1.5)
    return target
