"""Progress of all particles: a bar on a terminal, sparse lines in a batch log (spec 4.3)."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

#: Seconds between two lines of a batch log.
LINE_INTERVAL = 30.0

logger = logging.getLogger("relion_pseudosubtomo")


class Progress:
    """Counts particles from any thread and shows how far the run is.

    Parameters
    ----------
    total : int
        Particles to extract.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self._started = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total, unit=" particles", file=sys.stdout, disable=not sys.stdout.isatty()
        )

    def __enter__(self) -> Progress:
        """Return the progress itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        self._bar.close()

    def advance(self) -> None:
        """Count one particle."""
        with self._lock:
            self._done += 1
            if not self._bar.disable:
                self._bar.update()
                return
            now = time.monotonic()
            if now - self._last_line < LINE_INTERVAL:
                return
            self._last_line = now
            done, rate = self._done, self._done / (now - self._started)
        left = (self._total - done) / rate
        logger.info(
            "%d of %d particles (%.0f%%), %.1f particles/s, about %s left",
            done,
            self._total,
            100 * done / self._total,
            rate,
            tqdm.format_interval(left),
        )
