"""Who does what next: every item once, costliest first, ranges only where ranks would idle."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relion_pseudosubtomo.parallel.schedule import (
    GUIDED_SHARE,
    LEAST_HELP_PER_START,
    LEAST_REST,
    LEAST_WORK_AT_HAND,
    LEAST_WORK_PER_START,
    Scheduler,
    TaskCost,
)
from relion_pseudosubtomo.parallel.work import Piece

Items = Counter[tuple[int, int]]

#: Times a rank asks or is done before a test gives up: far more than any of them needs.
MOST_STEPS = 10_000


def steps_while(condition: Callable[[], object]) -> Iterator[int]:
    """Yield 0, 1, ... as long as a condition holds; fail instead of going on for ever."""
    for step in itertools.takewhile(lambda _: condition(), itertools.count()):
        assert step < MOST_STEPS, "this does not end"
        yield step


def items_of(pieces: Iterable[Piece]) -> Items:
    """Return how often each item of each task is in some pieces."""
    return Counter(
        (piece.task, item) for piece in pieces for item in range(piece.start, piece.stop)
    )


def items_to_do(costs: Sequence[TaskCost]) -> Items:
    """Return all items that are to be done, each once."""
    return items_of(
        Piece(task, start, stop) for task, cost in enumerate(costs) for start, stop in cost.ranges
    )


def whole(start: float, item: float, n_items: int) -> TaskCost:
    """Return the cost of a task of which nothing is done."""
    return TaskCost(start, item, ((0, n_items),))


def cost_of(cost: TaskCost, n_items: int) -> float:
    """Return the cost of some items of a task on a rank that has not loaded it."""
    return cost.start + cost.item * n_items


def hand_out_all(scheduler: Scheduler, n_ranks: int) -> list[tuple[int, Piece]]:
    """Let the ranks ask in turn, each done at once, until nothing is left; return who got what."""
    handed: list[tuple[int, Piece]] = []
    for _ in steps_while(lambda: scheduler.has_waiting):
        for rank in range(n_ranks):
            piece = scheduler.next_piece(rank)
            if piece is not None:
                handed.append((rank, piece))
                scheduler.finish(rank, piece)
    return handed


@st.composite
def missing_ranges(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Draw what is left to do of a task: ascending ranges, some of them empty or adjacent."""
    edges = sorted(draw(st.lists(st.integers(0, 300), max_size=6)))
    return tuple(zip(edges[::2], edges[1::2], strict=False))


@st.composite
def tasks(draw: st.DrawFn) -> list[TaskCost]:
    """Draw tasks, cheap and dear, some done in part or whole."""
    cost = st.floats(0, 10, allow_subnormal=False)
    return draw(
        st.lists(
            st.builds(
                TaskCost,
                start=cost,
                item=cost,
                ranges=missing_ranges(),
                start_beside=st.none() | cost,
            ),
            max_size=12,
        )
    )


def three_nodes(n_ranks: int) -> dict[int, str]:
    """Return the nodes of ranks that are dealt out to three of them."""
    return {rank: f"node{rank % 3}" for rank in range(n_ranks)}


@given(costs=tasks(), n_ranks=st.integers(1, 20), split=st.booleans(), seed=st.integers(0, 999))
@settings(deadline=None, derandomize=True)
def test_every_item_is_handed_out_once(
    costs: list[TaskCost], n_ranks: int, split: bool, seed: int
) -> None:
    """Whoever asks, and whenever ranks are done; without splitting a task stays with one rank."""
    draw = random.Random(seed)
    scheduler = Scheduler(costs, n_ranks, split=split, nodes=three_nodes(n_ranks))
    handed: list[tuple[int, Piece]] = []
    held: list[tuple[int, Piece]] = []
    for _ in steps_while(lambda: scheduler.has_waiting):
        rank = draw.randrange(n_ranks)
        piece = scheduler.next_piece(rank)
        if piece is not None:
            assert piece.start < piece.stop
            handed.append((rank, piece))
            held.append((rank, piece))
        while held and draw.random() < 0.5:
            scheduler.finish(*held.pop(draw.randrange(len(held))))
    assert items_of(piece for _, piece in handed) == items_to_do(costs)
    assert all(scheduler.next_piece(rank) is None for rank in range(n_ranks))
    if not split:
        ranks = {(piece.task, rank) for rank, piece in handed}
        assert len(ranks) == len({task for task, _ in ranks})
        n_ranges = sum(start < stop for cost in costs for start, stop in cost.ranges)
        assert len(handed) == n_ranges


@given(costs=tasks(), n_ranks=st.integers(2, 12), split=st.booleans(), seed=st.integers(0, 999))
@settings(deadline=None, derandomize=True)
def test_what_a_lost_rank_held_is_handed_out_again_once(
    costs: list[TaskCost], n_ranks: int, split: bool, seed: int
) -> None:
    """Any ranks but one may die at any time: in the end every item is finished by a living rank."""
    draw = random.Random(seed)
    scheduler = Scheduler(costs, n_ranks, split=split, nodes=three_nodes(n_ranks))
    living = list(range(n_ranks))
    held: dict[int, list[Piece]] = {rank: [] for rank in living}
    finished: list[Piece] = []
    for _ in steps_while(lambda: scheduler.has_waiting or any(held.values())):
        rank = draw.choice(living)
        event = draw.random()
        if event < 0.1 and len(living) > 1:
            living.remove(rank)
            assert scheduler.lose_rank(rank) == held.pop(rank)
        elif event < 0.5 and held[rank]:
            piece = held[rank].pop(draw.randrange(len(held[rank])))
            scheduler.finish(rank, piece)
            finished.append(piece)
        else:
            given_out = scheduler.next_piece(rank)
            held[rank] += [given_out] if given_out else []
    assert items_of(finished) == items_to_do(costs)


def test_a_rank_is_lost_between_two_ranges_of_its_task() -> None:
    """Without splitting the rest is its own: it must not be forgotten with it."""
    scheduler = Scheduler([TaskCost(1, 1, ((0, 2), (5, 7)))], 2, split=False)
    first = scheduler.next_piece(1)
    assert first == Piece(0, 0, 2)
    assert scheduler.next_piece(0) is None
    scheduler.finish(1, first)
    assert scheduler.has_waiting
    assert scheduler.lose_rank(1) == []
    assert scheduler.next_piece(0) == Piece(0, 5, 7)
    assert not scheduler.has_waiting


def test_a_lost_rank_that_never_had_work() -> None:
    """Nothing comes back."""
    assert Scheduler([whole(1, 1, 5)], 3, split=True).lose_rank(2) == []


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30), split=st.booleans())
@settings(deadline=None, derandomize=True)
def test_costliest_first(sizes: list[int], split: bool) -> None:
    """Ranks that have no task yet get the one of which most is left."""
    costs = [whole(2, 1, size) for size in sizes]
    scheduler = Scheduler(costs, len(sizes), split=split)
    left = dict(enumerate(sizes))
    for rank in range(len(sizes)):
        piece = scheduler.next_piece(rank)
        if piece is None:
            break
        assert left[piece.task] == max(left.values())
        left[piece.task] -= piece.stop - piece.start
        if not left[piece.task]:
            del left[piece.task]


def test_cost_counts_items_and_start() -> None:
    """Few dear items, or a dear start, may outweigh many cheap ones."""
    costs = [whole(1, 1, 50), whole(1, 10, 20), whole(100, 1, 10)]
    scheduler = Scheduler(costs, 3, split=False)
    assert [scheduler.next_piece(rank).task for rank in range(3)] == [1, 2, 0]  # type: ignore[union-attr]


def test_a_rank_stays_with_its_task() -> None:
    """It has the images: others' tasks wait, though more is left of them."""
    scheduler = Scheduler([whole(1, 1, 1000), whole(1, 1, 990)], 4, split=True)
    pieces = [scheduler.next_piece(rank) for rank in (0, 1, 0, 0, 1)]
    assert [piece.task for piece in pieces if piece] == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("n_ranks", [1, 2, 7, 64])
def test_no_split_gives_whole_tasks(n_ranks: int) -> None:
    """However large a task, and however many ranks are idle."""
    costs = [whole(1, 1, 100_000), whole(1, 1, 10), whole(0.1, 1, 5000)]
    handed = hand_out_all(Scheduler(costs, n_ranks, split=False), n_ranks)
    assert sorted((p.task, p.start, p.stop) for _, p in handed) == [
        (0, 0, 100_000),
        (1, 0, 10),
        (2, 0, 5000),
    ]


def test_one_rank_gets_whole_tasks() -> None:
    """There is nobody to share with, however the costs are rounded on the way."""
    draw = random.Random(5)
    costs = [
        whole(draw.uniform(0.05, 3), draw.uniform(0.01, 0.1), draw.randint(1, 3000))
        for _ in range(2000)
    ]
    assert len(hand_out_all(Scheduler(costs, 1, split=True), 1)) == len(costs)


def test_survivors_of_lost_ranks_count() -> None:
    """The last rank gets what the dead have left in one piece."""
    scheduler = Scheduler([whole(1, 1, 1000)], 2, split=True)
    piece = scheduler.next_piece(1)
    assert piece is not None
    assert piece.stop < 1000
    scheduler.lose_rank(1)
    assert hand_out_all(scheduler, 1) == [
        (0, Piece(0, 0, piece.stop)),
        (0, Piece(0, piece.stop, 1000)),
    ]


@given(
    n_ranks=st.integers(2, 40),
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=60),
    start=st.floats(0.1, 20),
)
@settings(deadline=None, derandomize=True)
def test_no_split_where_equal_parts_suffice(n_ranks: int, sizes: list[int], start: float) -> None:
    """A task is divided only where it is more than most of an equal part of what is left.

    Or where a rank helps others that have begun it. And never into ranges that are not worth a
    message, or another loading, but for the last one.
    """
    costs = [whole(start, 1.0, size) for size in sizes]
    scheduler = Scheduler(costs, n_ranks, split=True)
    left = dict(enumerate(sizes))
    last: dict[int, int] = {}
    most = GUIDED_SHARE * (1 + LEAST_REST)
    for rank, piece in enumerate_pieces(scheduler, n_ranks):
        begun = set(last.values())
        equal_part = sum(n + start * (task not in begun) for task, n in left.items()) / n_ranks
        n_items = piece.stop - piece.start
        is_loaded = last.pop(rank, None) == piece.task
        n_at_work = sum(task == piece.task for task in last.values())
        helps = n_at_work and not is_loaded
        if n_items < left[piece.task]:
            assert helps or left[piece.task] > most * equal_part - 1, rank
            least = LEAST_WORK_AT_HAND if is_loaded else LEAST_WORK_PER_START
            assert n_items >= (LEAST_HELP_PER_START if helps else least) * start - 1
        if helps:  # it ends with the others
            fair = (left[piece.task] + start) / (n_at_work + 1) - start
            assert n_items <= max(1, fair + 0.5)
        last[rank] = piece.task
        left[piece.task] -= n_items
        if not left[piece.task]:
            del left[piece.task]


def enumerate_pieces(scheduler: Scheduler, n_ranks: int) -> Iterable[tuple[int, Piece]]:
    """Yield rank and piece, the ranks asking in turn."""
    for step in steps_while(lambda: scheduler.has_waiting):
        piece = scheduler.next_piece(step % n_ranks)
        if piece is not None:
            yield step % n_ranks, piece


def test_many_tasks_stay_whole() -> None:
    """Thousands of tomograms on some ranks are never divided before the end."""
    draw = random.Random(2)
    sizes = [draw.randint(10, 3000) for _ in range(2000)]
    handed = hand_out_all(Scheduler([whole(16, 1, n) for n in sizes], 16, split=True), 16)
    n_pieces = Counter(piece.task for _, piece in handed)
    assert all(n_pieces[task] == 1 for task, size in enumerate(sizes) if size > 100)


def test_pieces_shrink_near_the_end() -> None:
    """From half an equal part of what is left down to what is worth a message."""
    n_ranks, start, n_items = 8, 10.0, 20_000
    handed = hand_out_all(Scheduler([whole(start, 1, n_items)], n_ranks, split=True), n_ranks)
    sizes = [piece.stop - piece.start for _, piece in handed]
    assert sizes[0] == round(GUIDED_SHARE * (n_items + start) / n_ranks)
    least = LEAST_WORK_AT_HAND * start
    left = n_items - sizes[0]
    for size in sizes[1:-1]:
        assert size == pytest.approx(max(GUIDED_SHARE * left / n_ranks, least), abs=1)
        left -= size
    assert sizes[-2] == round(least)
    assert sizes[-1] <= (1 + LEAST_REST) * least
    assert all(after <= before for before, after in itertools.pairwise(sizes[:-1]))


def test_one_more_rank_helps_as_much_as_it_gains() -> None:
    """It takes so much that it ends, loading included, with those that are at work already."""
    scheduler = Scheduler([whole(10, 1, 100)], 3, split=True)
    first = scheduler.next_piece(0)
    assert first is not None
    left = 100 - first.stop
    helping = scheduler.next_piece(1)
    assert helping is not None
    n_items = helping.stop - helping.start
    assert n_items == round(min(LEAST_WORK_PER_START * 10, (left + 10) / 2 - 10))
    scheduler = Scheduler([whole(10, 1, 55)], 2, split=True)
    first = scheduler.next_piece(0)
    assert first == Piece(0, 0, 20)
    assert scheduler.next_piece(1) == Piece(0, 20, 32)  # then 10 + 12 are about the 23 left


def test_a_small_rest_is_left_to_who_is_at_work() -> None:
    """An idle rank does not load a task for less than half a loading, unless a rank is lost."""
    scheduler = Scheduler([whole(10, 1, 40)], 3, split=True)
    assert scheduler.next_piece(0) == Piece(0, 0, 20)
    assert scheduler.next_piece(1) == Piece(0, 20, 25)
    assert scheduler.next_piece(2) is None
    assert not scheduler.worth_holding_two()
    assert scheduler.next_piece(0) == Piece(0, 25, 27)
    assert scheduler.lose_rank(1) == [Piece(0, 20, 25)]
    assert scheduler.next_piece(2) is None
    scheduler.lose_rank(0)
    assert items_of(piece for _, piece in hand_out_all(scheduler, 3)) == items_to_do(
        [TaskCost(1, 1, ((0, 40),))]
    )


def test_ranks_of_a_node_help_each_other_with_less() -> None:
    """The images are in the node's page cache; a rank of another node would read them again."""
    nodes = {0: "a", 1: "b", 2: "a"}
    scheduler = Scheduler([TaskCost(10, 1, ((0, 40),), 1)], 3, split=True, nodes=nodes)
    assert scheduler.next_piece(0) == Piece(0, 0, 20)
    assert scheduler.next_piece(1) == Piece(0, 20, 25)
    assert scheduler.next_piece(0) == Piece(0, 25, 27)
    assert scheduler.next_piece(2) == Piece(0, 27, 31)  # with two others: (13 - 2) / 3
    scheduler = Scheduler([TaskCost(10, 1, ((0, 50),), 1)], 3, split=True, nodes=nodes)
    assert scheduler.next_piece(0) == Piece(0, 0, 20)
    assert scheduler.next_piece(0) == Piece(0, 20, 25)
    assert scheduler.next_piece(0) == Piece(0, 25, 29)
    assert scheduler.next_piece(2) == Piece(0, 29, 39)  # (21 - 1) / 2
    assert scheduler.next_piece(1) is None
    assert scheduler.next_piece(0) == Piece(0, 39, 41)


def test_without_splitting_ranks_of_a_node_do_not_help() -> None:
    """A task belongs to one rank, whatever is left of it."""
    cost = TaskCost(1, 1, ((0, 40), (50, 60)), 0.1)
    scheduler = Scheduler([cost], 2, split=False, nodes={0: "a", 1: "a"})
    assert scheduler.next_piece(0) == Piece(0, 0, 40)
    assert scheduler.next_piece(1) is None


def test_a_task_that_nobody_has_begun_goes_before_a_rest() -> None:
    """However little it is, and however much more is left of the other one."""
    scheduler = Scheduler([whole(10, 1, 40), whole(1, 1, 1)], 3, split=True)
    assert [scheduler.next_piece(rank).task for rank in (0, 1)] == [0, 0]  # type: ignore[union-attr]
    assert scheduler.next_piece(2) == Piece(1, 0, 1)


def test_nothing_more_of_a_failed_task() -> None:
    """Neither what is waiting, nor what a lost rank held of it; the other tasks go on."""
    costs = [whole(1, 1, 1000), whole(1, 1, 400)]
    scheduler = Scheduler(costs, 3, split=True)
    failed, held = scheduler.next_piece(1), scheduler.next_piece(2)
    assert failed is not None
    assert held is not None
    assert failed.task == held.task == 0
    scheduler.finish(1, failed)
    scheduler.drop_task(0)
    assert scheduler.lose_rank(2) == [held]
    assert items_of(piece for _, piece in hand_out_all(scheduler, 2)) == items_to_do(
        [TaskCost(1, 1, ()), costs[1]]
    )


def test_a_failed_task_of_which_nothing_waits() -> None:
    """Both of its pieces may fail."""
    scheduler = Scheduler([whole(1, 1, 10)], 1, split=True)
    assert scheduler.next_piece(0) is not None
    scheduler.drop_task(0)
    scheduler.drop_task(0)
    assert not scheduler.has_waiting
    assert scheduler.next_piece(0) is None


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("n_ranks", [1, 4, 50])
def test_two_are_held_only_while_plenty_is_left(n_ranks: int, split: bool) -> None:
    """Never again once it ended; in the end every rank can get a piece that nobody holds."""
    draw = random.Random(n_ranks)
    costs = [whole(1, 0.1, draw.randint(10, 1000)) for _ in range(20 * n_ranks)]
    scheduler = Scheduler(costs, n_ranks, split=split)
    left = sum(cost_of(cost, cost.ranges[0][1]) for cost in costs)
    answers = []
    for _, piece in enumerate_pieces(scheduler, n_ranks):
        left -= cost_of(costs[piece.task], piece.stop - piece.start)
        answers.append(scheduler.worth_holding_two())
        if answers[-1]:
            assert left / n_ranks > 1.0  # more than the least costly task, for every rank
    assert answers[0]
    assert not answers[-1]
    n_true = sum(answers)
    assert n_true > len(answers) / 2


@pytest.mark.parametrize("n_tasks", [0, 1, 2, 7])
def test_a_single_rank_holds_two_as_long_as_there_are(n_tasks: int) -> None:
    """Nobody else could have them."""
    scheduler = Scheduler([whole(1, 1, 1000)] * n_tasks, 1, split=True)
    for _ in steps_while(lambda: scheduler.has_waiting):
        assert scheduler.worth_holding_two()
        assert scheduler.next_piece(0) is not None
    assert not scheduler.worth_holding_two()


@pytest.mark.parametrize(("n_tasks", "n_ranks"), [(0, 3), (1, 2), (3, 3), (5, 3), (5, 64)])
def test_two_are_never_held_of_a_few_tasks(n_tasks: int, n_ranks: int) -> None:
    """The next one to be free is to have it."""
    scheduler = Scheduler([whole(1, 1, 1000)] * n_tasks, n_ranks, split=False)
    for _ in steps_while(lambda: scheduler.has_waiting):
        assert not scheduler.worth_holding_two()
        scheduler.next_piece(0)
    assert not scheduler.worth_holding_two()
