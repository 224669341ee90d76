"""Pieces of work: what a rank is given, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A range of the items of one task.

    Attributes
    ----------
    task : int
        Place of the task in the list given to the scheduler.
    start, stop : int
        Items of the task.
    """

    task: int
    start: int
    stop: int


@dataclass(frozen=True)
class Outcome:
    """What came of a piece: a result, or an error as text.

    Attributes
    ----------
    piece : Piece
    n_done : int
        Items done, from the first on; fewer than the piece has where it was stopped.
    result : object
        What the work returned; None where it failed.
    error : str
        Message for the user; empty where there is a result.
    is_local : bool
        Whether the piece's own input is to blame, or a fault of the program that shows with it; not
        memory, or where is written: other pieces have those too.
    is_final : bool
        Whether the rank can do no other piece either, and the run is to end.
    details : str
        Traceback headed by rank and host, where the error is not one that a user can cause.
    """

    piece: Piece
    n_done: int = 0
    result: Any = None
    error: str = ""
    is_local: bool = False
    is_final: bool = False
    details: str = ""
