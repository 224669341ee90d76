"""Scratch arrays lie side by side in memory that is shared out once."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core import scratch


def extent(array: NDArray) -> tuple[int, int]:
    """Return the addresses of an array's first byte and of the one behind its last."""
    first = array.ctypes.data
    return first, first + array.nbytes


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 2, 9), (scratch.CHUNK_BYTES // 4,)])
def test_zeros(shape: tuple[int, ...], dtype: type) -> None:
    """Zeros of the type asked for, aligned, that can be written to; also more than a chunk."""
    array = scratch.zeros(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert extent(array)[0] % scratch.ALIGNMENT == 0
    assert not array.any()
    array[:] = 1


def test_arrays_of_several_threads_do_not_touch() -> None:
    """There is a gap between any two, whoever made them."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 300_000, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda n: scratch.zeros((n,), np.float32), sizes))
    for one, other in pairwise(sorted(map(extent, arrays))):
        assert one[1] + scratch.GAP_BYTES <= other[0]


def test_most_arrays_lie_side_by_side() -> None:
    """A few small ones take one stretch of memory, in the order they are made in."""
    arrays = [scratch.zeros((1000,), np.float32) for _ in range(50)]
    steps = {other[0] - one[1] for one, other in pairwise(map(extent, arrays))}
    assert min(steps) == scratch.GAP_BYTES + -4000 % scratch.ALIGNMENT
    assert len(steps) <= 2


def test_memory_goes_back() -> None:
    """A chunk lives as long as one of its arrays, or until another has taken its place."""
    arrays = [scratch.zeros((scratch.CHUNK_BYTES // 2,), np.uint8) for _ in range(3)]
    watched = weakref.ref(arrays[0].base)
    del arrays[1:]
    assert watched() is not None
    arrays.clear()
    assert watched() is None
