"""Share out work among simulated ranks, and print how long they take against the best possible.

The scheduler and rank 0's loop are the program's own; only the clock and the ranks are made up:

    python scripts/simulate_schedule.py

prints the tables of docs/scheduling.md in about a minute. What is simulated: a job of `--b 192
--crop 96 --bin 4` on 41 frames, one thread a rank, with the costs that the program itself
estimates; each tomogram then takes 5 % (standard deviation) more or less than estimated. Loading a
tomogram is counted in full, although the program hides most of it behind the extraction of the one
before.
"""

from __future__ import annotations

import heapq
import itertools
import math
import pickle
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from relion_pseudosubtomo.estimate import task_seconds
from relion_pseudosubtomo.model import FrameImage, OpticsGroups, ParticleSet, Task, Tomogram
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.parallel.coordinate import (
    ANSWER_INTERVAL,
    ASK_AHEAD,
    BUSY_INTERVAL,
    LOOK_INTERVAL,
    News,
    coordinate,
)
from relion_pseudosubtomo.parallel.runner import Control
from relion_pseudosubtomo.parallel.schedule import Scheduler, TaskCost
from relion_pseudosubtomo.parallel.work import Outcome, Piece
from relion_pseudosubtomo.worker import TaskInput

SEED = 1
N_FRAMES = 41
IMAGE_SIZE_XY = (3838, 3710)
OPTIONS = JobOptions(output="PseudoSubtomo/job009/", box=192, crop=96, binning=4.0)

#: Standard deviation of a tomogram's real cost, as a share of the estimated one.
NOISE = 0.05

#: Particles of which every message of a piece tells, whatever the piece's size.
PARTICLES_A_MESSAGE = 1500

#: Particles of the pieces whose messages are measured one by one, and how often that is done.
MEASURED_SIZES = (1500, 3000)
N_MEASUREMENTS = 101

#: Tomograms whose images a rank keeps.
N_KEPT_LOADED = 2


@dataclass(frozen=True)
class Case:
    """A set of tomograms, and the numbers of ranks it is tried on.

    Attributes
    ----------
    name : str
    sizes : tuple of int
        Particles of each tomogram.
    ranks : tuple of int
    """

    name: str
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """What a simulated run took.

    Attributes
    ----------
    seconds : float
        From the start to the end of the last piece.
    n_pieces : int
    n_messages : int
        Pieces sent and reports received by rank 0, without reports of mere progress.
    rank_0_seconds : float
        Real processor time of rank 0 for each message.
    """

    seconds: float
    n_pieces: int
    n_messages: int
    rank_0_seconds: float


def make_cases() -> list[Case]:
    """Return what the table shows."""
    return [
        Case("10,000 x 10 to 3,000", draw_sizes(10_000, 10, 3000), (8, 64, 512, 1024)),
        Case("500 x 100", (100,) * 500, (8, 64)),
        Case("5 x 10,000", (10_000,) * 5, (5, 8, 64, 256)),
    ]


def draw_sizes(n_tomograms: int, least: int, most: int) -> tuple[int, ...]:
    """Return log-uniform numbers of particles: as many from 10 to 20 as from 1,000 to 2,000."""
    draw = random.Random(SEED)
    return tuple(round(least * (most / least) ** draw.random()) for _ in range(n_tomograms))


def estimate_costs(sizes: Iterable[int]) -> list[TaskCost]:
    """Return the program's own estimates for tomograms of these numbers of particles."""
    one = make_description(1)
    start, item = task_seconds(OPTIONS, one.tomogram, one.task)
    return [TaskCost(start, item, ((0, size),)) for size in sizes]


def draw_real_costs(costs: Sequence[TaskCost], seed: int = SEED) -> list[TaskCost]:
    """Return costs that differ from the estimated ones by a random share, one a tomogram."""
    draw = random.Random(seed)
    shares = [max(0.5, draw.gauss(1.0, NOISE)) for _ in costs]
    return [
        replace(cost, start=share * cost.start, item=share * cost.item)
        for cost, share in zip(costs, shares, strict=True)
    ]


def whole_cost(cost: TaskCost) -> float:
    """Return the cost of a task on one rank."""
    return cost.start + cost.item * sum(stop - start for start, stop in cost.ranges)


def lower_bound(real: Sequence[TaskCost], n_ranks: int, *, split: bool) -> float:
    """Return a time that no way of sharing out can beat.

    The larger of an equal part of the work, each tomogram loaded once, and the longest piece that
    cannot be divided: a tomogram, or one particle of it where tomograms may be split.
    """
    equal_part = sum(map(whole_cost, real)) / n_ranks
    return max(
        equal_part, *(cost.start + cost.item if split else whole_cost(cost) for cost in real)
    )


def static_seconds(real: Sequence[TaskCost], n_ranks: int) -> float:
    """Return the time of RELION's way: one block of the tomogram list a rank, equal in number."""
    edges = [len(real) * rank // n_ranks for rank in range(n_ranks + 1)]
    return max(sum(map(whole_cost, real[first:stop])) for first, stop in itertools.pairwise(edges))


class Stopwatch:
    """Processor time of this thread while it runs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Go on."""
        self._started = time.thread_time()

    def stop(self) -> None:
        """Pause."""
        if self._started is not None:
            self.seconds += time.thread_time() - self._started
            self._started = None


class SimulatedRanks:
    """All ranks under a simulated clock: rank 0's own work, and the others as rank 0 sees them.

    Parameters
    ----------
    real : sequence of TaskCost
        What each task really takes, in seconds.
    n_ranks : int
    rank_0 : Stopwatch
        Runs while rank 0 computes, and stands still while this simulation does.
    """

    def __init__(self, real: Sequence[TaskCost], n_ranks: int, rank_0: Stopwatch) -> None:
        self.ranks = set(range(1, n_ranks))
        self.patience = ANSWER_INTERVAL
        self.control = Control()
        self.busy_seconds = 0.0
        self.last_end = 0.0
        self.n_pieces = 0
        self.n_messages = 0
        self._real = real
        self._rank_0 = rank_0
        self._now = 0.0
        self._events: list[tuple[float, int, Piece | None]] = []  # without a piece: its end
        self._asking: set[int] = set()
        self._own_end = math.inf
        self._pieces: dict[int, deque[Piece]] = defaultdict(deque)
        self._loaded: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=N_KEPT_LOADED))
        self._outcomes: dict[int, list[Outcome]] = defaultdict(list)

    def submit(self, piece: Piece, description: Any) -> None:
        """Give rank 0 a piece."""
        self._give(0, piece, 0.0)

    def send(self, rank: int, piece: Piece, description: Any) -> None:
        """Give another rank a piece; it looks for messages now and then."""
        pickle.dumps(("piece", (piece, description)), pickle.HIGHEST_PROTOCOL)
        self.n_messages += 1
        self._give(rank, piece, LOOK_INTERVAL)

    def wants_next(self, seconds: float) -> bool:
        """Return whether rank 0 will be done with its last piece within so many seconds."""
        return len(self._pieces[0]) == 1 and self._own_end - self._now <= seconds

    def _give(self, rank: int, piece: Piece, delay: float) -> None:
        self._rank_0.stop()
        self.n_pieces += 1
        self._pieces[rank].append(piece)
        if len(self._pieces[rank]) == 1:
            self._begin(rank, self._now + delay)
        self._rank_0.start()

    def _begin(self, rank: int, now: float) -> None:
        piece = self._pieces[rank][0]
        cost = self._real[piece.task]
        seconds = cost.item * (piece.stop - piece.start)
        if piece.task not in self._loaded[rank]:
            self._loaded[rank].append(piece.task)
            seconds += cost.start
        end = now + seconds
        heapq.heappush(self._events, (end, rank, None))
        if rank == 0:
            self._own_end = end
        elif seconds > ASK_AHEAD:  # as late as a look for messages makes it
            heapq.heappush(self._events, (end - ASK_AHEAD + BUSY_INTERVAL, rank, piece))

    def take_outcomes(self, timeout: float) -> list[Outcome]:
        """Let time pass until some rank is done with a piece; return what rank 0 has done."""
        self._rank_0.stop()
        if self._events:
            # what rank 0 has done wakes it up
            wake = min(self._events[0][0] + timeout, self._own_end)
            self._now = max(self._now, wake)
        while self._events and self._events[0][0] <= self._now:
            now, rank, asks_during = heapq.heappop(self._events)
            if asks_during is None:
                self._finish(rank, now)
            elif list(self._pieces[rank]) == [asks_during]:
                self._asking.add(rank)
        own = self._outcomes.pop(0, [])
        self._rank_0.start()
        return own

    def _finish(self, rank: int, now: float) -> None:
        self.last_end = now
        if rank == 0:
            self._own_end = math.inf
        self._outcomes[rank].append(Outcome(self._pieces[rank].popleft()))
        if self._pieces[rank]:
            self._begin(rank, now)

    def take_news(self) -> list[News]:
        """Return what the other ranks report."""
        self._rank_0.stop()
        news = [News(rank, outcomes) for rank, outcomes in self._outcomes.items()]
        news += [News(rank, [], wants_next=True) for rank in self._asking - self._outcomes.keys()]
        self._asking.clear()
        messages = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in news]
        self.n_messages += len(messages)
        self._outcomes.clear()
        self._rank_0.start()
        return [pickle.loads(message) for message in messages]

    def stop(self) -> None:
        """Never called."""
        raise AssertionError("nobody asks for an end")


def simulate(
    estimated: Sequence[TaskCost],
    real: Sequence[TaskCost],
    n_ranks: int,
    *,
    split: bool,
    describe: Callable[[Piece], Any] = lambda piece: None,
) -> Result:
    """Do all tasks on simulated ranks.

    Parameters
    ----------
    estimated, real : sequence of TaskCost
        What the scheduler believes, and what the ranks need.
    n_ranks : int
    split : bool
        Whether a task may go to several ranks.
    describe : callable
        Returns what is sent with a piece.
    """
    rank_0 = Stopwatch()
    scheduler = Scheduler(estimated, n_ranks, split=split)
    ranks: Any = SimulatedRanks(real, n_ranks, rank_0)
    rank_0.start()
    for _ in coordinate(scheduler, ranks, ranks, describe, lambda: False, lambda: 0):
        pass
    rank_0.stop()
    n_messages = max(1, ranks.n_messages)
    return Result(ranks.last_end, ranks.n_pieces, ranks.n_messages, rank_0.seconds / n_messages)


def make_description(n_particles: int, n_frames: int = N_FRAMES) -> TaskInput:
    """Return what a rank is sent with a piece of so many particles."""
    rows = np.arange(n_particles)
    triple = np.random.default_rng(SEED).normal(size=(n_particles, 3))
    zeros = np.zeros(n_particles, np.int64)
    optics = OpticsGroups({}, np.array([1]), np.array([1.35]), (np.zeros(0),), (np.zeros(0),))
    particle_set = ParticleSet(
        "particles.star",
        {},
        {},
        optics,
        tomogram=zeros,
        names=np.array([f"TS_01/{row + 1}" for row in rows], dtype=object),
        coordinate=triple,
        offset=triple + 1,
        subtomogram_angles=triple + 2,
        angles=triple + 3,
        optics_row=zeros,
        half=zeros,
    )
    stems = tuple(f"Subtomograms/TS_01/{row + 1}" for row in rows)
    task = Task(0, 0, 0, rows, stems, np.ones((n_particles, n_frames), dtype=bool))
    used = task.visible.any(axis=0)
    particles = particle_set.take_numbers(rows)
    return TaskInput(task, make_tomogram(n_frames), particles, None, used, "0" * 64, 1, len(task))


def make_tomogram(n_frames: int) -> Tomogram:
    """Return a tomogram of images of the usual size."""
    of_frame = np.random.default_rng(SEED).normal(size=(7, n_frames))
    paths = (f"MotionCorr/job002/frames/TS_01_{frame:03}_0.0_mrc.mrc" for frame in range(n_frames))
    return Tomogram(
        "TS_01",
        size_xyz=np.array([*IMAGE_SIZE_XY, 1200.0]),
        pixel_size=1.35,
        hand=-1.0,
        voltage=300.0,
        spherical_aberration=2.7,
        amplitude_contrast=0.07,
        optics_group_name="optics1",
        defocus_slope=1.0,
        bfactor_per_dose=0.0,
        projections=np.random.default_rng(SEED).normal(size=(n_frames, 4, 4)),
        pre_exposure=of_frame[0],
        defocus_u=of_frame[1],
        defocus_v=of_frame[2],
        defocus_angle=of_frame[3],
        ctf_scale=of_frame[4],
        ctf_bfactor=of_frame[5],
        phase_shift=of_frame[6],
        frames=tuple(FrameImage(path, 0) for path in paths),
        image_size_xy=IMAGE_SIZE_XY,
    )


def make_table(cases: Iterable[Case]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    columns = (
        "tomograms x particles",
        "ranks",
        "tomograms are",
        "lower bound, s",
        "time / bound",
        "RELION's way / bound",
        "pieces",
        "messages",
        "rank 0, ms a message",
    )
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    whole = make_description(PARTICLES_A_MESSAGE)
    for case in cases:
        estimated = estimate_costs(case.sizes)
        real = draw_real_costs(estimated)
        for n_ranks in case.ranks:
            static = static_seconds(real, n_ranks)
            for split in (True, False):
                result = simulate(
                    estimated,
                    real,
                    n_ranks,
                    split=split,
                    describe=lambda piece: whole.part(0, PARTICLES_A_MESSAGE),
                )
                bound = lower_bound(real, n_ranks, split=split)
                cells = (
                    case.name,
                    f"{n_ranks:,}",
                    "split" if split else "whole",
                    f"{bound:,.0f}",
                    f"{result.seconds / bound:.3f}",
                    f"{static / bound:.2f}",
                    f"{result.n_pieces:,}",
                    f"{result.n_messages:,}",
                    f"{1e3 * result.rank_0_seconds:.2f}",
                )
                yield f"| {' | '.join(cells)} |"


def make_message_table() -> Iterator[str]:
    """Yield the lines of a Markdown table: size of a message, and the time to make and read it."""
    yield "| particles x frames in a message | kB | ms to pack | ms to unpack |"
    yield "|---|---|---|---|"
    for n_particles in MEASURED_SIZES:
        description = make_description(n_particles)
        message = pickle.dumps(description, pickle.HIGHEST_PROTOCOL)
        pack = measure(lambda given=description: pickle.dumps(given, pickle.HIGHEST_PROTOCOL))
        unpack = measure(lambda packed=message: pickle.loads(packed))
        numbers = f"{len(message) / 1e3:.0f} | {1e3 * pack:.2f} | {1e3 * unpack:.2f}"
        yield f"| {n_particles:,} x {N_FRAMES} | {numbers} |"


def measure(action: Callable[[], object]) -> float:
    """Return the median processor time of an action in seconds."""
    times = []
    for _ in range(N_MEASUREMENTS):
        watch = Stopwatch()
        watch.start()
        action()
        watch.stop()
        times.append(watch.seconds)
    return statistics.median(times)


def main() -> None:
    """Print both tables."""
    for line in itertools.chain(make_table(make_cases()), [""], make_message_table()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
