"""Run the program with a look at the clock at every particle.

    python particle_clock.py <the program's words>

Beside the output directory every process leaves `laps_<process>.npy`, with a row of `COLUMNS` for
each particle: from the moment that its thread was done with the one before until it was done with
this one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

from relion_pseudosubtomo import cli
from relion_pseudosubtomo.share import Share

#: Who (a thread), which particle of which task, and seconds of the clock and of the processor.
COLUMNS = ("worker", "task", "particle", "wall_from", "cpu_from", "wall_to", "cpu_to")
LAPS = "laps_*.npy"

Lap = tuple[float, ...]


def look() -> tuple[float, float]:
    """Return the seconds of a clock that all processes share, and those of this thread's work."""
    return time.perf_counter(), time.thread_time()


def time_particles(
    take: Callable[[Share], Iterator[int]], laps: list[Lap]
) -> Callable[[Share], Iterator[int]]:
    """Return `Share.take_particles` with a lap for every particle that was taken."""

    def take_timed(share: Share) -> Iterator[int]:
        worker, task = threading.get_native_id(), share.result
        before = look()
        for i in take(share):
            yield i
            after = look()
            laps.append((worker, task.number, task.first + i, *before, *after))
            before = after

    return take_timed


def main() -> int:
    """Run the program; return its exit status."""
    words = sys.argv[1:]
    laps: list[Lap] = []
    with patch.object(Share, "take_particles", time_particles(Share.take_particles, laps)):
        status = cli.main(words)
    beside = Path(words[words.index("--o") + 1]).parent
    np.save(beside / LAPS.replace("*", str(os.getpid())), np.array(laps).reshape(-1, len(COLUMNS)))
    return status


if __name__ == "__main__":
    sys.exit(main())
