"""RELION's job control files: its interface learns of a job's end, or asks for it (spec 3.6)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from project_copy import ProjectCopy

from relion_pseudosubtomo import pipeline, preflight
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.io.lock import DirectoryLock
from relion_pseudosubtomo.pipeline import (
    ABORT_NOW,
    ABORTED,
    FAILURE,
    SUCCESS,
    PipelineControl,
)

EXIT_FILES = {SUCCESS, FAILURE, ABORTED}
SECOND_START = ["--p", "particles.star", "--t", "tomograms.star", "--b", "64", "--crop", "32"]
SECOND_START += ["--bin", "2", "--stack2d", "--o", "out/", "--pipeline_control", "out/"]


def exit_files(folder: Path) -> set[str]:
    """Return the names of the exit files that are there."""
    return {path.name for path in folder.glob("RELION_JOB_EXIT_*")}


# The class


def test_names() -> None:
    """What RELION 5's interface looks for."""
    assert (SUCCESS, FAILURE, ABORTED, ABORT_NOW) == (
        "RELION_JOB_EXIT_SUCCESS",
        "RELION_JOB_EXIT_FAILURE",
        "RELION_JOB_EXIT_ABORTED",
        "RELION_JOB_ABORT_NOW",
    )


def test_without_a_directory_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with an abort file in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ABORT_NOW).touch()
    control = PipelineControl(None)
    control.start()
    assert not control.active
    assert not control.abort_wanted()
    control.finish(SUCCESS)
    assert [path.name for path in tmp_path.iterdir()] == [ABORT_NOW]


def test_old_exit_files_go_at_the_start(tmp_path: Path) -> None:
    """Else the interface would take the last run's end for this one's; others stay."""
    for name in (*EXIT_FILES, "note.txt", "run.out"):
        (tmp_path / name).touch()
    control = PipelineControl(str(tmp_path))
    assert control.active
    control.start()
    assert {path.name for path in tmp_path.iterdir()} == {"note.txt", "run.out"}


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    """The start does not need it, the end makes it."""
    control = PipelineControl(str(tmp_path / "Job/job007"))
    control.start()
    assert not control.abort_wanted()
    control.finish(FAILURE)
    assert exit_files(tmp_path / "Job/job007") == {FAILURE}


def test_an_abort_file_is_seen_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for once a second at most; once seen it counts, even if it goes again."""
    now = [100.0]
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: now[0])
    control = PipelineControl(str(tmp_path))
    assert not control.abort_wanted()
    (tmp_path / ABORT_NOW).touch()
    now[0] += 0.5
    assert not control.abort_wanted()
    now[0] += 0.6
    assert control.abort_wanted()
    (tmp_path / ABORT_NOW).unlink()
    now[0] += 10
    assert control.abort_wanted()


def test_an_abort_file_is_seen_behind_a_cached_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS says for a minute that a file is missing which was not there before; a listing shows it.

    A folder that is missing is no reason to stop.
    """
    monkeypatch.setattr(pipeline, "LOOK_INTERVAL", 0.0)
    stat = os.stat

    def stat_from_cache(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if os.fspath(path).endswith(ABORT_NOW):
            raise FileNotFoundError(path)
        return stat(path, *rest, **more)

    monkeypatch.setattr(os, "stat", stat_from_cache)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    control = PipelineControl(str(tmp_path / "job007"))
    assert not control.abort_wanted()
    (tmp_path / "job007").mkdir()
    assert not control.abort_wanted()
    (tmp_path / "job007" / ABORT_NOW).touch()
    assert control.abort_wanted()


def test_an_abort_file_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads ask before every particle: the file system is asked once a second."""
    looks = []
    listdir = os.listdir

    def count(path: Path) -> list[str]:
        looks.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", count)
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: 100.0)
    control = PipelineControl(str(tmp_path))
    for _ in range(1000):
        control.abort_wanted()
    assert len(looks) == 1


# The program's end


def run_with(
    job: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> int:
    """Run the program with another job in place of the extraction."""
    import relion_pseudosubtomo.run

    monkeypatch.setattr(relion_pseudosubtomo.run, "run_job", job)
    line = ["--b", "64", "--o", str(folder), "--pipeline_control", str(folder), *words]
    return main(line)


def test_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 0: the one file, and old ones are gone before the job begins."""
    (tmp_path / FAILURE).touch()

    def job(*arguments: Any) -> int:
        assert exit_files(tmp_path) == set()
        return 0

    assert run_with(job, tmp_path, monkeypatch) == 0
    assert exit_files(tmp_path) == {SUCCESS}


@pytest.mark.parametrize("status", [1, 75])
def test_failure(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other status: failure."""
    assert run_with(lambda *arguments: status, tmp_path, monkeypatch) == status
    assert exit_files(tmp_path) == {FAILURE}


@pytest.mark.parametrize(
    "error", [InputError("no particle"), OSError("disk full"), KeyboardInterrupt()]
)
def test_errors_that_become_messages(
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message on standard error, no traceback, failure."""

    def job(*arguments: Any) -> int:
        raise error

    assert run_with(job, tmp_path, monkeypatch) not in (0, 2)
    assert exit_files(tmp_path) == {FAILURE}
    shown = capsys.readouterr().err
    assert (str(error) or "Interrupted") in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For those who look for the cause."""

    def job(*arguments: Any) -> int:
        raise InputError("no particle")

    assert run_with(job, tmp_path, monkeypatch, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_bugs_leave_a_failure_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody expected still ends the job in RELION's eyes."""

    def job(*arguments: Any) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_with(job, tmp_path, monkeypatch)
    assert exit_files(tmp_path) == {FAILURE}


@pytest.mark.parametrize("status", [0, 1])
def test_an_end_that_cannot_be_told(
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job's directory cannot be written to: a message, and the status that it would have."""

    def job(*arguments: Any) -> int:
        tmp_path.rmdir()
        tmp_path.touch()
        return status

    assert run_with(job, tmp_path, monkeypatch) == status
    shown = capsys.readouterr().err
    assert f"{tmp_path / (FAILURE if status else SUCCESS)} could not be written" in shown
    assert "Traceback" not in shown


def test_abort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The abort file appears while the job runs: it is told, and ends as aborted."""
    monkeypatch.setattr(pipeline, "LOOK_INTERVAL", 0.0)

    def job(options: Any, start: Any, *arguments: Any) -> int:
        assert not start.control.abort_wanted()
        (tmp_path / ABORT_NOW).touch()
        assert start.control.abort_wanted()
        return 1

    assert run_with(job, tmp_path, monkeypatch) == 1
    assert exit_files(tmp_path) == {ABORTED}


@pytest.mark.parametrize("words", [["--stack_2d"], ["--bin", "two"]])
def test_a_usage_error_ends_the_job_too(words: list[str], tmp_path: Path) -> None:
    """RELION's interface passes what the user typed: a wrong option must not look as if it ran."""
    line = ["--b", "64", "--o", str(tmp_path), "--pipeline_control", str(tmp_path), *words]
    assert main(line) == 2
    assert exit_files(tmp_path) == {FAILURE}


# A second start while the job is running


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start in a small project; yield a directory in which a job is running that is to abort."""
    monkeypatch.chdir(ProjectCopy(tmp_path, "basic_2d").path)
    folder = Path("out")
    folder.mkdir()
    with DirectoryLock("out", job="the first start"):
        (folder / ABORT_NOW).touch()
        yield folder


@pytest.mark.parametrize(
    ("words", "status"),
    [([], 1), (["--bin", "0.5"], 1), (["--stack_2d"], 2), (["--dry_run"], 0)],
    ids=["refused", "refused with bad input", "wrong command line", "dry run"],
)
def test_a_second_start_leaves_the_files_of_the_first(
    words: list[str], status: int, running: Path
) -> None:
    """What the interface asks the running job stays, and it is not said to have failed."""
    assert main([*SECOND_START, *words]) == status
    assert (running / ABORT_NOW).exists()
    assert exit_files(running) == set()


def test_a_job_that_loses_the_race_for_the_lock_leaves_the_files(
    running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one was not there yet when this one began, or when its input was checked."""
    monkeypatch.setattr(pipeline, "find_holder", lambda directory: "")
    assert main(SECOND_START) == 1
    assert exit_files(running) == set()
    monkeypatch.setattr(preflight, "find_holder", lambda directory: "")
    assert main(SECOND_START) == 1
    assert exit_files(running) == set()


def test_a_refused_job_with_a_directory_of_its_own_has_failed(running: Path) -> None:
    """Only the output directory is the other one's."""
    assert main([*SECOND_START[:-1], "job/"]) == 1
    assert exit_files(Path("job")) == {FAILURE}
    assert exit_files(running) == set()


def test_the_files_are_taken_over_with_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other job has ended since this one began."""
    monkeypatch.chdir(ProjectCopy(tmp_path, "basic_2d").path)
    Path("out").mkdir()
    for name in (SUCCESS, ABORT_NOW):
        Path("out", name).touch()
    monkeypatch.setattr(pipeline, "find_holder", lambda directory: "the first start")
    assert main([*SECOND_START, "--j", "1"]) == 0
    assert exit_files(Path("out")) == {SUCCESS}
    assert not Path("out", ABORT_NOW).exists()
