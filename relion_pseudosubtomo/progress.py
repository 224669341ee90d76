"""Progress of all particles: a bar on a terminal, sparse lines in a batch log (spec 4.3)."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

#: Seconds between two lines of a batch log.
LINE_INTERVAL = 30.0

logger = logging.getLogger("relion_pseudosubtomo")


class Progress:
    """Counts the particles of all ranks and shows how far the run is.

    Parameters
    ----------
    total : int
        Particles to extract.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._started = self._last_line = time.monotonic()
        self._log_above: AbstractContextManager[None] | None = None
        is_terminal = sys.stdout is not None and sys.stdout.isatty()  # none: it was closed
        self._bar = tqdm(total=total, unit=" particles", file=sys.stdout, disable=not is_terminal)

    def __enter__(self) -> Progress:
        """Show the bar; lines of the log go above it."""
        if not self._bar.disable:
            self._log_above = logging_redirect_tqdm([logger])
            self._log_above.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        self._bar.close()
        if self._log_above is not None:
            self._log_above.__exit__(kind, error, trace)

    def advance(self, n: int) -> None:
        """Count finished particles."""
        self._done += n
        if not self._bar.disable:
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._last_line < LINE_INTERVAL or self._done == 0:
            return
        self._last_line = now
        rate = self._done / (now - self._started)
        logger.info(
            "%d of %d particles (%.0f%%), %.1f particles/s, about %s left",
            self._done,
            self._total,
            100 * self._done / self._total,
            rate,
            tqdm.format_interval((self._total - self._done) / rate),
        )
