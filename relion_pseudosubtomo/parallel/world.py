"""The ranks of this run: who leads, who serves, and what one process does instead."""

from __future__ import annotations

import resource
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

from relion_pseudosubtomo.parallel.coordinate import News, NoOthers, Others, coordinate
from relion_pseudosubtomo.parallel.runner import Runner, Work
from relion_pseudosubtomo.parallel.schedule import Scheduler, TaskCost
from relion_pseudosubtomo.parallel.work import Piece

#: Makes a rank's work from what the leader shares, and the number of ranks that share its cores.
MakeWork = Callable[[Any, int], Work]


class Pool(Protocol):
    """All ranks, as the leader sees them.

    Attributes
    ----------
    size : int
        Number of ranks.
    n_sharing : int
        Ranks of the leader's node that may use its cores, itself included.
    """

    size: int
    n_sharing: int

    def run(
        self,
        shared: Any,
        costs: list[TaskCost],
        describe: Callable[[Piece], Any],
        *,
        split: bool,
        stop: Callable[[], bool],
    ) -> Generator[News, None, None]:
        """Do all items of all tasks on all ranks; yield what comes back.

        Once it is closed this rank has no item in hand.
        """
        ...


class World(Protocol):
    """Where the program runs."""

    size: int
    rank: int

    def lead(
        self,
        main: Callable[[Pool], int],
        make_work: MakeWork,
        stop: Callable[[], bool],
        on_abort: Callable[[], None],
    ) -> int:
        """Run `main` on one rank and let the others work for it; return the exit status.

        Parameters
        ----------
        main : callable
            Runs the job on all ranks it is given.
        make_work : callable
            Makes a rank's work from what `main` shares.
        stop : callable
            True once this rank was told to end.
        on_abort : callable
            Called before an uncaught error on this rank ends all ranks.
        """
        ...


def private_memory() -> int:
    """Return the memory of this process in bytes that is its own: mapped images do not count."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class LocalPool:
    """The leader's process, and the other ranks if there are any.

    Parameters
    ----------
    make_work : callable
        Makes this rank's work.
    others : Others
        The other ranks.
    share : callable
        Gives all ranks what they share.
    n_sharing : int
        Ranks of this node that may use this rank's cores, itself included.
    """

    def __init__(
        self,
        make_work: MakeWork,
        others: Others | None = None,
        share: Callable[[Any], None] = lambda shared: None,
        n_sharing: int = 1,
    ) -> None:
        self._make_work = make_work
        self._others: Others = NoOthers() if others is None else others
        self._share = share
        self.n_sharing = n_sharing
        self.size = 1 + len(self._others.ranks)

    def run(
        self,
        shared: Any,
        costs: list[TaskCost],
        describe: Callable[[Piece], Any],
        *,
        split: bool,
        stop: Callable[[], bool],
    ) -> Generator[News, None, None]:
        """Do all items of all tasks on all ranks; yield what comes back."""
        self._share(shared)
        scheduler = Scheduler(costs, self.size, split=split, nodes=self._others.nodes)
        runner = Runner(self._make_work(shared, self.n_sharing), rank=0)
        try:
            yield from coordinate(scheduler, runner, self._others, describe, stop, private_memory)
        finally:
            runner.close()


class SerialWorld:
    """One process, no launcher."""

    size = 1
    rank = 0

    def lead(
        self,
        main: Callable[[Pool], int],
        make_work: MakeWork,
        stop: Callable[[], bool],
        on_abort: Callable[[], None],
    ) -> int:
        """Run `main` here."""
        return main(LocalPool(make_work))
