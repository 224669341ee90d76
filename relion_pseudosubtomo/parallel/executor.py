"""The contract between the program and whatever runs its tasks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from relion_pseudosubtomo.errors import PseudoSubtomoError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Outcome(Generic[TaskT, ResultT]):
    """What came of one task: a result, or an error as text.

    Attributes
    ----------
    task : TaskT
    result : ResultT or None
    error : str
        Message for the user; empty where there is a result.
    details : str
        Traceback, where the error is not one that a user can cause.
    """

    task: TaskT
    result: ResultT | None
    error: str = ""
    details: str = ""


class Executor(Protocol):
    """Runs every task once and hands over the outcomes as they come."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def run(
        self,
        tasks: Iterable[TaskT],
        work: Callable[[TaskT], ResultT],
        stop: Callable[[], bool],
    ) -> Iterable[Outcome[TaskT, ResultT]]:
        """Yield the outcome of each task; take no further task once `stop()` is true."""
        ...


def attempt(work: Callable[[TaskT], ResultT], task: TaskT) -> Outcome[TaskT, ResultT]:
    """Do one task; an error becomes part of the outcome, so that the other tasks go on."""
    try:
        return Outcome(task, work(task))
    except PseudoSubtomoError as error:
        return Outcome(task, None, str(error))
    except Exception as error:  # a bug, or an I/O error: it fails this task alone
        return Outcome(task, None, f"{type(error).__name__}: {error}", traceback.format_exc())
