"""A rank's worker: which tomograms it holds, and whose error a failed reading is."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from small_models import make_options, make_tomogram

from relion_pseudosubtomo import task_work
from relion_pseudosubtomo import worker as worker_module
from relion_pseudosubtomo.errors import InputError, PseudoSubtomoError
from relion_pseudosubtomo.loading import LoadingStopped
from relion_pseudosubtomo.parallel.runner import Control
from relion_pseudosubtomo.worker import Worker, images_may_fail

N_TOMOGRAMS = 6
PATIENCE = 5


class Loaded:
    """Stands for a loaded tomogram."""

    images = SimpleNamespace(prebin=1)


def make_worker(monkeypatch: pytest.MonkeyPatch, load: Callable[[int], Any]) -> Worker:
    """Return a worker of one thread that loads by `load` and extracts nothing."""

    def load_tomogram(options: Any, tomogram: Any, index: int, *rest: Any, **more: Any) -> Any:
        return load(index)

    def prepare(self: Worker, given: Any, loaded: Any) -> Callable[..., list[Any]]:
        def extract(i: int, share: Any) -> list[Any]:
            assert isinstance(loaded, Loaded)
            return []

        return extract

    monkeypatch.setattr(worker_module, "load_tomogram", load_tomogram)
    monkeypatch.setattr(Worker, "_prepare", prepare)
    job = SimpleNamespace(options=make_options(stack2d=True))
    return Worker(job, threads=1)  # type: ignore[arg-type]


def make_input(tomogram: int) -> Any:
    """Return a task of one particle of a tomogram."""

    class Task(SimpleNamespace):
        def __len__(self) -> int:
            return 1

    task = Task(number=tomogram, first=0, tomogram=tomogram, stems=["1"])
    named = make_tomogram(f"TS_{tomogram}")
    return SimpleNamespace(task=task, tomogram=named, used=None, prebin=1)


def test_every_tomogram_is_loaded_once_and_two_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first is ready later than the one that comes next."""
    loads: list[int] = []
    held: list[weakref.ref[Loaded]] = []
    next_is_ready = threading.Event()

    def load(index: int) -> Loaded:
        if index == 0:
            assert next_is_ready.wait(PATIENCE)
        gc.collect()
        assert sum(ref() is not None for ref in held) <= 1, "a third tomogram is held"
        loads.append(index)
        loaded = Loaded()
        held.append(weakref.ref(loaded))
        return loaded

    worker = make_worker(monkeypatch, load)

    def prefetch(index: int) -> None:
        if index < N_TOMOGRAMS:
            worker.prefetch(make_input(index), lambda: False)
        next_is_ready.set()

    for index in range(N_TOMOGRAMS):
        ahead = threading.Thread(target=prefetch, args=(index + 1,))
        if index == 0:
            ahead.start()
        for chunk in range(3):
            worker.finish(worker.begin(make_input(index), lambda: False, lambda: None))
            if index and not chunk:
                ahead.start()
        ahead.join(PATIENCE)
    assert loads == [1, 0, 2, 3, 4, 5]


def test_what_was_loaded_ahead_outlasts_a_container_that_is_laid_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Meanwhile the tomogram after it is loaded: both are needed."""
    loads: list[int] = []

    def load(index: int) -> Loaded:
        loads.append(index)
        return Loaded()

    worker = make_worker(monkeypatch, load)
    monkeypatch.setattr(task_work, "Worker", lambda job, threads: worker)
    work = task_work.TaskWork(worker._job, 1)
    work._records, work._has_seen_files = None, True
    first, second, third = (make_input(i) for i in range(3))
    for given in (first, second, third):
        given.columns = ()
        given.part = lambda *part, given=given: given
    second.columns = ("rows",)
    monkeypatch.setattr(work, "_begin_container", lambda given: work.prefetch(third, Control()))
    work.do(first, Control())
    work.prefetch(second, Control())
    work.do(second, Control())
    work.do(third, Control())
    assert loads == [0, 1, 2]


def test_a_stop_while_a_tomogram_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is loaded ahead; the piece ends with nothing done, and not as failed."""
    control = Control()
    asked: list[bool] = []

    def load_tomogram(*arguments: Any, stop: Callable[[], bool], **more: Any) -> Any:
        asked.append(stop())
        control.stop()
        asked.append(stop())
        raise LoadingStopped

    worker = make_worker(monkeypatch, lambda index: None)
    monkeypatch.setattr(worker_module, "load_tomogram", load_tomogram)
    monkeypatch.setattr(task_work, "Worker", lambda job, threads: worker)
    work = task_work.TaskWork(worker._job, 1)
    work._has_seen_files = True
    given = make_input(0)
    given.columns = ()
    given.part = lambda *part: given
    n_done, _ = work.do(given, control)
    assert (n_done, asked) == (0, [False, True])
    asked.clear()
    control = Control()
    with pytest.raises(LoadingStopped):
        work.prefetch(make_input(1), control)
    assert asked == [False, True]


@pytest.mark.parametrize(
    "number",
    [
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.ENODEV),
        errno.EKEYEXPIRED,
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_images(number: int) -> None:
    """Else `--allow_failures` would leave out tomograms that are whole."""
    expected = pytest.raises(PseudoSubtomoError, match="Images of TS_01")
    with expected as caught, images_may_fail("TS_01"):
        raise OSError(number, "text")
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO])
def test_images_that_cannot_be_read_are_bad_input(number: int) -> None:
    """Missing, forbidden, or on a bad disk."""
    with pytest.raises(InputError, match="Images of TS_01"), images_may_fail("TS_01"):
        raise OSError(number, "text")
