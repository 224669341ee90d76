"""Signals that ask for an orderly end: SLURM's, scancel's, Ctrl-C, a lost terminal (spec 4.5)."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopSignals:
    """Notes the first stop signal; a second SIGINT ends the program once items in hand are done.

    Attributes
    ----------
    received : str
        Name of the signal; empty until one came.
    keeps_status : bool
        Whether signals are ignored from the end of the job to that of the process. A launcher sends
        them to the ranks that are left once one has ended with another status than 0.
    """

    def __init__(self) -> None:
        self.received = ""
        self.keeps_status = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Install the handlers."""
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
            if number == signal.SIGHUP and self._previous[number] == signal.SIG_IGN:
                signal.signal(number, signal.SIG_IGN)  # nohup: the job is to outlive the terminal
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self.keeps_status else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def wanted(self) -> bool:
        """Return whether a signal asked for an end."""
        return bool(self.received)
