"""A piece is done in chunks, each begun while the one before is being done."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_models import make_options, make_tomogram

from relion_pseudosubtomo import task_work
from relion_pseudosubtomo.accumulate import Accumulators
from relion_pseudosubtomo.errors import InputError, RankError
from relion_pseudosubtomo.extraction import Extraction
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
    job: Any = SimpleNamespace(options=make_options(no_writing=True), some_images=())
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


@pytest.fixture
def work_on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> task_work.TaskWork:
    """Start in an empty directory; return work that is to see tilt images, and the job's file."""
    monkeypatch.chdir(tmp_path)
    worker = FakeWorker(failing=20)
    monkeypatch.setattr(task_work, "Worker", lambda job, threads: worker)
    monkeypatch.setattr(task_work, "FILES_APPEAR", 0.05)
    monkeypatch.setattr(task_work, "_LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(task_work.TaskWork, "_record", lambda *arguments: None)
    job: Any = SimpleNamespace(options=make_options(), some_images=("TS_01_0.mrc", "TS_02_0.mrc"))
    return task_work.TaskWork(job, 1)


def put_files(*names: str) -> None:
    """Make empty files."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(("n", "last"), [(1, 0), (7, 6), (1000, 950)])
def test_what_ranks_share_does_not_grow(n: int, last: int) -> None:
    """Of many tomograms some are named, from all over the set; each travels with its pieces."""
    tomograms = [make_tomogram(f"TS_{i}") for i in range(n)]
    job: Any = SimpleNamespace(options=make_options(), _tomograms=lambda: tomograms)
    names = Extraction._some_images(job)
    assert len(names) == min(n, 20)
    assert (names[0], names[-1]) == ("TS_0_0.mrc", f"TS_{last}_0.mrc")


JOB_FILE = "out/.completed/job.json"


@pytest.mark.parametrize(
    ("seen", "unseen"), [([], JOB_FILE), ([JOB_FILE], "TS_01_0.mrc"), (["TS_02_0.mrc"], JOB_FILE)]
)
def test_a_rank_that_does_not_see_the_files_says_so(
    seen: list[str], unseen: str, work_on_files: task_work.TaskWork
) -> None:
    """With where it is; it does nothing."""
    put_files(*seen)
    with pytest.raises(RankError, match=f"{re.escape(unseen)}.*{re.escape(os.getcwd())}"):
        do(work_on_files, 3)


def test_files_may_appear_late(
    work_on_files: task_work.TaskWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system; an image of any tomogram will do."""
    monkeypatch.setattr(task_work, "FILES_APPEAR", 10.0)
    threading.Timer(0.1, put_files, ["TS_02_0.mrc", JOB_FILE]).start()
    assert do(work_on_files, 3)[0] == 3


def test_files_are_not_waited_for_behind_a_stop(
    work_on_files: task_work.TaskWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece comes back undone."""
    monkeypatch.setattr(task_work, "FILES_APPEAR", 100.0)
    control = Control()
    threading.Timer(0.1, control.stop).start()
    assert do(work_on_files, 3, control)[0] == 0


def test_a_mount_that_is_lost_is_no_fault_of_a_tomogram(work_on_files: task_work.TaskWork) -> None:
    """Where nothing is seen any more; else the piece alone has failed."""
    put_files("TS_02_0.mrc", JOB_FILE)
    given: Any = FakeInput(20, 23)
    with pytest.raises(InputError, match="cannot be read"):
        work_on_files.do(given, Control())
    Path("TS_02_0.mrc").unlink()
    with pytest.raises(RankError, match=r"TS_01_0\.mrc"):
        work_on_files.do(given, Control())


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
