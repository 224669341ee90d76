"""Progress of all particles: a bar on a terminal, sparse lines in a batch log (spec 4.3)."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

#: Seconds between two lines of a batch log.
LINE_INTERVAL = 30.0

#: Set by the launcher whose ranks have terminals of their own.
_OWN_TERMINALS = "OMPI_COMM_WORLD_SIZE"

#: How names of terminals begin.
_TERMINALS = ("/dev/pts/", "/dev/tty")

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


def _ends_at_terminal() -> bool:
    """Return whether what is written to standard output is seen on a terminal.

    Open MPI gives its ranks terminals of their own, also where their output goes into a file. Then
    the launcher's counts: the nearest process above this one that writes elsewhere.
    """
    if sys.stdout is None or not sys.stdout.isatty():  # none: it was closed
        return False
    if _OWN_TERMINALS not in os.environ:
        return True
    try:
        own, process = os.readlink("/proc/self/fd/1"), os.getppid()
        while (output := os.readlink(f"/proc/{process}/fd/1")) == own:
            status = Path(f"/proc/{process}/status").read_text()
            process = int(status.split("PPid:")[1].split()[0])
    except OSError:  # another user's, or above them all
        return False
    return output.startswith(_TERMINALS)


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
        is_shown = _ends_at_terminal()
        self._bar = tqdm(total=total, unit=" particles", file=sys.stdout, disable=not is_shown)

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
