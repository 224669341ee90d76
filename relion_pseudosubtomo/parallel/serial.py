"""One process: the tasks one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from relion_pseudosubtomo.parallel.executor import Outcome, ResultT, TaskT, attempt


class SerialExecutor:
    """Runs the tasks in this process, in the given order."""

    size = 1

    def run(
        self,
        tasks: Iterable[TaskT],
        work: Callable[[TaskT], ResultT],
        stop: Callable[[], bool],
    ) -> Iterator[Outcome[TaskT, ResultT]]:
        """Yield the outcome of each task; take no further task once `stop()` is true."""
        for task in tasks:
            if stop():
                return
            yield attempt(work, task)
