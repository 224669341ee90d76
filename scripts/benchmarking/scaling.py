"""How well two threads and two ranks share the machine, told apart from how fast it happens to be.

A core of a shared machine has two speeds: another tenant's work on the same physical core takes up
to two fifths of it, for seconds or minutes. So a few whole runs say little about efficiency. Here
every particle is timed by itself, many times, and its fastest times are compared: alone, and while
all threads work. What the program's own threads take from each other - cache, memory, locks - is
there each time. A computation in registers, timed in the same way, shows what the machine can do.
Beside it stands the efficiency of the same whole runs, the end of the job included, with its
standard error.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from .checks import EFFICIENCY_LIMIT, Check
from .configurations import CONFIGURATIONS, TWO_RANKS, TWO_THREADS, Way
from .particle_clock import COLUMNS, LAPS, look
from .processes import Usage
from .session import Key, Session

PARTICLE_CLOCK = (sys.executable, str(Path(__file__).with_name("particle_clock.py")))
JOBS = ("A", "B", "D", "E")

#: What the machine itself can do: rounds of SHA-256, some 20 ms, which touch no memory.
CONTROL = "rounds of SHA-256"
CONTROL_ROUNDS, N_CONTROL = 80_000, 50

#: Part of a particle's time in which the others have to be busy: all but their bookkeeping.
ALL_BUSY = 0.98


class Scaling:
    """The laps of all runs; see `particle_clock`.

    Parameters
    ----------
    session : Session
        Measures; single particles are those of the larger number.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._laps: dict[tuple[str, Way], list[pd.DataFrame]] = {}

    def add(self) -> None:
        """Let all runs wait."""
        for name in JOBS:
            job, project = CONFIGURATIONS[name], self._session.project()
            few, many = self._session.settings.particles_of(job)
            for n, way in itertools.product((few, many), _ways()):
                self._session.add_job(
                    job,
                    way,
                    project,
                    max(1, n // way.tomograms),
                    way.tomograms,
                    section=_section(name),
                    program=PARTICLE_CLOCK,
                    on_done=functools.partial(self._read, name, way) if n == many else None,
                )
        for way in (TWO_THREADS.alone, TWO_THREADS):
            key = Key(_section(CONTROL), way.name, N_CONTROL * way.threads)
            self._session.add(key, functools.partial(self._run_control, way))

    def _keep(self, name: str, way: Way, laps: pd.DataFrame) -> None:
        self._laps.setdefault((name, way), []).append(while_all_work(laps, way.ranks * way.threads))

    def _read(self, name: str, way: Way, folder: Path) -> None:
        rows = np.concatenate([np.load(path) for path in folder.glob(LAPS)])
        self._keep(name, way, pd.DataFrame(rows, columns=COLUMNS))

    def _run_control(self, way: Way) -> Usage:
        with ThreadPoolExecutor(way.threads) as pool:
            laps = list(pool.map(lambda _: _run_rounds(), range(way.threads)))
        frame = pd.DataFrame(np.concatenate(laps), columns=COLUMNS)
        self._keep(CONTROL, way, frame)
        wall = frame.wall_to.max() - frame.wall_from.min()
        return Usage(wall, float((frame.cpu_to - frame.cpu_from).sum()))

    def _compare(self) -> Iterator[tuple[str, Way, Comparison]]:
        for (name, way), together in self._laps.items():
            alone = self._laps.get((name, way.alone))
            if way == way.alone or alone is None:
                continue
            found = Comparison(pd.concat(alone), pd.concat(together))
            if found.n_particles:
                yield name, way, found
            else:
                self._session.note(f"scaling: {name}, {way.name}: too few particles to compare")

    def check(self) -> list[Check]:
        """Return what is required of the program."""
        checks = []
        for name, way, found in self._compare():
            if name == CONTROL:
                continue
            whole = self._session.efficiency(_section(name), way)
            by = {"fastest times of each particle": found.fastest, "whole runs": whole}
            checks += [
                Check(f"{name}: efficiency of {way.name}, {what}", value, EFFICIENCY_LIMIT, True)
                for what, value in by.items()
                if value is not None
            ]
        return checks

    def lines(self) -> Iterator[str]:
        """Yield a table of efficiencies, if there are any."""
        if not self._laps:
            return
        yield (
            f"Efficiency by single particles, and by whole runs, {self._session.settings.repeats} "
            "of each"
        )
        yield ""
        yield (
            "| job | run as | particles | fastest times | all times | waiting "
            "| whole runs, medians | means and their error |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        for name, way, found in self._compare():
            whole = self._session.efficiency(_section(name), way)
            pairs = self._session.paired_efficiency(_section(name), way)
            yield (
                f"| {name} | {way.name} | {found.n_particles} | {found.fastest:.3f} "
                f"| {found.mean:.3f} | {found.waiting:.1%} "
                f"| {'-' if whole is None else f'{whole:.3f}'} "
                f"| {'-' if pairs is None else f'{pairs[0]:.3f} ± {pairs[1]:.3f}'} |"
            )
        yield ""


class Comparison:
    """Particles by one thread alone, and while others work.

    Parameters
    ----------
    alone, together : DataFrame
        Laps of all runs.

    Attributes
    ----------
    n_particles : int
        That are in both; without any there is no other figure.
    fastest, mean : float
        Efficiency by the fastest processor times of each particle, or by their means; less what
        the threads waited, in the mean of all runs.
    waiting : float
        Share of the wall time in which a thread did not run, beyond that of one alone.
    """

    def __init__(self, alone: pd.DataFrame, together: pd.DataFrame) -> None:
        one, two = _times(alone), _times(together)
        both = one.index.intersection(two.index)
        self.n_particles = len(both)
        one, two = one.loc[both], two.loc[both]
        if self.n_particles:
            running = _running(together) / _running(alone)
            self.waiting = 1 - running
            self.fastest = running * float(one["min"].sum() / two["min"].sum())
            self.mean = running * float(one["mean"].sum() / two["mean"].sum())


def _times(laps: pd.DataFrame) -> pd.DataFrame:
    cpu = (laps.cpu_to - laps.cpu_from).groupby([laps.task, laps.particle])
    return cpu.agg(["min", "mean"])


def _running(laps: pd.DataFrame) -> float:
    return float((laps.cpu_to - laps.cpu_from).sum() / (laps.wall_to - laps.wall_from).sum())


def while_all_work(laps: pd.DataFrame, n_workers: int) -> pd.DataFrame:
    """Return the laps during which so many workers were busy all the time.

    The first of each worker is left out: it may pay for plans and scratch arrays. A tomogram may be
    done in several tasks, each with threads of its own.
    """
    start, end, worker = (laps[name].to_numpy() for name in ("wall_from", "wall_to", "worker"))
    shared = np.minimum(end[:, None], end) - np.maximum(start[:, None], start)
    others = worker[:, None] != worker
    busy = np.where(others, shared.clip(0), 0).sum(axis=1) / (end - start)
    is_first = laps.groupby("worker").wall_from.transform("min") == laps.wall_from
    return laps[(busy >= ALL_BUSY * (n_workers - 1)) & ~is_first]


def _section(name: str) -> str:
    return f"scaling: {name}"


def _ways() -> list[Way]:
    return [TWO_THREADS.alone, TWO_THREADS, TWO_RANKS.alone, TWO_RANKS]


def _run_rounds() -> np.ndarray:
    """Return the laps of one thread; outside the interpreter's lock, as the program's work is."""
    rows, worker = [], threading.get_native_id()
    before = look()
    for i in range(N_CONTROL):
        hashlib.pbkdf2_hmac("sha256", b"", b"", CONTROL_ROUNDS)
        after = look()
        rows.append((worker, 0, i, *before, *after))
        before = after
    return np.array(rows)
