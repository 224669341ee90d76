"""What the threads of one task share: who takes which particle, and what was done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from relion_pseudosubtomo.accumulate import Accumulators
from relion_pseudosubtomo.model import TaskResult


class Share:
    """What the threads of one task share: who takes which particle, and what was done.

    Parameters
    ----------
    result : TaskResult
        Added to.
    indices : iterator of int
        Particles of the task, in order; each is taken once.
    stop, on_particle : callable
        As for `Worker.begin`.
    sums : Accumulators
        What the threads add up.

    Attributes
    ----------
    result, sums
        As given.
    """

    def __init__(
        self,
        result: TaskResult,
        indices: Iterator[int],
        stop: Callable[[], bool],
        on_particle: Callable[[], None],
        sums: Accumulators,
    ) -> None:
        self.sums = sums
        self.result = result
        self._indices = indices
        self._stop = stop
        self._on_particle = on_particle
        self._lock = threading.Lock()
        self._failed = False

    def take_particles(self) -> Iterator[int]:
        """Yield particles for the calling thread until none is left, or another thread failed."""
        while not (self._failed or self._stop()):
            with self._lock:
                i = next(self._indices, None)
            if i is None:
                return
            yield i

    def fail(self) -> None:
        """Let the other threads take no further particle."""
        self._failed = True

    def count(self, n_bytes: int, n_clipped: int, seconds_writing: float) -> None:
        """Count one finished particle."""
        with self._lock:
            self.result.n_particles += 1
            self.result.bytes_written += n_bytes
            self.result.n_clipped += n_clipped
            self.result.seconds_writing += seconds_writing
        self._on_particle()

    def count_not_finite(self, n: int) -> None:
        """Count pixels that were NaN or infinite."""
        if n:
            with self._lock:
                self.result.n_not_finite += n
