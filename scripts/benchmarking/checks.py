"""What the program is required to show, and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .configurations import (
    CONFIGURATIONS,
    TWO_RANKS,
    TWO_THREADS,
    TWO_THREADS_WRITTEN,
)
from .session import Key, Session, floor_way

#: Times the floor: user CPU a particle on 2 threads without writing.
FLOOR_LIMITS = {"A": 1.5, "B": 1.5, "D": 1.7, "E": 1.7}
WALL_FLOOR_LIMIT = 1.7
EFFICIENCY_LIMIT = 0.93
START_TO_EXIT_SECONDS = 1.5
PRIVATE_GB = 0.25
RSS_BEYOND_IMAGES_GB = 0.3
DOSE_LIMIT = 1 / 2.2
FLOAT16_LIMIT = 1.15
PREBIN_LIMIT = 0.65
AVERAGE_LIMIT = 1.2
ZARR_LIMIT = 6.0
ZARR = "zarr-particle-tools 1.0.1"


@dataclass(frozen=True)
class Check:
    """One requirement.

    Attributes
    ----------
    text : str
    value, limit : float
        Found, and allowed.
    at_least : bool
        Whether the limit is the smallest value, not the largest.
    """

    text: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it is met."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def limit_text(self) -> str:
        """The limit as in a table."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:.3g}"

    @property
    def verdict(self) -> str:
        """Whether it is met, in a word."""
        return "met" if self.passed else "NOT MET"


def check_all(session: Session) -> list[Check]:
    """Return every requirement for which there are measurements."""
    return [
        *_check_floor(session),
        *_check_efficiency(session),
        *_check_start(session),
        *_check_memory(session),
        *_check_ratios(session),
        *_check_zarr(session),
    ]


def _check_floor(session: Session) -> Iterator[Check]:
    for name, limit in FLOOR_LIMITS.items():
        slope = session.slope(name, TWO_THREADS.name)
        floor = session.median(Key(name, floor_way(2)))
        if slope is not None and floor is not None:
            yield Check(f"{name}: user CPU a particle / floor", slope.user / floor.user, limit)
            ratio = slope.wall / floor.wall
            yield Check(f"{name}: wall / floor's wall, 2 threads", ratio, WALL_FLOOR_LIMIT)


def _check_efficiency(session: Session) -> Iterator[Check]:
    for name in CONFIGURATIONS:
        for way in (TWO_THREADS, TWO_RANKS):
            value = session.efficiency(name, way)
            if value is not None:
                text = f"{name}: efficiency of {way.name}"
                yield Check(text, value, EFFICIENCY_LIMIT, at_least=True)


def _check_start(session: Session) -> Iterator[Check]:
    """C: a small job, written, against the cost of its particles."""
    slope = session.slope("A", TWO_THREADS_WRITTEN.name)
    for key in session.runs:
        usage = session.median(key)
        if key.section == "C" and slope is not None and usage is not None:
            beyond = usage.wall - key.particles * slope.wall
            text = f"C: seconds beyond A's slope x {key.particles}"
            yield Check(text, beyond, START_TO_EXIT_SECONDS)


def _check_memory(session: Session) -> Iterator[Check]:
    slope = session.slope("A", TWO_THREADS.name)
    if slope is not None:
        images = session.project().image_bytes
        yield Check("A: private GB, 2 threads", slope.private / 1e9, PRIVATE_GB)
        beyond = (slope.rss - images) / 1e9
        yield Check("A: RSS beyond the mapped images, GB", beyond, RSS_BEYOND_IMAGES_GB)


def _check_ratios(session: Session) -> Iterator[Check]:
    for name, other, limit in (
        ("F", "F all", DOSE_LIMIT),
        ("G", "A", FLOAT16_LIMIT),
        ("P", "A", PREBIN_LIMIT),
        ("V", "A", AVERAGE_LIMIT),
    ):
        slope = session.slope(name, TWO_THREADS.name)
        reference = session.slope(other, TWO_THREADS.name)
        if slope is not None and reference is not None:
            text = f"{name}: user CPU a particle / {other}'s"
            yield Check(text, slope.user / reference.user, limit)


def _check_zarr(session: Session) -> Iterator[Check]:
    ours, theirs = session.slope("B", TWO_THREADS_WRITTEN.name), session.slope("B", ZARR)
    if ours is not None and theirs is not None:
        for name, ratio in (
            ("wall", theirs.wall / ours.wall),
            ("CPU", (theirs.user + theirs.system) / (ours.user + ours.system)),
        ):
            yield Check(f"B: {name}, times as fast as {ZARR}", ratio, ZARR_LIMIT, at_least=True)
