"""The floor: the transforms that a particle cannot do without, and nothing else.

For each visible frame s0 rows real-to-complex of length s0, s/2 + 1 columns of length s0; back,
s/2 + 1 columns of length s and the central n + 1 rows; for a volume these forth again, and one
n^3 complex-to-real transform a particle. Estimated plans of pyFFTW, one thread a plan, aligned
buffers that stay in the cache. Called as a program, it prints its times as JSON:

    python floor.py --b 192 --crop 96 --bin 4 --threads 1 --frames 41 39 40
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyfftw

#: Bytes of a block of rows; block and transform stay in the second-level cache.
BLOCK_BYTES = 200_000
FORWARD, BACKWARD = "FFTW_FORWARD", "FFTW_BACKWARD"


class Floor:
    """Plans and buffers of one thread, all zeros: a transform takes as long for any numbers.

    Parameters
    ----------
    box, crop, binning : int
        s, n and b.
    stack2d : bool
        2D stacks rather than volumes.
    """

    def __init__(self, box: int, crop: int, binning: int, *, stack2d: bool) -> None:
        s, n, s0, half = box, crop, box * binning, box // 2 + 1
        rows = block_rows(s0)
        central = min(n + 1, s)
        self._n_blocks = s0 // rows
        self._rows = plan((rows, s0), np.float32, (rows, s0 // 2 + 1), np.complex64, FORWARD)
        frame = [
            plan((half, s0), np.complex64, (half, s0), np.complex64, FORWARD),
            plan((half, s), np.complex64, (half, s), np.complex64, BACKWARD),
            plan((central, half), np.complex64, (central, s), np.float32, BACKWARD),
        ]
        self._volume: list[Any] = []
        if not stack2d:
            frame += [
                plan((central, s), np.float32, (central, half), np.complex64, FORWARD),
                plan((half, s), np.complex64, (half, s), np.complex64, FORWARD),
            ]
            shape = (n, n, n // 2 + 1)
            cube = plan(shape, np.complex64, (n, n, n), np.float32, BACKWARD, (0, 1, 2))
            self._volume.append(cube)
        self._frame = frame

    def transform_particle(self, n_frames: int) -> None:
        """Do the transforms of one particle."""
        for _ in range(n_frames):
            for _ in range(self._n_blocks):
                self._rows.execute()
            for each in self._frame:
                each.execute()
        for each in self._volume:
            each.execute()


def block_rows(window: int) -> int:
    """Return how many rows are transformed at once: a divisor of all of them."""
    most = max(1, BLOCK_BYTES // (4 * window))
    return max(rows for rows in range(1, window + 1) if window % rows == 0 and rows <= most)


def plan(
    source: tuple[int, ...],
    source_type: Any,
    target: tuple[int, ...],
    target_type: Any,
    direction: str,
    axes: tuple[int, ...] = (-1,),
) -> Any:
    """Return an estimated plan with buffers of its own."""
    return pyfftw.FFTW(
        pyfftw.zeros_aligned(source, dtype=source_type, n=64),
        pyfftw.zeros_aligned(target, dtype=target_type, n=64),
        axes=axes,
        direction=direction,
        flags=("FFTW_ESTIMATE", "FFTW_DESTROY_INPUT"),
        threads=1,
    )


def measure(floors: Sequence[Floor], frames: Sequence[int]) -> dict[str, float]:
    """Return wall and processor seconds a particle, the particles shared out among threads."""
    for floor in floors:
        floor.transform_particle(1)  # heats the buffers
    shares = [frames[i :: len(floors)] for i in range(len(floors))]

    def work(floor: Floor, share: Sequence[int]) -> None:
        for n_frames in share:
            floor.transform_particle(n_frames)

    with ThreadPoolExecutor(len(floors)) as pool:
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        list(pool.map(work, floors, shares))
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    n = len(frames)
    return {
        "wall": wall / n,
        "user": (after.ru_utime - before.ru_utime) / n,
        "system": (after.ru_stime - before.ru_stime) / n,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time the transforms that nothing can avoid.")
    for name in ("--b", "--crop", "--bin", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--stack2d", action="store_true", help="2D stacks, no volume")
    parser.add_argument(
        "--frames", type=int, nargs="+", required=True, help="visible frames of each particle"
    )
    given = parser.parse_args()
    floors = [
        Floor(given.b, given.crop, given.bin, stack2d=given.stack2d) for _ in range(given.threads)
    ]
    print(json.dumps(measure(floors, given.frames)))


if __name__ == "__main__":
    main()
