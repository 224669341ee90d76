"""The loop of rank 0: hand out pieces, collect outcomes, while its own threads work too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from relion_pseudosubtomo.parallel.runner import Runner
from relion_pseudosubtomo.parallel.schedule import Scheduler
from relion_pseudosubtomo.parallel.work import Outcome, Piece

#: Seconds between two looks for messages by a rank that has nothing to do, or much to send.
LOOK_INTERVAL = 0.005

#: Seconds between two looks by a process whose threads are at work: each takes a core from them for
#: a quarter of a millisecond. A piece that they finish is seen at once all the same.
BUSY_INTERVAL = 0.05

#: Seconds that another rank may wait for rank 0's answer; mostly it holds its next piece already.
ANSWER_INTERVAL = 0.02

#: Seconds before the end of its last piece at which a rank asks for the next one: as long as the
#: looks for messages on the way there and back take at most.
ASK_AHEAD = 2 * BUSY_INTERVAL + ANSWER_INTERVAL

#: Seconds between two reports of progress from a rank.
REPORT_INTERVAL = 0.5


@dataclass
class News:
    """What one rank reports.

    Attributes
    ----------
    rank : int
    outcomes : list of Outcome
    n_items : int
        Items finished since its last report.
    private_memory : int
        Bytes.
    busy_seconds : float
        Time spent on pieces so far.
    wants_next : bool
        The rank will be done with what it holds within ASK_AHEAD.
    stopping : bool
        The rank was told to end by a signal.
    lost : bool
        The rank has died; nothing else is set but what it held.
    lost_pieces : list of Piece
        What a lost rank held, for others to do again.
    """

    rank: int
    outcomes: list[Outcome]
    n_items: int = 0
    private_memory: int = 0
    busy_seconds: float = 0.0
    wants_next: bool = False
    stopping: bool = False
    lost: bool = False
    lost_pieces: list[Piece] = field(default_factory=list)


class Others(Protocol):
    """The other ranks, as rank 0 sees them."""

    ranks: set[int]

    @property
    def nodes(self) -> Mapping[int, str]:
        """The node of each rank, rank 0 included."""
        ...

    @property
    def patience(self) -> float:
        """Seconds that rank 0 may leave them alone."""
        ...

    def send(self, rank: int, piece: Piece, description: Any) -> None:
        """Give a rank a piece."""
        ...

    def take_news(self) -> list[News]:
        """Return what has come in, without waiting."""
        ...

    def stop(self) -> None:
        """Ask every rank to finish the items in hand and begin no other."""
        ...


class NoOthers:
    """One process."""

    patience = BUSY_INTERVAL

    def __init__(self) -> None:
        self.ranks: set[int] = set()
        self.nodes: dict[int, str] = {}

    def send(self, rank: int, piece: Piece, description: Any) -> None:
        """Never called: there is nobody to send to."""
        raise AssertionError(f"no rank {rank}")

    def take_news(self) -> list[News]:
        """Return nothing."""
        return []

    def stop(self) -> None:
        """Do nothing."""


def coordinate(
    scheduler: Scheduler,
    runner: Runner,
    others: Others,
    describe: Callable[[Piece], Any],
    stop: Callable[[], bool],
    memory: Callable[[], int],
) -> Iterator[News]:
    """Hand out all pieces; yield what comes back, until nothing is left or all have stopped.

    Parameters
    ----------
    scheduler : Scheduler
        Decides who does what.
    runner : Runner
        Rank 0's own work.
    others : Others
        The other ranks.
    describe : callable
        Returns what a rank needs to do a piece.
    stop : callable
        True once the run is to end early.
    memory : callable
        Returns this rank's private memory in bytes.
    """
    held = dict.fromkeys([0, *others.ranks], 0)
    asking: set[int] = set()
    stopping = False
    last_report = time.monotonic()
    while True:
        if not stopping and stop():
            stopping = True
            runner.control.stop()
            others.stop()
        if not stopping:
            if runner.wants_next(ASK_AHEAD):
                asking.add(0)
            _hand_out(scheduler, runner, others, describe, held, asking)
        if not any(held.values()) and (stopping or not scheduler.has_waiting):
            return
        own = runner.take_outcomes(others.patience)
        news = others.take_news()
        now = time.monotonic()
        if own or now - last_report > REPORT_INTERVAL:
            last_report = now
            count = runner.control.take_count()
            news.insert(0, News(0, own, count, memory(), runner.busy_seconds))
        for item in news:
            if item.rank not in held:
                continue  # sent before the rank died; others do its pieces again
            if item.lost:
                item.lost_pieces = scheduler.lose_rank(item.rank)
                held.pop(item.rank, None)
            if item.wants_next:
                asking.add(item.rank)
            for outcome in item.outcomes:
                scheduler.finish(item.rank, outcome.piece)
                held[item.rank] -= 1
                if outcome.error:
                    scheduler.drop_task(outcome.piece.task)
            yield item


def _hand_out(
    scheduler: Scheduler,
    runner: Runner,
    others: Others,
    describe: Callable[[Piece], Any],
    held: dict[int, int],
    asking: set[int],
) -> None:
    """Give every rank a piece; then the next one to who asks, or to all while there is plenty."""
    for wanted in (1, 2):
        for rank in [rank for rank, n_held in held.items() if n_held < wanted]:
            if not scheduler.has_waiting:
                return
            if wanted == 2 and rank not in asking and not scheduler.worth_holding_two():
                continue
            piece = scheduler.next_piece(rank)
            if piece is None:
                continue  # what is left is for another rank
            held[rank] += 1
            asking.discard(rank)
            if rank == 0:
                runner.submit(piece, describe(piece))
            else:
                others.send(rank, piece, describe(piece))
