"""Memory for scratch arrays: side by side, on huge pages where the system has them.

Every window touches hundreds of pages of a tilt image, and the processor's table of pages is small:
scratch arrays on few huge pages stay in it. Arrays of their own huge pages would all begin at the
same place of the cache's sets and drive each other out; side by side, a little apart, they do not.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What is taken from the system at once, at least, and the bytes of a huge page.
CHUNK_BYTES = 16 << 20
HUGE_PAGE_BYTES = 2 << 20
#: What arrays begin at multiples of, for the widest vector unit, and what lies between them.
ALIGNMENT = 64
GAP_BYTES = 192

_lock = threading.Lock()
_rest: NDArray[np.uint8] = np.empty(0, np.uint8)


def zeros(shape: tuple[int, ...], dtype: Any) -> NDArray:
    """Return a zeroed array aligned for the widest vector unit.

    It is for arrays that are used again and again. Their memory goes back to the system together
    with that of the arrays made shortly before and after, when none of them is left.
    """
    global _rest
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    step = _round_up(n_bytes, ALIGNMENT) + GAP_BYTES
    with _lock:
        if len(_rest) < step:
            _rest = _map_memory(max(CHUNK_BYTES, _round_up(step, HUGE_PAGE_BYTES)))
        array, _rest = _rest[:n_bytes], _rest[step:]
    return array.view(dtype).reshape(shape)


def _map_memory(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeroed memory that begins with a huge page; what is not touched takes none."""
    memory = mmap.mmap(-1, n_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    found = np.frombuffer(memory, np.uint8)
    first = -found.ctypes.data % HUGE_PAGE_BYTES
    return found[first : first + n_bytes]


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
