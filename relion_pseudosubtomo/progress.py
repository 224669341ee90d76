"""Progress of all particles: a bar on a terminal, sparse lines in a batch log (spec 4.3)."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

#: Seconds between two lines of a batch log.
LINE_INTERVAL = 30.0

logger = logging.getLogger("relion_pseudosubtomo")


class _AboveBar(logging.Handler):
    """Writes above the bar what another handler would write into it, to the same stream.

    tqdm's own redirection puts one handler in place of all: what goes to standard error is lost.
    """

    def __init__(self, handler: logging.StreamHandler[Any]) -> None:
        super().__init__(handler.level)
        self.setFormatter(handler.formatter)
        self.filters = list(handler.filters)
        self._stream = handler.stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        try:
            tqdm.write(self.format(record), file=self._stream)
        except Exception:  # as other handlers do: a log that cannot be written stops nothing
            self.handleError(record)


def _above_bar(handler: logging.Handler) -> logging.Handler:
    consoles = (sys.stdout, sys.stderr)
    if isinstance(handler, logging.StreamHandler) and handler.stream in consoles:
        return _AboveBar(handler)
    return handler


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
        self._handlers: list[logging.Handler] | None = None
        is_terminal = sys.stdout is not None and sys.stdout.isatty()  # none: it was closed
        self._bar = tqdm(total=total, unit=" particles", file=sys.stdout, disable=not is_terminal)

    def __enter__(self) -> Progress:
        """Show the bar; lines of the log go above it."""
        if not self._bar.disable:
            self._handlers = logger.handlers
            logger.handlers = [_above_bar(handler) for handler in logger.handlers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        self._bar.close()
        if self._handlers is not None:
            logger.handlers = self._handlers

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
