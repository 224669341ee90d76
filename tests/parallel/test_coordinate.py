"""Rank 0's loop with made-up other ranks, and a rank's own work in its thread."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.parallel import runner as runner_module
from relion_pseudosubtomo.parallel.coordinate import (
    ASK_AHEAD,
    LOOK_INTERVAL,
    News,
    NoOthers,
    Others,
    coordinate,
)
from relion_pseudosubtomo.parallel.runner import Control, Runner
from relion_pseudosubtomo.parallel.schedule import Scheduler, TaskCost
from relion_pseudosubtomo.parallel.work import Outcome, Piece
from relion_pseudosubtomo.parallel.world import LocalPool

pytestmark = pytest.mark.timeout(20)

#: Seconds after which a thread that should have been woken is given up.
PATIENCE = 5


@dataclass
class FakeWork:
    """Rank 0's work: counts items; fails where it is told to.

    Attributes
    ----------
    failing : set of int
        Tasks that raise an error.
    may_go_on : threading.Event
        Not set: pieces wait before their first item.
    has_begun : threading.Event
        Set by the first piece.
    """

    failing: set[int] = field(default_factory=set)
    may_go_on: threading.Event = field(default_factory=threading.Event)
    has_begun: threading.Event = field(default_factory=threading.Event)
    prefetched: list[Piece] = field(default_factory=list)

    def do(self, description: Any, control: Control) -> tuple[int, Any]:
        """Count the items of a piece until a stop is asked for."""
        piece = described_piece(description)
        self.has_begun.set()
        self.may_go_on.wait(PATIENCE)
        if piece.task in self.failing:
            raise InputError(f"task {piece.task} cannot be read")
        n_done = 0
        for _ in range(piece.start, piece.stop):
            if control.stopped():
                break
            control.count_item()
            n_done += 1
        return n_done, "by rank 0"

    def prefetch(self, description: Any, control: Control) -> None:
        """Note what is loaded ahead."""
        self.prefetched.append(described_piece(description))


def describe(piece: Piece) -> tuple[str, Piece]:
    """Return what a rank needs for a piece."""
    return "description", piece


def described_piece(description: tuple[str, Piece]) -> Piece:
    """Return the piece of a description."""
    word, piece = description
    assert word == "description"
    return piece


class FakeRanks:
    """Other ranks in memory: each does one piece every time rank 0 looks for news.

    Parameters
    ----------
    n_others : int
        Ranks besides rank 0.
    failing : set of int
        Tasks that fail.
    dies_at : dict of int to int
        Ranks that die when they should begin their n-th piece, counted from 0.
    late : News or None
        What is found right after the news of a death, having been sent before.
    on_stop : callable
        Called when the ranks are asked to stop.
    asks : bool
        Whether every rank asks for its next piece before it does one.
    """

    def __init__(
        self,
        n_others: int,
        failing: Sequence[int] = (),
        dies_at: dict[int, int] | None = None,
        late: News | None = None,
        on_stop: Callable[[], None] = lambda: None,
        *,
        asks: bool = False,
    ) -> None:
        self.ranks = set(range(1, n_others + 1))
        self.nodes: dict[int, str] = {}
        self.patience = LOOK_INTERVAL
        self.n_begun = dict.fromkeys(self.ranks, 0)
        self.most_held = 0
        self.stopped = False
        self._failing = set(failing)
        self._dies_at = dies_at or {}
        self._late = late
        self._on_stop = on_stop
        self._asks = asks
        self._asked: set[Piece] = set()
        self._held: dict[int, deque[Piece]] = {rank: deque() for rank in self.ranks}

    def send(self, rank: int, piece: Piece, description: Any) -> None:
        """Take a piece for a rank."""
        assert rank in self.ranks, "a dead rank was given a piece"
        assert described_piece(description) == piece
        self._held[rank].append(piece)
        self.most_held = max(self.most_held, len(self._held[rank]))

    def take_news(self) -> list[News]:
        """Let every rank that holds a piece do one, or die."""
        news: list[News] = []
        for rank in sorted(self.ranks):
            if not self._held[rank]:
                continue
            if self._dies_at.get(rank) == self.n_begun[rank]:
                self.ranks.remove(rank)
                news.append(News(rank, [], lost=True))
                if self._late is not None:
                    news.append(self._late)
                continue
            if self._asks and self._held[rank][0] not in self._asked:
                self._asked.add(self._held[rank][0])
                news.append(News(rank, [], wants_next=True))
                continue
            self.n_begun[rank] += 1
            news.append(self._do(rank, self._held[rank].popleft()))
        return news

    def _do(self, rank: int, piece: Piece) -> News:
        if self.stopped:
            return News(rank, [Outcome(piece)])
        if piece.task in self._failing:
            return News(rank, [Outcome(piece, error=f"task {piece.task} cannot be read")])
        n_items = piece.stop - piece.start
        outcome = Outcome(piece, n_items, f"by rank {rank}")
        return News(rank, [outcome], n_items, private_memory=rank, busy_seconds=1.0)

    def stop(self) -> None:
        """Let no rank begin another item."""
        self.stopped = True
        self._on_stop()


def make_costs(*n_items: int) -> list[TaskCost]:
    """Return tasks of these sizes; an item costs as much as a start."""
    return [TaskCost(1.0, 1.0, ((0, n),)) for n in n_items]


def run(
    costs: Sequence[TaskCost],
    others: Others,
    work: FakeWork | None = None,
    *,
    split: bool = True,
    stop: Callable[[list[News]], bool] = lambda news: False,
) -> list[News]:
    """Do all tasks; return all news.

    Parameters
    ----------
    costs : sequence of TaskCost
    others : Others
    work : FakeWork or None
        Rank 0's; None never waits.
    split : bool
    stop : callable
        Is given the news so far; true once the run is to end.
    """
    if work is None:
        work = FakeWork()
        work.may_go_on.set()
    news: list[News] = []
    scheduler = Scheduler(costs, 1 + len(others.ranks), split=split)
    loop = coordinate(scheduler, Runner(work, 0), others, describe, lambda: stop(news), lambda: 17)
    news.extend(loop)
    return news


def items_done(news: Sequence[News]) -> Counter[tuple[int, int]]:
    """Return how often each item of each task was done."""
    return Counter(
        (outcome.piece.task, outcome.piece.start + i)
        for item in news
        for outcome in item.outcomes
        for i in range(outcome.n_done)
    )


def all_items(*n_items: int) -> Counter[tuple[int, int]]:
    """Return every item of tasks of these sizes, once."""
    return Counter((task, i) for task, n in enumerate(n_items) for i in range(n))


@pytest.mark.parametrize(("node", "helps"), [("a", True), ("b", False)])
def test_the_pool_tells_which_ranks_share_a_node(node: str, helps: bool) -> None:
    """A rank takes part in the little that is left where starting beside another costs little."""
    work, others = FakeWork(), FakeRanks(1)
    work.may_go_on.set()
    others.nodes = {0: "a", 1: node}
    pool = LocalPool(lambda shared, n_sharing: work, others)
    costs = [TaskCost(10, 1, ((0, 35),), start_beside=0.1)]
    list(pool.run(None, costs, describe, split=True, stop=lambda: False))
    assert bool(others.n_begun[1]) == helps


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("n_others", [0, 1, 3, 20])
def test_every_item_is_done_once(n_others: int, split: bool) -> None:
    """By rank 0 and the others together; counts of progress add up to all items."""
    sizes = (40, 7, 300, 1, 25, 90)
    others = FakeRanks(n_others)
    news = run(make_costs(*sizes), others, split=split)
    assert items_done(news) == all_items(*sizes)
    assert sum(item.n_items for item in news) == sum(sizes)
    assert not any(outcome.error for item in news for outcome in item.outcomes)
    assert {item.rank for item in news} >= {0}
    assert sum(others.n_begun.values()) == sum(len(n.outcomes) for n in news if n.rank)
    if n_others in (1, 3):
        assert all(others.n_begun.values())


def test_rank_0_reports_like_the_others() -> None:
    """With its memory, its working time and its results."""
    news = [item for item in run(make_costs(5, 3), NoOthers()) if item.outcomes]
    assert {item.rank for item in news} == {0}
    assert all(item.private_memory == 17 for item in news)
    assert news[-1].busy_seconds > 0
    assert {outcome.result for item in news for outcome in item.outcomes} == {"by rank 0"}


def test_progress_is_told_while_a_piece_is_done() -> None:
    """The items of a piece that goes on are reported before its outcome."""
    told = threading.Event()

    class LongWork(FakeWork):
        def do(self, description: Any, control: Control) -> tuple[int, Any]:
            done = super().do(description, control)
            assert told.wait(PATIENCE), "nothing was reported"
            return done

    def look(news: list[News]) -> bool:
        if news:
            told.set()
        return False

    work = LongWork()
    work.may_go_on.set()
    news = run(make_costs(5), NoOthers(), work, stop=look)
    assert [(item.n_items, len(item.outcomes)) for item in news] == [(5, 0), (0, 1)]
    assert not news[-1].outcomes[0].error


def test_nothing_to_do() -> None:
    """The loop ends at once, with idle ranks too."""
    assert run([], FakeRanks(3)) == []


def test_an_error_does_not_stop_the_others() -> None:
    """Wherever a task fails it becomes an outcome, once or for each piece in hand."""
    sizes = (50, 30, 60, 20)
    work = FakeWork(failing={0, 2})
    work.may_go_on.set()
    news = run(make_costs(*sizes), FakeRanks(2, failing=(0, 2)), work, split=False)
    outcomes = [outcome for item in news for outcome in item.outcomes]
    assert Counter(outcome.piece.task for outcome in outcomes) == Counter(range(4))
    for outcome in outcomes:
        failed = outcome.piece.task in (0, 2)
        assert outcome.error == (f"task {outcome.piece.task} cannot be read" if failed else "")
    done = {task for task, _ in items_done(news)}
    assert done == {1, 3}


def test_no_more_pieces_of_a_failed_task() -> None:
    """Of hundreds of items only those in hand are tried."""
    others = FakeRanks(3, failing=(0,))
    work = FakeWork(failing={0})
    work.may_go_on.set()
    news = run(make_costs(5000, 10), others, work)
    failed = [o.piece for item in news for o in item.outcomes if o.error]
    assert 1 <= len(failed) <= 4 * 2
    assert items_done(news) == all_items(0, 10)


def test_a_stop_ends_early_with_what_was_done() -> None:
    """What is in hand comes back, done in part; the rest is not handed out."""
    work = FakeWork()
    others = FakeRanks(2, on_stop=work.may_go_on.set)
    news = run(make_costs(*[100] * 50), others, work, stop=lambda news: len(news) >= 3)
    assert others.stopped
    done = items_done(news)
    assert set(done.values()) == {1}
    assert 300 <= sum(done.values()) < 5000
    assert sum(item.n_items for item in news) == sum(done.values())
    own = [outcome for item in news if item.rank == 0 for outcome in item.outcomes]
    # held back until the stop: rank 0 began with none of its items
    assert own
    assert sum(outcome.n_done for outcome in own) == 0
    assert not any(outcome.error for outcome in own)


def test_a_stop_before_anything() -> None:
    """Nothing is handed out."""
    others = FakeRanks(2)
    assert run(make_costs(5, 5, 5), others, stop=lambda news: True) == []
    assert others.stopped


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("dies_at", [{1: 0}, {2: 1}, {1: 0, 2: 0, 3: 0}, {1: 2, 3: 1}])
def test_pieces_of_a_lost_rank_are_done_again(dies_at: dict[int, int], split: bool) -> None:
    """By those that live, rank 0 alone in the end; nothing is done twice."""
    sizes = (40, 30, 20, 50, 60, 10, 70, 15, 25, 35)
    others = FakeRanks(3, dies_at=dies_at)
    news = run(make_costs(*sizes), others, split=split)
    assert items_done(news) == all_items(*sizes)
    assert sum(item.n_items for item in news) == sum(sizes)
    lost = {item.rank: item.lost_pieces for item in news if item.lost}
    assert lost.keys() == dies_at.keys()
    assert all(lost.values()), "each held something"
    last = {rank: max(i for i, item in enumerate(news) if item.rank == rank) for rank in lost}
    assert all(news[last[rank]].lost for rank in lost)


def test_what_a_dead_rank_had_sent_before_is_passed_over() -> None:
    """Its message may be found after the news of its death: its pieces are done again then."""
    late = News(1, [Outcome(Piece(0, 0, 30), 30, "too late")], 30)
    news = run(make_costs(30, 20), FakeRanks(1, dies_at={1: 0}, late=late), split=False)
    assert items_done(news) == all_items(30, 20)
    assert late not in news


def test_two_pieces_are_held_only_while_there_is_plenty() -> None:
    """So that the next tomogram is loaded in time; never where another rank could have it."""
    many = FakeRanks(2)
    run(make_costs(*[10] * 60), many)
    assert many.most_held == 2
    few = FakeRanks(2)
    run(make_costs(*[10] * 6), few, split=False)
    assert few.most_held == 1


@pytest.mark.parametrize("dies_at", [{}, {1: 2}])
def test_a_rank_that_asks_gets_its_next_piece_ahead(dies_at: dict[int, int]) -> None:
    """However little is left; nobody ever holds three, and no item is lost or done twice."""
    others = FakeRanks(2, dies_at=dies_at, asks=True)
    sizes = [10] * 6
    news = run(make_costs(*sizes), others, split=False)
    assert others.most_held == 2
    assert items_done(news) == all_items(*sizes)


def test_rank_0_loads_its_next_piece_ahead() -> None:
    """While its first one waits, the second one is there already."""
    work = FakeWork()

    def stop(news: list[News]) -> bool:
        if work.prefetched:
            work.may_go_on.set()
        return False

    news = run(make_costs(*[10] * 20), NoOthers(), work, stop=stop)
    own = [outcome.piece for item in news for outcome in item.outcomes]
    assert work.prefetched[0] == own[1]
    assert own[0] not in work.prefetched


def test_an_idle_rank_does_not_hold_up_the_owner_of_the_rest() -> None:
    """Without splitting, what is left of a task may be for a rank that is still busy."""
    costs = [TaskCost(1.0, 1.0, ((0, 40),)), TaskCost(1.0, 1.0, ((0, 10), (20, 30)))]
    news = run(costs, FakeRanks(1), split=False)
    ranks = {(outcome.piece.task, item.rank) for item in news for outcome in item.outcomes}
    assert sorted(items_done(news)) == [
        *((0, i) for i in range(40)),
        *((1, i) for i in range(10)),
        *((1, i) for i in range(20, 30)),
    ]
    assert ranks == {(0, 0), (1, 1)}


class SlowWork:
    """Work whose first piece ends only once the second one is being loaded."""

    def __init__(self) -> None:
        self.loading = threading.Event()
        self.threads: list[str] = []

    def do(self, description: Any, control: Control) -> tuple[int, Any]:
        """Wait for the other piece to be loaded."""
        self.threads.append(threading.current_thread().name)
        return 1, self.loading.wait(PATIENCE)

    def prefetch(self, description: Any, control: Control) -> None:
        """Say that it is being loaded, then fail."""
        self.threads.append(threading.current_thread().name)
        if description == "second":
            self.loading.set()
        raise OSError("cannot be read")


def take_all(runner: Runner, n: int) -> list[Outcome]:
    """Return the outcomes of n pieces, in the order in which they came."""
    outcomes: list[Outcome] = []
    for _ in range(100):
        outcomes += runner.take_outcomes(PATIENCE / 100)
        if len(outcomes) >= n:
            return outcomes
    raise AssertionError(f"{len(outcomes)} of {n} outcomes came")


def test_the_next_piece_is_loaded_while_one_is_done() -> None:
    """In a thread of its own; an error in loading is left to the piece itself."""
    work = SlowWork()
    runner = Runner(work, 0)
    pieces = [Piece(task, 0, 1) for task in range(2)]
    for piece, description in zip(pieces, ("first", "second"), strict=True):
        runner.submit(piece, description)
    assert runner.n_held == 2
    outcomes = take_all(runner, 2)
    assert [outcome.piece for outcome in outcomes] == pieces
    assert [outcome.result for outcome in outcomes] == [True, True]
    assert sorted(work.threads) == ["prefetch", "work", "work"]
    assert runner.n_held == 0
    assert runner.busy_seconds > 0


def test_without_a_piece_in_hand_nothing_is_loaded_ahead() -> None:
    """One after the other."""
    work = FakeWork()
    work.may_go_on.set()
    runner = Runner(work, 0)
    for task in range(3):
        runner.submit(Piece(task, 0, 2), describe(Piece(task, 0, 2)))
        assert [outcome.n_done for outcome in take_all(runner, 1)] == [2]
    assert work.prefetched == []
    assert runner.take_outcomes(0.001) == []


def test_after_a_stop_waiting_pieces_come_back_undone() -> None:
    """Without a result, and without an error."""
    work = FakeWork()
    runner = Runner(work, 0)
    for task in range(2):
        runner.submit(Piece(task, 0, 5), describe(Piece(task, 0, 5)))
    runner.control.stop()
    work.may_go_on.set()
    outcomes = take_all(runner, 2)
    assert [(o.n_done, o.error) for o in outcomes] == [(0, ""), (0, "")]
    assert outcomes[1].result is None


class FailingWork(SlowWork):
    """Work that raises what it is given."""

    def do(self, description: Any, control: Control) -> tuple[int, Any]:
        """Fail."""
        raise description


def test_an_error_names_rank_and_host_where_it_is_a_bug() -> None:
    """A message for the user does not need it; the thread goes on with the next piece."""
    runner = Runner(FailingWork(), 3)
    errors = [InputError("TS_01 is cut short"), MemoryError(), ZeroDivisionError("a bug")]
    for task, error in enumerate(errors):
        runner.submit(Piece(task, 0, 1), error)
    told, memory, bug = take_all(runner, 3)
    assert (told.error, told.details) == ("TS_01 is cut short", "")
    assert memory.error.startswith("not enough memory on ")
    assert bug.error == "ZeroDivisionError: a bug"
    assert bug.details.startswith("rank 3 on ")
    assert "Traceback" in bug.details


def test_control_counts_from_any_thread() -> None:
    """No item is lost or counted twice."""
    control = Control()

    def count() -> None:
        for _ in range(500):
            control.count_item()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    total = 0
    while any(thread.is_alive() for thread in threads):
        total += control.take_count()
    assert total + control.take_count() == 2000
    assert control.take_count() == 0


def test_a_rank_asks_shortly_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pace of the piece in hand, loading left out; not while two are held."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(runner_module, "time", clock)
    work = FakeWork()
    runner = Runner(work, 0)
    control = runner.control
    assert not runner.wants_next(ASK_AHEAD)
    runner.submit(Piece(0, 0, 0), describe(Piece(0, 0, 0)))
    assert work.has_begun.wait(PATIENCE)
    control.begin_piece(10)
    for n_done, seconds in enumerate((5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0), 1):
        now[0] = seconds  # the first after loading
        control.count_item()
        assert control.seconds_left() == (10 - n_done if 1 < n_done < 10 else float("inf"))
        assert runner.wants_next(2.5) == (n_done in (8, 9))
    control.begin_piece(2)
    assert not runner.wants_next(100)
    for _ in range(2):
        assert not runner.wants_next(100)
        control.count_item()
    assert control.take_count() == 12
    control.begin_piece(3)
    control.count_item()
    control.count_item()
    assert runner.wants_next(ASK_AHEAD)
    runner.submit(Piece(1, 0, 0), describe(Piece(1, 0, 0)))
    assert not runner.wants_next(ASK_AHEAD)
    work.may_go_on.set()
    assert len(take_all(runner, 2)) == 2


def test_control_stays_stopped() -> None:
    """Once is enough."""
    control = Control()
    assert not control.stopped()
    control.stop()
    control.stop()
    assert control.stopped()
