"""The values of a container, compressed particle by particle in threads and given back in order.

What comes out is what HDF5's filters shuffle and gzip make, so that any HDF5 library reads it.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.options import COMPRESSED_IN_HAND


class CompressionStopped(Exception):
    """The job was told to stop; what was compressed is of no use."""


@dataclass(frozen=True)
class ChunkRun:
    """Chunks of one size that lie one behind another in a file.

    Attributes
    ----------
    place : int
        Byte of the first.
    n_bytes, item : int
        Bytes of each, and of a value in it.
    starts : list of int, length n + 1
        Chunks before each particle.
    """

    place: int
    n_bytes: int
    item: int
    starts: list[int]


@dataclass(frozen=True)
class Compressor:
    """How containers are compressed.

    Attributes
    ----------
    level : int
        Of zlib, 1 to 9.
    threads : int
        That work at a time.
    stopped : callable
        True once the job is to stop.
    """

    level: int
    threads: int
    stopped: Callable[[], bool]

    def compress_particles(self, descriptor: int, run: ChunkRun) -> Iterator[list[bytes]]:
        """Yield the compressed chunks of each particle, in order for any number of threads.

        Parameters
        ----------
        descriptor : int
            Open file.
        run : ChunkRun
            The chunks in it.

        Raises
        ------
        CompressionStopped
        """

        def compress(first: int, stop: int) -> list[bytes]:
            return [compress_chunk(run.place + i * run.n_bytes) for i in range(first, stop)]

        def compress_chunk(place: int) -> bytes:
            """First bytes of all values first, as HDF5's shuffle puts them; then zlib."""
            # read past the library, whose lock would let one thread read at a time
            raw = _read(descriptor, run.n_bytes, place)
            shuffled = np.ascontiguousarray(raw.reshape(-1, run.item).T)
            del raw  # not held while the other is compressed
            return zlib.compress(shuffled.data, self.level)

        waiting: deque[Future[list[bytes]]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            for first, stop in pairwise(run.starts):
                if self.stopped():
                    raise CompressionStopped
                waiting.append(pool.submit(compress, first, stop))
                if len(waiting) > COMPRESSED_IN_HAND * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _read(descriptor: int, n_bytes: int, place: int) -> NDArray[np.uint8]:
    """Return bytes of a file; one call of the system gives 2 GB at most."""
    values = np.empty(n_bytes, np.uint8)
    pending = values.data
    while pending:
        n_read = os.preadv(descriptor, [pending], place)
        if not n_read:
            raise OSError("the file is shorter than expected")
        pending, place = pending[n_read:], place + n_read
    return values
