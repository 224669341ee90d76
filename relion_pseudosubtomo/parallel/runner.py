"""One rank's own work: a thread does its pieces while the main thread keeps in touch."""

from __future__ import annotations

import contextlib
import math
import platform
import queue
import threading
import time
import traceback
from typing import Any, Protocol

from relion_pseudosubtomo.errors import InputError, PseudoSubtomoError, RankError
from relion_pseudosubtomo.parallel.work import Outcome, Piece


class Work(Protocol):
    """What the program does with a piece; made once on every rank."""

    def do(self, description: Any, control: Control) -> tuple[int, Any]:
        """Do a piece; return how many items were done, from the first on, and a result."""
        ...

    def prefetch(self, description: Any, control: Control) -> None:
        """Get ready for a piece while another is being done; give up once a stop is asked for."""
        ...


class Control:
    """What a piece of work looks at and reports to, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_items = 0
        self._n_left = 0
        self._first_end: float | None = None
        self._n_since_first = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ask for an end: items in hand are finished, no further one is begun."""
        self._stopped.set()

    def stopped(self) -> bool:
        """Return whether an end was asked for."""
        return self._stopped.is_set()

    def begin_piece(self, n_items: int) -> None:
        """Note that the items counted from now on are those of another piece."""
        with self._lock:
            self._n_left, self._n_since_first, self._first_end = n_items, 0, None

    def count_item(self) -> None:
        """Count one finished item."""
        with self._lock:
            self._n_items += 1
            self._n_left -= 1
            if self._first_end is None:
                self._first_end = time.monotonic()  # what came before it was loading
            else:
                self._n_since_first += 1

    def seconds_left(self) -> float:
        """Return how long the items that are left of the present piece will take at its pace.

        Infinite where there are none, or where the pace is not known yet.
        """
        with self._lock:
            if self._first_end is None or not self._n_since_first or self._n_left <= 0:
                return math.inf
            return self._n_left * (time.monotonic() - self._first_end) / self._n_since_first

    def take_count(self) -> int:
        """Return the items finished since the last call."""
        with self._lock:
            count, self._n_items = self._n_items, 0
        return count


class Runner:
    """Does pieces one after another in a thread; loads the next one while one is being done.

    Parameters
    ----------
    work : Work
    rank : int
        Named in error reports.

    Attributes
    ----------
    n_held : int
        Pieces submitted whose outcome has not been taken.
    busy_seconds : float
        Time spent on pieces.
    """

    def __init__(self, work: Work, rank: int) -> None:
        self.control = Control()
        self.n_held = 0
        self.busy_seconds = 0.0
        self._work = work
        self._rank = rank
        self._host = platform.node()
        self._waiting: queue.Queue[tuple[Piece, Any] | None] = queue.Queue()
        self._outcomes: queue.Queue[Outcome] = queue.Queue()
        # daemons: an exit must not wait for what hangs
        self._thread = threading.Thread(target=self._do_pieces, name="work", daemon=True)
        self._thread.start()

    def submit(self, piece: Piece, description: Any) -> None:
        """Take a piece; where another is in hand, start to load what this one needs."""
        self.n_held += 1
        self._waiting.put((piece, description))
        if self.n_held > 1:
            threading.Thread(
                target=self._prefetch, args=(description,), name="prefetch", daemon=True
            ).start()

    def wants_next(self, seconds: float) -> bool:
        """Return whether the last piece in hand will be done within so many seconds."""
        return self.n_held == 1 and self.control.seconds_left() <= seconds

    def close(self) -> None:
        """Begin no further item, and wait until those in hand are finished."""
        self.control.stop()
        self._waiting.put(None)
        self._thread.join()

    def _prefetch(self, description: Any) -> None:
        try:
            self._work.prefetch(description, self.control)
        except Exception:  # the piece itself meets the same error and reports it, or was stopped
            return

    def take_outcomes(self, timeout: float) -> list[Outcome]:
        """Return finished outcomes; wait up to `timeout` seconds for the first."""
        outcomes = []
        try:
            outcomes.append(self._outcomes.get(timeout=timeout))
            while True:
                outcomes.append(self._outcomes.get_nowait())
        except queue.Empty:
            self.n_held -= len(outcomes)
            return outcomes

    def _do_pieces(self) -> None:
        while True:
            item = self._waiting.get()
            if item is None:
                return
            piece, description = item
            started = time.perf_counter()
            self.control.begin_piece(piece.stop - piece.start)
            if self.control.stopped():
                outcome = Outcome(piece)
            else:
                outcome = self._attempt(piece, description)
            self.busy_seconds += time.perf_counter() - started
            self._outcomes.put(outcome)

    def _attempt(self, piece: Piece, description: Any) -> Outcome:
        """Do one piece; an error becomes part of the outcome, so that the other pieces go on."""
        try:
            n_done, result = self._work.do(description, self.control)
            return Outcome(piece, n_done, result)
        except RankError as error:
            where = f"Rank {self._rank} on {self._host}"
            return Outcome(piece, error=f"{where}: {error}", is_final=True)
        except PseudoSubtomoError as error:
            return Outcome(piece, error=str(error), is_local=isinstance(error, InputError))
        except MemoryError:
            return Outcome(piece, error="not enough memory on " + self._host)
        except BaseException as error:  # a bug, or an I/O error
            return self._describe_bug(piece, error)

    def _describe_bug(self, piece: Piece, error: BaseException) -> Outcome:
        """Return the outcome of a piece with as much of an error as can be told."""
        text, details = type(error).__name__, ""
        with contextlib.suppress(BaseException):  # without an outcome rank 0 would wait for ever
            text = f"{text}: {error}"
            details = f"rank {self._rank} on {self._host}:\n{traceback.format_exc()}"
        is_local = isinstance(error, Exception) and not isinstance(error, OSError)
        return Outcome(piece, error=text, is_local=is_local, details=details)
