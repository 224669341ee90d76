"""Which rank does what next: whole tasks, costliest first; ranges of one where ranks would idle.

Pure decisions: the same code runs under MPI, in one process, and under a simulated clock.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from relion_pseudosubtomo.parallel.work import Piece

#: A range that a rank must load a task for costs at least this many times what the loading costs.
LEAST_WORK_PER_START = 2.0

#: The same near the end, where less is left for one more rank: below it the rank stays idle.
LEAST_HELP_PER_START = 0.5

#: A range of a task that costs the rank no loading, because it has started it already or shares the
#: page cache with one that has, costs at least this many times a loading.
LEAST_WORK_AT_HAND = 0.25

#: The share of an equal part of what is left that a range of a task gets.
GUIDED_SHARE = 0.5

#: A task is not divided to leave less of it than this share of a range.
LEAST_REST = 0.5

#: Ranks hold their next piece already while an equal part of what is left is at least this many
#: times the costliest task: no rank can end late then by having been given too much too early.
PLENTY = 3.0


@dataclass(frozen=True)
class TaskCost:
    """Estimated cost of a task, in any unit.

    Attributes
    ----------
    start : float
        Cost of starting it on a rank: loading.
    item : float
        Cost of one item.
    ranges : tuple of (int, int)
        Items that are to be done, as ranges [start, stop).
    start_beside : float or None
        Cost of starting it on a rank beside one, on the same node, that has started it, if less;
        None: the same as anywhere else.
    """

    start: float
    item: float
    ranges: tuple[tuple[int, int], ...]
    start_beside: float | None = None


class Scheduler:
    """Hands out the items of tasks, each exactly once unless its rank is lost.

    Parameters
    ----------
    costs : sequence of TaskCost
        One a task.
    n_ranks : int
        Ranks that ask for work.
    split : bool
        Whether a task may go to several ranks.
    nodes : mapping of int to str, optional
        The node of each rank; a rank that is not named has a node of its own.
    """

    def __init__(
        self,
        costs: Sequence[TaskCost],
        n_ranks: int,
        *,
        split: bool,
        nodes: Mapping[int, str] | None = None,
    ) -> None:
        self._costs = costs
        self._n_ranks = n_ranks
        self._split = split
        self._nodes = nodes or {}
        self._ranks_of: defaultdict[str | int, list[int]] = defaultdict(list)
        for rank, node in self._nodes.items():
            self._ranks_of[node].append(rank)
        self._waiting: dict[int, list[tuple[int, int]]] = {}
        self._heap: list[tuple[float, int]] = []
        self._held: dict[int, list[Piece]] = {}
        self._last_task: dict[int, int] = {}
        #: By task, how many ranks of each node have started it and not gone on to another.
        self._at_work: defaultdict[int, Counter[str | int]] = defaultdict(Counter)
        self._dropped: set[int] = set()
        self._left = 0.0
        for task, cost in enumerate(costs):
            self._put_back(task, cost.ranges)

    def _put_back(self, task: int, ranges: Iterable[tuple[int, int]]) -> None:
        added = [r for r in ranges if r[1] > r[0]]
        if not added or task in self._dropped:
            return
        with self._counting(task):
            self._waiting[task] = sorted([*self._waiting.get(task, []), *added])
        self._offer(task)

    @contextmanager
    def _counting(self, task: int) -> Iterator[None]:
        """Keep account of what is left while something of a task changes."""
        before = self._left_of(task)
        yield
        self._left += self._left_of(task) - before

    def _left_of(self, task: int) -> float:
        """Return what is left to hand out of a task, with its loading if nobody has begun it."""
        cost = self._cost_waiting(task)
        return cost - self._costs[task].start if cost and self._at_work[task] else cost

    def _offer(self, task: int) -> None:
        """Let any rank take what is waiting of a task."""
        heapq.heappush(self._heap, (-self._cost_waiting(task), task))

    def _cost_waiting(self, task: int) -> float:
        ranges = self._waiting.get(task)
        if not ranges:
            return 0.0
        cost = self._costs[task]
        return cost.start + cost.item * sum(stop - start for start, stop in ranges)

    def next_piece(self, rank: int) -> Piece | None:
        """Return the next piece for a rank; None where nothing is left that it may do."""
        task = self._choose_task(rank)
        if task is None:
            return None
        start, stop = self._waiting[task][0]
        size = self._size_of_piece(rank, task, stop - start)
        rest = self._waiting[task][1:]
        if start + size < stop:
            rest = [(start + size, stop), *rest]
        self._assign(rank, task)
        with self._counting(task):
            del self._waiting[task]
            if rest:
                self._waiting[task] = rest
        if rest and self._split:  # else the rest is for this rank alone
            self._offer(task)
        piece = Piece(task, start, start + size)
        self._held.setdefault(rank, []).append(piece)
        return piece

    def _choose_task(self, rank: int) -> int | None:
        """Return the rank's last task where some of it is left, else the costliest one."""
        last = self._last_task.get(rank)
        if last is not None and last in self._waiting:
            return last
        task = self._costliest()
        if task is None:
            return self._choose_beside(rank)
        heapq.heappop(self._heap)
        return task

    def _costliest(self) -> int | None:
        """Return the costliest task that any rank may begin, which is the first of the heap."""
        while self._heap:
            cost, task = self._heap[0]
            is_up_to_date = task in self._waiting and -cost == self._cost_waiting(task)
            if is_up_to_date and self._helps(task, self._costs[task].start):
                return task
            heapq.heappop(self._heap)  # from before the task was cut, or too little is left of it
        return None

    def _choose_beside(self, rank: int) -> int | None:
        """Return the costliest task that others of the rank's node are at work on, if it helps."""
        if not self._split:
            return None
        node = self._node(rank)
        started = sorted({self._last_task.get(other, -1) for other in self._ranks_of[node]})
        beside = [task for task in started if task in self._waiting]
        helped = [task for task in beside if self._helps(task, self._start_on(node, task))]
        return max(helped, key=self._cost_waiting, default=None)

    def _node(self, rank: int) -> str | int:
        return self._nodes.get(rank, rank)

    def _start_on(self, node: str | int, task: int) -> float:
        """Return the cost of starting a task on one more rank of a node."""
        cost = self._costs[task]
        if cost.start_beside is None or not self._at_work[task][node]:
            return cost.start
        return min(cost.start, cost.start_beside)

    def _helps(self, task: int, start: float) -> bool:
        """Whether it is worth while that one more rank starts a task, at this cost."""
        least = max(LEAST_HELP_PER_START * start, LEAST_WORK_AT_HAND * self._costs[task].start)
        return not self._at_work[task] or self._fair_part(task, start) >= least

    def _fair_part(self, task: int, start: float) -> float:
        """Return what one more rank may take of a task, to end with those at work on it."""
        work = self._cost_waiting(task) - self._costs[task].start
        n = self._at_work[task].total()
        return (work - n * start) / (n + 1)

    def _size_of_piece(self, rank: int, task: int, n_items: int) -> int:
        """Return how many of the next items of a task a rank gets."""
        if not self._split or self._n_ranks == 1:
            return n_items
        cost = self._costs[task]
        is_loaded = self._last_task.get(rank) == task
        least = (LEAST_WORK_AT_HAND if is_loaded else LEAST_WORK_PER_START) * cost.start
        wanted, rest = max(GUIDED_SHARE * self._left / self._n_ranks, least), LEAST_REST
        if not is_loaded and self._at_work[task]:
            fair = self._fair_part(task, self._start_on(self._node(rank), task))
            wanted, rest = min(wanted, fair), 0.0
        if cost.item * n_items <= (1 + rest) * wanted:
            return n_items
        return max(1, round(wanted / cost.item))

    def _assign(self, rank: int, task: int | None) -> None:
        """Note which task a rank has started last."""
        last, node = self._last_task.pop(rank, None), self._node(rank)
        if last is not None:
            with self._counting(last):
                self._at_work[last] -= Counter([node])
        if task is not None:
            self._last_task[rank] = task
            with self._counting(task):
                self._at_work[task][node] += 1

    def finish(self, rank: int, piece: Piece) -> None:
        """Note that a rank is done with a piece, or has failed with it."""
        self._held[rank].remove(piece)

    def lose_rank(self, rank: int) -> list[Piece]:
        """Take back what a lost rank held; return it."""
        pieces = self._held.pop(rank, [])
        self._n_ranks = max(1, self._n_ranks - 1)
        for piece in pieces:
            self._put_back(piece.task, [(piece.start, piece.stop)])
        last = self._last_task.get(rank)
        self._assign(rank, None)
        if last in self._waiting:
            self._offer(last)
        return pieces

    def drop_task(self, task: int) -> None:
        """Hand out nothing more of a task that has failed."""
        self._dropped.add(task)
        with self._counting(task):
            self._waiting.pop(task, None)

    @property
    def has_waiting(self) -> bool:
        """Whether anything is left to hand out."""
        return bool(self._waiting)

    def worth_holding_two(self) -> bool:
        """Whether there is enough left that every rank may hold its next piece already."""
        task = self._costliest()
        if task is None or self._n_ranks == 1:
            return task is not None
        return self._left / self._n_ranks >= PLENTY * self._cost_waiting(task)
