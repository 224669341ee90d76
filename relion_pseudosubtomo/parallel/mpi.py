"""Ranks under MPI: the only module that imports mpi4py.

Rank 0 leads: it hands out pieces and works too. No rank waits in a blocking receive, so signals are
seen at once and a sleeping rank uses no core. Messages are small; images never travel.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

from relion_pseudosubtomo.parallel.coordinate import (
    ANSWER_INTERVAL,
    ASK_AHEAD,
    BUSY_INTERVAL,
    LOOK_INTERVAL,
    REPORT_INTERVAL,
    News,
)
from relion_pseudosubtomo.parallel.runner import Runner
from relion_pseudosubtomo.parallel.work import Piece
from relion_pseudosubtomo.parallel.world import LocalPool, MakeWork, Pool, private_memory

_ORDER, _NEWS, _HELLO = 1, 2, 3

#: Reports are rarer where there are many ranks, so that rank 0 gets at most 200 a second.
REPORT_INTERVAL_PER_RANK = 0.005

#: Seconds after which a rank with nothing to say says so, and those of silence after which it is
#: taken for dead. Launchers end all ranks when one dies, but not all do: srun with pmi2 does not.
HEARTBEAT, SILENCE = 60.0, 600.0

#: The same of rank 0, which says nothing while it reads the input, or writes the tables.
LEADER_SILENCE = 3600.0

#: Seconds that count between two looks at most: a job that was suspended heard nobody meanwhile.
_LONGEST_LOOK = 1.0

#: Seconds a launcher gets to pass on what a rank printed before it kills all of them.
_FORWARDING = 0.5

#: Seconds that ranks get to say that they have stopped.
_FAREWELL = 5.0


class MpiWorld:
    """All ranks of an MPI job.

    Attributes
    ----------
    size : int
        Number of ranks.
    library : str
        The MPI library's name.
    """

    def __init__(self) -> None:
        self._comm = MPI.COMM_WORLD
        self._comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.size = self._comm.Get_size()
        self.rank = self._comm.Get_rank()
        self.library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip()

    def lead(
        self,
        main: Callable[[Pool], int],
        make_work: MakeWork,
        stop: Callable[[], bool],
        on_abort: Callable[[], None],
    ) -> int:
        """Run `main` on rank 0 and let the others work for it; return the exit status of all.

        An uncaught error on any rank ends all of them at once: a rank that left alone would hang
        the job for ever.
        """
        try:
            if self.rank == 0:
                return self._lead(main, make_work, stop)
            return _Servant(self._comm, make_work, stop).serve()
        except BaseException:
            try:
                with contextlib.suppress(Exception):
                    on_abort()
            finally:
                self.abort()
            raise

    def _lead(
        self, main: Callable[[Pool], int], make_work: MakeWork, stop: Callable[[], bool]
    ) -> int:
        others = _Others(self._comm)
        others.await_cores(stop)
        status = main(LocalPool(make_work, others, others.share, others.n_sharing(0)))
        others.finish(status)
        if others.unheard:  # perhaps alive, but late: they would wait for this rank
            _flush_streams()
            self._comm.Abort(status)
        if others.lost:
            _leave_at_once(status)
        return status

    def abort(self) -> None:
        """Report the error in hand with rank and host, and end all ranks.

        They end also where nothing can be printed: streams may be closed, memory used up.
        """
        try:
            print(
                f"rank {self.rank} on {platform.node()}:\n{traceback.format_exc()}",
                file=sys.stderr,
                flush=True,
            )
            _flush_streams()
            time.sleep(_FORWARDING)
        finally:
            self._comm.Abort(1)


def _own_cores() -> tuple[str, set[int]]:
    """Return this node's name and the cores this process may run on."""
    return platform.node(), os.sched_getaffinity(0)


def _leave_at_once(status: int) -> None:
    """Exit without MPI's farewell, which would wait for the dead."""
    try:
        _flush_streams()
    finally:
        os._exit(status)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # none: it was closed before the program started
            stream.flush()


class _Silence:
    """Counts the seconds for which another rank was not heard of."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last_look = time.monotonic()

    def look(self, *, heard: bool) -> None:
        """Note whether there was something now."""
        now = time.monotonic()
        passed, self._last_look = min(now - self._last_look, _LONGEST_LOOK), now
        self.seconds = 0.0 if heard else self.seconds + passed

    def describe(self, rank: int, node: str = "") -> str:
        """Return what to tell the user of a rank that was silent for too long."""
        return (
            f"rank {rank}{node and f' on {node}'} was not heard of for {self.seconds:.0f} s: it "
            "was killed, for too little memory say, or its node is lost. All ranks end; "
            "--only_do_unfinished continues the job."
        )


class _Others:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._sent: list[MPI.Request] = []
        self.ranks = set(range(1, comm.Get_size()))
        self.lost: set[int] = set()
        self.unheard: set[int] = set()
        self._cores = {0: _own_cores()}
        self._silence = {rank: _Silence() for rank in self.ranks}
        self._last_sign = time.monotonic()

    @property
    def patience(self) -> float:
        """Seconds that rank 0 may leave them alone; what is being sent makes way at its looks."""
        return LOOK_INTERVAL if self._sent else ANSWER_INTERVAL

    @property
    def nodes(self) -> dict[int, str]:
        """The node of each rank, rank 0 included."""
        return {rank: node for rank, (node, _) in self._cores.items()}

    def await_cores(self, stop: Callable[[], bool]) -> None:
        """Wait until every rank that lives has said where it runs.

        There are no collective calls anywhere: with a dead rank they would hang, or fail on all.
        Once an end is asked for, ranks that do not come within seconds are done without.

        Raises
        ------
        RuntimeError
            Where a rank was silent for too long.
        """
        silence, stopping = _Silence(), _Silence()
        while missing := self.ranks - self._cores.keys():
            try:
                message = _probe(self._comm, MPI.ANY_SOURCE, _HELLO)
                if message is not None:
                    rank, cores = message.recv()
                    self._cores[rank] = cores
                    continue
            except MPI.Exception as error:
                if not _is_death(error):
                    raise
                self._find_dead()
            silence.look(heard=False)
            stopping.look(heard=not stop())
            if silence.seconds > SILENCE:
                raise RuntimeError(silence.describe(min(missing)))
            if stopping.seconds > _FAREWELL:
                self.ranks -= missing
                self.unheard = missing
                return
            time.sleep(LOOK_INTERVAL)

    def n_sharing(self, rank: int) -> int:
        """Return how many ranks of a rank's node may use its cores, itself included."""
        node, mine = self._cores[rank]
        return sum(node == other and bool(mine & cores) for other, cores in self._cores.values())

    def share(self, shared: Any) -> None:
        """Give all ranks what they share, and how many share their cores."""
        for rank in sorted(self.ranks):
            self._order(rank, "share", (shared, self.n_sharing(rank)))

    def send(self, rank: int, piece: Piece, description: Any) -> None:
        """Give a rank a piece."""
        self._order(rank, "piece", (piece, description))

    def stop(self) -> None:
        """Ask every rank to finish the items in hand and begin no other."""
        self._order_all("stop", None)

    def finish(self, status: int) -> None:
        """Let every rank leave with a status."""
        self._order_all("finish", (status, bool(self.lost)))
        deadline = time.monotonic() + _FAREWELL
        while self._sent and time.monotonic() < deadline:
            self._forget_sent()
            time.sleep(LOOK_INTERVAL)

    def _order_all(self, kind: str, content: Any) -> None:
        for rank in sorted(self.ranks):
            self._order(rank, kind, content)

    def _order(self, rank: int, kind: str, content: Any) -> None:
        try:
            self._sent.append(self._comm.isend((kind, content), rank, _ORDER))
        except MPI.Exception as error:
            if not _is_death(error):
                raise

    def _forget_sent(self) -> None:
        """Drop requests that are complete, or whose receiver is dead."""
        left = []
        for request in self._sent:
            try:
                if not request.Test():
                    left.append(request)
            except MPI.Exception as error:
                if not _is_death(error):
                    raise
        self._sent = left

    def take_news(self) -> list[News]:
        """Return what has come in, without waiting; a dead rank is news too.

        Raises
        ------
        RuntimeError
            Where a rank was silent for too long: no launcher said so, but it must be dead.
        """
        self._forget_sent()
        self._give_sign()
        news: list[News] = []
        while True:
            try:
                message = _probe(self._comm, MPI.ANY_SOURCE, _NEWS)
                if message is None:
                    self._watch_silence({each.rank for each in news})
                    return news
                news.append(message.recv())
            except MPI.Exception as error:
                if not _is_death(error):
                    raise
                dead = self._find_dead()
                if not dead:
                    return news
                news += [News(rank, [], lost=True) for rank in dead]

    def _watch_silence(self, heard: set[int]) -> None:
        for rank in self.ranks:
            silence = self._silence[rank]
            silence.look(heard=rank in heard)
            if silence.seconds > SILENCE:
                raise RuntimeError(silence.describe(rank, self._cores[rank][0]))

    def _give_sign(self) -> None:
        """Tell the others now and then that rank 0 lives."""
        if time.monotonic() - self._last_sign > HEARTBEAT:
            self._last_sign = time.monotonic()
            self._order_all("wait", None)

    def _find_dead(self) -> list[int]:
        """Return ranks that have died since the last look, and take note (ULFM)."""
        failed = self._comm.Get_failed()
        self._comm.Ack_failed(failed.Get_size())
        all_ranks = self._comm.Get_group()
        dead = MPI.Group.Translate_ranks(failed, range(failed.Get_size()), all_ranks)
        new = [rank for rank in dead if rank not in self.lost]
        self.lost.update(new)
        self.ranks.difference_update(new)
        return new


def _probe(comm: MPI.Comm, source: int, tag: int) -> MPI.Message | None:
    """Return a message that has come in, if there is one.

    Open MPI looks among what it has taken in already and takes in more only then: what has just
    come is found by a second call.
    """
    return comm.improbe(source, tag) or comm.improbe(source, tag)


def _is_death(error: MPI.Exception) -> bool:
    deaths = ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING")
    return error.Get_error_class() in [getattr(MPI, name) for name in deaths if hasattr(MPI, name)]


class _Servant:
    """A rank other than 0: does what it is sent, reports, and never decides anything."""

    def __init__(self, comm: MPI.Comm, make_work: MakeWork, stop: Callable[[], bool]) -> None:
        self._comm = comm
        self._rank = comm.Get_rank()
        self._make_work = make_work
        self._stop = stop
        self._sent: list[MPI.Request] = []
        self._runner: Runner | None = None
        self._last_report = self._last_news = 0.0
        self._said_stopping = False
        self._has_asked = False
        self._leader_silence = _Silence()
        self._interval = max(REPORT_INTERVAL, REPORT_INTERVAL_PER_RANK * comm.Get_size())

    def serve(self) -> int:
        """Do pieces until rank 0 says that all is done; return its exit status.

        Raises
        ------
        RuntimeError
            Where rank 0 was silent for too long.
        """
        self._sent.append(self._comm.isend((self._rank, _own_cores()), 0, _HELLO))
        while True:
            order = self._take_order()
            self._leader_silence.look(heard=order is not None)
            if self._leader_silence.seconds > LEADER_SILENCE:
                raise RuntimeError(self._leader_silence.describe(0))
            if order is not None:
                kind, content = order
                if kind == "finish":
                    return self._leave(*content)
                self._obey(kind, content)
            self._report()
            self._sent = [request for request in self._sent if not request.Test()]

    def _take_order(self) -> tuple[str, Any] | None:
        message = _probe(self._comm, 0, _ORDER)
        return None if message is None else message.recv()

    def _obey(self, kind: str, content: Any) -> None:
        if kind == "share":
            self._runner = Runner(self._make_work(*content), self._rank)
        elif self._runner is not None and kind == "piece":
            self._runner.submit(*content)
            self._has_asked = False
        elif self._runner is not None and kind == "stop":
            self._runner.control.stop()

    def _report(self) -> None:
        """Send finished pieces at once, progress now and then; sleeps where there is nothing."""
        if self._runner is None:
            time.sleep(LOOK_INTERVAL)
            return
        is_urgent = self._sent or not self._runner.n_held
        outcomes = self._runner.take_outcomes(LOOK_INTERVAL if is_urgent else BUSY_INTERVAL)
        stopping = self._stop() and not self._said_stopping
        if stopping:
            self._said_stopping = True
            self._runner.control.stop()
        asks = not self._has_asked and self._runner.wants_next(ASK_AHEAD)
        self._has_asked |= asks
        now = time.monotonic()
        if not (outcomes or stopping or asks or now - self._last_report > self._interval):
            return
        self._last_report = now
        count = self._runner.control.take_count()
        is_silent = now - self._last_news > HEARTBEAT
        if not (outcomes or stopping or asks or count or is_silent):
            return
        self._last_news = now
        busy = self._runner.busy_seconds
        news = News(self._rank, outcomes, count, private_memory(), busy, asks, stopping)
        self._sent.append(self._comm.isend(news, 0, _NEWS))

    def _leave(self, status: int, some_are_dead: bool) -> int:
        if some_are_dead:
            _leave_at_once(status)
        if self._runner is not None:
            self._runner.close()
        return status
