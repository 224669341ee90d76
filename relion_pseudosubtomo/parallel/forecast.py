"""What sharing out work will come to, by the scheduler's own rules."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from relion_pseudosubtomo.parallel.schedule import Scheduler, TaskCost


def count_pieces(costs: Sequence[TaskCost], n_ranks: int, *, split: bool) -> int:
    """Return how many pieces tasks will be cut into if each takes as long as is estimated.

    Parameters
    ----------
    costs : sequence of TaskCost
        One a task.
    n_ranks : int
    split : bool
        Whether a task may go to several ranks.
    """
    scheduler = Scheduler(costs, n_ranks, split=split)
    ready = [(0.0, rank) for rank in range(n_ranks)]
    last_task: dict[int, int] = {}
    n_pieces = 0
    while ready and scheduler.has_waiting:
        now, rank = heapq.heappop(ready)
        piece = scheduler.next_piece(rank)
        if piece is None:
            continue  # what is left is not worth this rank's while
        scheduler.finish(rank, piece)
        n_pieces += 1
        cost = costs[piece.task]
        seconds = cost.item * (piece.stop - piece.start)
        if last_task.get(rank) != piece.task:
            last_task[rank] = piece.task
            seconds += cost.start
        heapq.heappush(ready, (now + seconds, rank))
    return n_pieces
