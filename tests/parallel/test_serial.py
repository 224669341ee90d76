"""One process, no launcher: every item is done once, errors become outcomes, a stop ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.parallel import runner
from relion_pseudosubtomo.parallel.coordinate import News
from relion_pseudosubtomo.parallel.runner import Control
from relion_pseudosubtomo.parallel.schedule import TaskCost
from relion_pseudosubtomo.parallel.work import Outcome, Piece
from relion_pseudosubtomo.parallel.world import LocalPool, SerialWorld

TIME_LIMIT = 20
"""Seconds after which a test that hangs fails."""


@dataclass
class CountingWork:
    """Does items by writing them down.

    Attributes
    ----------
    errors : dict of int to Exception
        Raised instead of doing a task.
    on_item : callable
        Called with task and item.
    """

    errors: dict[int, BaseException] = field(default_factory=dict)
    on_item: Callable[[int, int], None] = lambda task, item: None
    done: list[tuple[int, int]] = field(default_factory=list)
    prefetched: list[Any] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def do(self, description: Any, control: Control) -> tuple[int, Any]:
        """Do the items of a piece until a stop is wanted."""
        task, start, stop = description
        self.threads.add(threading.current_thread().name)
        if task in self.errors:
            raise self.errors[task]
        n_done = 0
        for item in range(start, stop):
            if control.stopped():
                break
            self.done.append((task, item))
            control.count_item()
            n_done += 1
            self.on_item(task, item)
        return n_done, f"result of task {task}"

    def prefetch(self, description: Any, control: Control) -> None:
        """Note what is loaded ahead."""
        self.prefetched.append(description)


def run(
    work: CountingWork,
    n_items: list[int],
    stop: Callable[[], bool] = lambda: False,
    ranges: dict[int, tuple[tuple[int, int], ...]] | None = None,
) -> list[News]:
    """Do tasks of as many items in one process; return all news."""
    costs = [
        TaskCost(1.0, 1.0, (ranges or {}).get(task, ((0, n),))) for task, n in enumerate(n_items)
    ]
    shared_with: list[Any] = []

    def make_work(shared: Any, *n_sharing: int) -> CountingWork:
        shared_with.append(shared)
        assert n_sharing in ((), (1,))
        return work

    def main(pool: Any) -> int:
        assert pool.size == 1
        news.extend(
            pool.run(
                "shared",
                costs,
                lambda piece: (piece.task, piece.start, piece.stop),
                split=True,
                stop=stop,
            )
        )
        return 7

    news: list[News] = []
    assert SerialWorld().lead(main, make_work, lambda: False, lambda: None) == 7
    assert shared_with == ["shared"]
    return news


def outcomes_of(news: list[News]) -> list[Outcome]:
    """Return all outcomes in the order in which they came."""
    return [outcome for item in news for outcome in item.outcomes]


@pytest.mark.timeout(TIME_LIMIT)
def test_every_item_is_done_once() -> None:
    """Whole tasks, the costliest first, all of them by this process."""
    work = CountingWork()
    news = run(work, [2, 5, 1, 0])
    assert sorted(work.done) == [(0, 0), (0, 1), *((1, i) for i in range(5)), (2, 0)]
    outcomes = outcomes_of(news)
    assert [outcome.piece for outcome in outcomes] == [
        Piece(1, 0, 5),
        Piece(0, 0, 2),
        Piece(2, 0, 1),
    ]
    assert [outcome.n_done for outcome in outcomes] == [5, 2, 1]
    assert [outcome.result for outcome in outcomes] == [f"result of task {t}" for t in (1, 0, 2)]
    assert not any(outcome.error for outcome in outcomes)
    assert {item.rank for item in news} == {0}
    assert sum(item.n_items for item in news) == 8
    assert news[-1].private_memory > 1e6
    assert not any(item.lost or item.stopping for item in news)


@pytest.mark.timeout(TIME_LIMIT)
def test_only_what_is_missing_is_done() -> None:
    """A continued run gives ranges."""
    work = CountingWork()
    run(work, [10, 3], ranges={0: ((1, 3), (7, 9)), 1: ()})
    assert sorted(work.done) == [(0, 1), (0, 2), (0, 7), (0, 8)]


@pytest.mark.timeout(TIME_LIMIT)
def test_nothing_to_do() -> None:
    """No task, no news, no waiting."""
    assert outcomes_of(run(CountingWork(), [])) == []


@pytest.mark.timeout(TIME_LIMIT)
def test_the_next_task_is_loaded_while_one_is_done() -> None:
    """Never the first, which nothing goes before; the work itself has one thread."""
    work = CountingWork(on_item=lambda task, item: time.sleep(0.005))
    run(work, [2] * 8)
    assert work.prefetched
    assert set(work.prefetched) <= {(task, 0, 2) for task in range(1, 8)}
    assert work.threads == {"work"}


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.parametrize(
    ("error", "message", "has_traceback"),
    [
        (InputError("image is truncated"), "image is truncated", False),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error", True),
        (ValueError("a bug"), "ValueError: a bug", True),
        (MemoryError(), "not enough memory", False),
    ],
)
def test_an_error_fails_its_task_alone(error: Exception, message: str, has_traceback: bool) -> None:
    """It becomes an outcome with a message; the other tasks go on."""
    work = CountingWork(errors={1: error})
    outcomes = {outcome.piece.task: outcome for outcome in outcomes_of(run(work, [2, 3, 1]))}
    assert sorted(outcomes) == [0, 1, 2]
    assert message in outcomes[1].error
    assert outcomes[1].result is None
    assert outcomes[1].n_done == 0
    assert ("Traceback" in outcomes[1].details) == has_traceback
    if has_traceback:
        assert outcomes[1].details.startswith("rank 0 on ")
    assert sorted(work.done) == [(0, 0), (0, 1), (2, 0)]


class Unspeakable(ValueError):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise MemoryError


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.parametrize("cannot", ["text", "traceback"])
def test_an_error_that_cannot_be_described_is_reported_too(
    cannot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its name at least; the other tasks go on."""

    def fail() -> str:
        raise MemoryError

    monkeypatch.setattr(runner.traceback, "format_exc", fail)
    error = Unspeakable() if cannot == "text" else ValueError("a bug")
    work = CountingWork(errors={1: error})
    outcomes = {outcome.piece.task: outcome for outcome in outcomes_of(run(work, [2, 3, 1]))}
    assert outcomes[1].error == ("Unspeakable" if cannot == "text" else "ValueError: a bug")
    assert outcomes[1].details == ""
    assert sorted(work.done) == [(0, 0), (0, 1), (2, 0)]


@pytest.mark.timeout(TIME_LIMIT)
def test_nothing_more_of_a_failed_task_is_begun() -> None:
    """The ranges of it that are still waiting are given up."""
    work = CountingWork(errors={0: ValueError("a bug")})
    ranges = {0: ((0, 2), (4, 6), (8, 9))}
    outcomes = outcomes_of(run(work, [9, 1], ranges=ranges))
    failed = [outcome for outcome in outcomes if outcome.piece.task == 0]
    # one more may have been handed out ahead of time
    assert 1 <= len(failed) <= 2
    assert work.done == [(1, 0)]


@pytest.mark.timeout(TIME_LIMIT)
def test_a_stop_finishes_the_item_in_hand() -> None:
    """Items done count; nothing further is begun; the run ends."""
    stopped = threading.Event()
    handled = threading.Event()

    def on_item(task: int, item: int) -> None:
        if (task, item) == (1, 2):
            stopped.set()
            handled.wait(5)

    def stop() -> bool:
        if stopped.is_set():
            handled.set()
        return stopped.is_set()

    work = CountingWork(on_item=on_item)
    outcomes = outcomes_of(run(work, [2, 500, 1], stop=stop))
    done = {outcome.piece.task: outcome.n_done for outcome in outcomes}
    # the item after the one in hand may have begun before the stop got through
    assert 3 <= done[1] < 500
    assert len(work.done) == done[1]
    assert work.done == [(1, i) for i in range(done[1])]
    assert not any(done.get(task) for task in (0, 2))


@pytest.mark.timeout(TIME_LIMIT)
def test_a_stop_before_the_start() -> None:
    """Nothing is begun."""
    work = CountingWork()
    assert outcomes_of(run(work, [2, 3], stop=lambda: True)) == []
    assert work.done == []


@pytest.mark.timeout(TIME_LIMIT)
def test_news_come_while_the_work_goes_on() -> None:
    """Rank 0 can show progress before the task is done."""
    first_news = threading.Event()
    work = CountingWork(on_item=lambda task, item: first_news.wait(5) and None)
    costs = [TaskCost(1.0, 1.0, ((0, 3),))]
    pool = LocalPool(lambda *shared: work)
    counts = []
    for item in pool.run(
        None,
        costs,
        lambda piece: (piece.task, piece.start, piece.stop),
        split=False,
        stop=lambda: False,
    ):
        counts.append(item.n_items)
        first_news.set()
    assert sum(counts) == 3
    assert len(counts) > 1


@pytest.mark.timeout(TIME_LIMIT)
def test_nothing_is_done_behind_a_run_that_was_left() -> None:
    """An error of who takes the news, or a second Ctrl-C: the item in hand is the last."""
    work = CountingWork(on_item=lambda task, item: time.sleep(0.01))
    pool = LocalPool(lambda *shared: work)
    news = pool.run(
        None,
        [TaskCost(1.0, 1.0, ((0, 1000),))],
        lambda piece: (piece.task, piece.start, piece.stop),
        split=False,
        stop=lambda: False,
    )
    next(news)
    news.close()
    n_done = len(work.done)
    time.sleep(0.1)
    assert len(work.done) == n_done < 1000
