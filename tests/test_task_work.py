"""A piece is done in chunks, each begun while the one before is being done."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from small_models import make_options

from relion_pseudosubtomo import task_work
from relion_pseudosubtomo.accumulate import Accumulators
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.model import TaskResult
from relion_pseudosubtomo.parallel.runner import Control
from relion_pseudosubtomo.share import Share
from relion_pseudosubtomo.worker import BegunTask

CHUNK = 4


@dataclass
class FakeInput:
    """Particles `start` to `stop` of a task."""

    start: int
    stop: int
    columns: tuple[()] = ()

    @property
    def task(self) -> Any:
        """What is looked at of the task."""
        return FakeTask(self)

    def part(self, start: int, stop: int) -> FakeInput:
        """Return some of them."""
        return FakeInput(self.start + start, self.start + stop)


@dataclass
class FakeTask:
    """A task of so many particles."""

    given: FakeInput
    number: int = 0

    @property
    def first(self) -> int:
        """Its first particle."""
        return self.given.start

    def __len__(self) -> int:
        return self.given.stop - self.given.start


class FakeWorker:
    """Notes what is begun, finished and abandoned, in this order."""

    def __init__(self, failing: int | None = None, stopping: int | None = None) -> None:
        self.notes: list[tuple[str, int]] = []
        self._failing, self._stopping = failing, stopping

    def turn_to(self, given: FakeInput) -> None:
        """Hold nothing."""

    def begin(self, given: FakeInput, stop: Any, on_particle: Any) -> Any:
        """Note the first particle."""
        self.notes.append(("begin", given.start))
        return SimpleNamespace(
            given=given,
            control=stop.__self__,
            abandon=lambda: self.notes.append(("abandon", given.start)),
        )

    def finish(self, begun: Any) -> TaskResult:
        """Return all of them done, or none once a stop was asked for."""
        start, n = begun.given.start, len(begun.given.task)
        self.notes.append(("finish", start))
        if start == self._failing:
            raise InputError("cannot be read")
        result = TaskResult(0, start, 0 if begun.control.stopped() else n)
        if start == self._stopping:
            begun.control.stop()
        return result


def make_work(worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> task_work.TaskWork:
    """Return work with one thread that writes no records."""
    monkeypatch.setattr(task_work, "CHUNK_PER_THREAD", CHUNK)
    monkeypatch.setattr(task_work, "Worker", lambda job, threads: worker)
    job: Any = SimpleNamespace(options=make_options(no_writing=True))
    return task_work.TaskWork(job, 1)


def do(work: task_work.TaskWork, n: int, control: Control | None = None) -> tuple[int, TaskResult]:
    """Do a piece of n particles that begins with the tenth."""
    given: Any = FakeInput(10, 10 + n)
    return work.do(given, control or Control())


def test_the_next_chunk_is_begun_while_one_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than one ahead; finished in order."""
    worker = FakeWorker()
    n_done, result = do(make_work(worker, monkeypatch), 10)
    assert (n_done, result.first, result.n_particles) == (10, 10, 10)
    assert worker.notes == [
        ("begin", 10),
        ("begin", 14),
        ("finish", 10),
        ("begin", 18),
        ("finish", 14),
        ("finish", 18),
    ]


def test_a_small_piece_is_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun and finished."""
    worker = FakeWorker()
    assert do(make_work(worker, monkeypatch), 3)[0] == 3
    assert worker.notes == [("begin", 10), ("finish", 10)]


def test_a_chunk_behind_one_that_fails_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no further one is begun."""
    worker = FakeWorker(failing=14)
    with pytest.raises(InputError, match="cannot be read"):
        do(make_work(worker, monkeypatch), 20)
    assert worker.notes[-2:] == [("finish", 14), ("abandon", 18)]
    assert ("begin", 22) not in worker.notes


def test_no_chunk_is_begun_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one begun before is finished too: what it has is counted."""
    worker = FakeWorker(stopping=10)
    assert do(make_work(worker, monkeypatch), 20)[0] == CHUNK
    assert worker.notes == [("begin", 10), ("begin", 14), ("finish", 10), ("finish", 14)]
    stopped = Control()
    stopped.stop()
    worker.notes.clear()
    assert do(make_work(worker, monkeypatch), 20, stopped)[0] == 0
    assert worker.notes == []


def test_an_abandoned_task_takes_no_further_particle() -> None:
    """What is in hand is finished; its files are closed behind it."""
    result = TaskResult(0)
    in_hand, may_end = threading.Event(), threading.Event()
    share = Share(
        result, iter(range(100)), lambda: False, lambda: None, Accumulators(make_options(), 1.0)
    )

    def take() -> None:
        for _ in share.take_particles():
            in_hand.set()
            assert may_end.wait(5)
            share.count(1, 0, 0.0)

    closed: list[int] = []
    files = ExitStack()
    files.callback(lambda: closed.append(result.n_particles))
    with ThreadPoolExecutor(1) as pool:
        begun = BegunTask(0.0, share, files, None, [pool.submit(take)])
        assert in_hand.wait(5)
        threading.Timer(0.05, may_end.set).start()
        begun.abandon()
    assert result.n_particles == 1
    assert closed == [1]
