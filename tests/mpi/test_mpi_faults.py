"""Kills, bugs and lost ranks: nothing is lost, nothing half-written stays, nothing hangs."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mpi_project import (
    OPTIMISATION_SET,
    TIME_LIMIT,
    Launcher,
    assert_same_results,
    list_contents,
    run,
    run_serial,
)

from relion_pseudosubtomo.pipeline import ABORT_NOW, ABORTED, SUCCESS

#: A job of a few seconds that writes little: large windows, small volumes.
BOX = ["--b", "384", "--crop", "48", "--bin", "4", "--j", "1"]
#: One that lasts long enough for another program to start beside it.
LONG_BOX = ["--b", "640", "--crop", "48", "--bin", "4", "--j", "1"]
N_KILLS = 20
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
MARK = "PSEUDOSUBTOMO_TEST_RUN"
#: Exit status of the program after a signal.
STOPPED = 75


@pytest.fixture(scope="module")
def finished(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the project with an undisturbed run's output in PS/whole."""
    copy = tmp_path_factory.mktemp("faults") / "project"
    shutil.copytree(project, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        done = run_serial(*OPTIMISATION_SET, *BOX, "--o", "PS/whole/")
        assert done.returncode == 0, done.stdout
    return copy


@pytest.fixture(scope="module")
def finished_long(finished: Path) -> Path:
    """Return the same with an undisturbed run of the longer job in PS/whole_long too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        done = run_serial(*OPTIMISATION_SET, *LONG_BOX, "--o", "PS/whole_long/")
        assert done.returncode == 0, done.stdout
    return finished


def find_rank(mark: str, rank: int) -> int | None:
    """Return the process id of a rank of the job with this mark."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        values = dict(word.split("=", 1) for word in words if "=" in word)
        is_rank = any(values.get(name) == str(rank) for name in RANK_VARIABLES)
        if is_rank and values.get(MARK) == mark and b"relion_pseudosubtomo" in command:
            return int(entry.name)
    return None


def wait_for_images(output: Path) -> None:
    """Wait until a job has written its first image."""
    deadline = time.monotonic() + TIME_LIMIT
    while not list(output.glob("Subtomograms/*/*.mrc")) and time.monotonic() < deadline:
        time.sleep(0.05)


def wait_for_records(output: Path) -> None:
    """Wait until a job has noted its first particles as done."""
    deadline = time.monotonic() + TIME_LIMIT
    while not list(output.glob(".completed/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)


def run_and_kill(
    words: list[str],
    environment: dict[str, str],
    rank: int,
    wait: Callable[[], None],
    number: signal.Signals = signal.SIGKILL,
) -> tuple[int, str, bool]:
    """Start a job, wait, kill one of its ranks, wait for the end of it.

    Returns
    -------
    status : int
    output : str
    is_hit : bool
        Whether the rank was there to be killed.
    """
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        words,
        env={**environment, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        wait()
        victim = find_rank(mark, rank)
        is_hit = victim is not None
        if victim is not None:
            try:
                os.kill(victim, number)
            except ProcessLookupError:
                is_hit = False
        try:
            output, _ = process.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output, is_hit


def assert_no_half_files(output: Path, whole: Path) -> None:
    """Every image and container under a final name is complete."""
    expected = dict(list_contents(whole))
    for name, content in list_contents(output):
        if name.endswith((".mrc", ".h5")) and ".tmp-" not in name:
            assert content == expected[name], name


def time_one_run(launcher: Launcher) -> float:
    """Return how long the job takes with 2 ranks if nobody disturbs it, in seconds."""
    words = [*launcher.command(2), *OPTIMISATION_SET, *BOX, "--o", "PS/timed/"]
    started = time.monotonic()
    done = run(words, launcher.environment)
    assert done.returncode == 0, done.stdout
    shutil.rmtree("PS/timed")
    return time.monotonic() - started


@pytest.mark.timeout(N_KILLS * TIME_LIMIT)
@pytest.mark.parametrize(
    ("kind", "n_kills"),
    [([], N_KILLS), (["--hdf5", "--no_mrc"], N_KILLS // 2)],
    ids=["MRC", "containers"],
)
def test_killed_ranks_at_random_moments(
    finished: Path,
    launcher: Launcher,
    monkeypatch: pytest.MonkeyPatch,
    kind: list[str],
    n_kills: int,
) -> None:
    """After SIGKILL of any rank the job ends, and continues to the same files.

    Half of the kills wait for a record: then a part of the work is done, however fast the machine.
    """
    monkeypatch.chdir(finished)
    whole = Path("PS/killed_none")
    done = run_serial(*OPTIMISATION_SET, *BOX, *kind, "--o", f"{whole}/", "--overwrite")
    assert done.returncode == 0, done.stdout
    generator = random.Random(7)
    duration = time_one_run(launcher)
    n_hits, n_amid = 0, {"rank 0": 0, "another": 0}
    for i in range(n_kills):
        output = Path(f"PS/killed{i:02d}")
        n_ranks, continued = generator.choice([(2, 3), (3, 2), (3, 1), (2, 1)])
        rank = i % 2 * generator.randrange(1, n_ranks)  # rank 0 every other time
        words = [*OPTIMISATION_SET, *BOX, *kind, "--o", f"{output}/"]
        at_random = partial(time.sleep, duration * generator.uniform(0.2, 1.0))
        wait = partial(wait_for_records, output) if i % 4 < 2 else at_random
        status, _, is_hit = run_and_kill(
            [*launcher.command(n_ranks), *words], launcher.environment, rank, wait
        )
        if status != 0:
            if (output / "optimisation_set.star").exists():  # killed after the last file
                assert_same_results(whole, output)
            elif output.exists():
                assert_no_half_files(output, whole)
        done = run(
            [*launcher.command(continued), *words, "--only_do_unfinished"], launcher.environment
        )
        assert done.returncode == 0, done.stdout
        assert_same_results(whole, output)
        if is_hit and status != 0:
            n_hits += 1
            summary = json.loads((output / "run_summary.json").read_text())
            is_amid = 0 < summary["n_done_before"] < summary["n_kept"]
            n_amid["another" if rank else "rank 0"] += is_amid
        shutil.rmtree(output)
    assert n_hits >= n_kills // 2
    assert min(n_amid.values()) >= n_kills // 10, n_amid


def test_a_lost_rank_is_replaced_where_the_launcher_lets_the_job_live(
    finished: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fault tolerance (ULFM) the others do a dead rank's work: status 0, all files."""
    if launcher.name != "Open MPI":
        pytest.skip(f"{launcher.name} has no user-level failure mitigation: every death ends a job")
    monkeypatch.chdir(finished)
    words = [*launcher.command(3, "--with-ft", "ulfm"), *OPTIMISATION_SET, *BOX]
    output = Path("PS/ulfm")
    status, text, is_hit = run_and_kill(
        [*words, "--o", f"{output}/"], launcher.environment, 1, partial(wait_for_images, output)
    )
    assert is_hit
    assert "Lost rank 1: its work was done by others" in text
    assert status == 0, text
    assert_same_results(Path("PS/whole"), output)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_on_any_rank_ends_all_ranks(
    finished: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """An uncaught error aborts the job within seconds, with rank, host and traceback."""
    monkeypatch.chdir(finished)
    script = Path("buggy.py")
    script.write_text(
        "import sys\n"
        "from relion_pseudosubtomo.parallel import mpi\n"
        "def fail(*arguments):\n"
        "    raise RuntimeError('a bug for the test')\n"
        + ("mpi._Others.take_news = fail\n" if rank == 0 else "mpi._Servant._obey = fail\n")
        + "from relion_pseudosubtomo.cli import main\n"
        "sys.exit(main())\n"
    )
    words = [*launcher.command(2)[:-2], str(script), *OPTIMISATION_SET, *BOX]
    started = time.monotonic()
    done = run([*words, "--o", f"PS/bug{rank}/"], launcher.environment, limit=60)
    assert done.returncode != 0
    assert time.monotonic() - started < 30
    assert f"rank {rank} on {platform.node()}" in done.stdout
    assert "RuntimeError: a bug for the test" in done.stdout


@pytest.mark.parametrize("stderr", ["None", "open('/dev/full', 'w')"], ids=["closed", "full"])
def test_a_bug_ends_all_ranks_where_nothing_can_be_printed(
    finished: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, stderr: str
) -> None:
    """A rank that left alone, for want of a place for its message, would hang the others."""
    monkeypatch.chdir(finished)
    script = Path("mute.py")
    script.write_text(
        "import sys\n"
        "from relion_pseudosubtomo.parallel import mpi\n"
        "def fail(*arguments):\n"
        f"    sys.stdout, sys.stderr = None, {stderr}\n"
        "    raise RuntimeError('a bug for the test')\n"
        "mpi._Servant._obey = fail\n"
        "from relion_pseudosubtomo.cli import main\n"
        "sys.exit(main())\n"
    )
    words = [*launcher.command(2)[:-2], str(script), *OPTIMISATION_SET, *BOX]
    done = run([*words, "--o", "PS/mute/", "--overwrite"], launcher.environment, limit=30)
    assert done.returncode != 0


def test_a_rank_in_another_directory_ends_the_job(
    finished: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, and does not fail tomogram after tomogram, which `--allow_failures` leaves out.

    What the other rank has done stays.
    """
    monkeypatch.chdir(finished)
    output = Path("PS/elsewhere")
    script = Path("elsewhere.py")
    script.write_text(
        "import os, sys\n"
        "from relion_pseudosubtomo import task_work\n"
        "task_work.FILES_APPEAR = 0.2\n"
        f"if '1' in [os.environ.get(name) for name in {RANK_VARIABLES}]:\n"
        "    os.chdir('/')\n"
        "from relion_pseudosubtomo.cli import main\n"
        "sys.exit(main())\n"
    )
    words = [*OPTIMISATION_SET, *BOX, "--o", f"{output}/"]
    command = [*launcher.command(2)[:-2], str(script), *words, "--allow_failures"]
    done = run(command, launcher.environment)
    assert done.returncode == 1
    assert f"Rank 1 on {platform.node()}: expected {output}/.completed/job.json" in done.stdout
    assert "the working directory /." in done.stdout
    assert done.stdout.count("Rank 1 on") == 1
    assert "Tomogram" not in done.stdout
    assert "Traceback" not in done.stdout
    assert not (output / "particles.star").exists()
    done = run_serial(*words, "--only_do_unfinished")
    assert done.returncode == 0, done.stdout
    assert_same_results(Path("PS/whole"), output)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_is_silent_ends_all_ranks(
    finished: Path, launcher: Launcher, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no launcher tells that a rank is gone: here it stands still; limits are shortened."""
    monkeypatch.chdir(finished)
    script = Path("relion_pseudosubtomo_short.py")
    script.write_text(
        "import sys\n"
        "from relion_pseudosubtomo.parallel import mpi\n"
        "mpi.HEARTBEAT, mpi.SILENCE, mpi.LEADER_SILENCE = 1.0, 5.0, 5.0\n"
        "from relion_pseudosubtomo.cli import main\n"
        "sys.exit(main())\n"
    )
    output = Path(f"PS/silent_{victim}")
    words = [*launcher.command(3)[:-2], str(script), *OPTIMISATION_SET, *BOX, "--o", f"{output}/"]
    wait = partial(wait_for_images, output)
    status, text, _ = run_and_kill(words, launcher.environment, victim, wait, signal.SIGSTOP)
    assert status != 0
    assert re.search(rf"rank {victim}\b.* was not heard of for 5 s", text)
    assert not (output / "particles.star").exists()


def write_late_start(limit: float) -> Path:
    """Return a script of the program whose rank 2 does not come, and says that it does not."""
    script = Path("relion_pseudosubtomo_late.py")
    script.write_text(
        "import pathlib, sys, time\n"
        "from relion_pseudosubtomo.parallel import mpi\n"
        f"mpi.SILENCE = {limit}\n"
        "serve = mpi._Servant.serve\n"
        "def serve_late(self):\n"
        "    if self._rank == 2:\n"
        "        pathlib.Path('late').touch()\n"
        f"        time.sleep({TIME_LIMIT})\n"
        "    return serve(self)\n"
        "mpi._Servant.serve = serve_late\n"
        "from relion_pseudosubtomo.cli import main\n"
        "sys.exit(main())\n"
    )
    return script


def test_a_rank_that_never_comes_ends_all_ranks(
    finished: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died before it could say where it runs; the limit is shortened."""
    monkeypatch.chdir(finished)
    words = [*launcher.command(3)[:-2], str(write_late_start(3.0)), *OPTIMISATION_SET, *BOX]
    done = run([*words, "--o", "PS/late/"], launcher.environment, limit=60)
    assert done.returncode != 0
    assert "rank 2 was not heard of for 3 s" in done.stdout
    assert not Path("PS/late").exists()


def test_a_signal_while_a_rank_does_not_come(
    finished: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 does without it: status 75, long before the rank is taken for dead."""
    monkeypatch.chdir(finished)
    words = [*launcher.command(3)[:-2], str(write_late_start(600.0)), *OPTIMISATION_SET, *BOX]

    def wait() -> None:
        deadline = time.monotonic() + TIME_LIMIT
        while not Path("late").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    Path("late").unlink(missing_ok=True)
    started = time.monotonic()
    status, text, _ = run_and_kill(
        [*words, "--o", "PS/late/"], launcher.environment, 0, wait, signal.SIGUSR1
    )
    assert "Stopped by a signal before anything was changed" in text
    assert status == STOPPED, text
    assert time.monotonic() - started < TIME_LIMIT / 2


def test_bad_input_ends_all_ranks_with_the_messages_once(workdir: Path, launcher: Launcher) -> None:
    """What the checks find is printed by one rank, and every rank leaves with status 1."""
    Path("Tomograms/job008/tilt_series/TS_02.star").unlink()
    done = run([*launcher.command(3), *OPTIMISATION_SET, *BOX, "--o", "PS/x"], launcher.environment)
    assert done.returncode == 1
    assert done.stdout.count("[missing-file]") == 1
    assert not Path("PS").exists()


def test_a_signal_stops_the_job_and_it_continues(
    finished: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1 to the ranks ends in status 75 with records; the next start does the rest."""
    monkeypatch.chdir(finished)
    mark, output = uuid.uuid4().hex, Path("PS/signal")
    words = [*launcher.command(2), *OPTIMISATION_SET, *BOX, "--o", f"{output}/"]
    with subprocess.Popen(
        words,
        env={**launcher.environment, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for_images(output)
        for rank in (0, 1):
            victim = find_rank(mark, rank)
            assert victim is not None
            os.kill(victim, signal.SIGUSR1)
        text, _ = process.communicate(timeout=TIME_LIMIT)
    assert "Stopped by a signal" in text
    assert process.returncode == STOPPED, text
    assert not (output / "particles.star").exists()
    n_before = len(list(output.glob("Subtomograms/*/*_data.mrc")))
    done = run_serial(*OPTIMISATION_SET, *BOX, "--o", f"{output}/", "--only_do_unfinished")
    assert done.returncode == 0, done.stdout
    assert f"{n_before} of them before" in done.stdout
    assert_same_results(Path("PS/whole"), output)


def test_the_interface_aborts_all_ranks_and_the_job_continues(
    finished_long: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELION_JOB_ABORT_NOW: an end within seconds, status 1, the file that says so."""
    monkeypatch.chdir(finished_long)
    output = Path("PS/abort")
    words = [*OPTIMISATION_SET, *LONG_BOX, "--o", f"{output}/", "--pipeline_control", f"{output}/"]
    with subprocess.Popen(
        [*launcher.command(3), *words],
        env=launcher.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for_records(output)
        (output / ABORT_NOW).touch()
        asked = time.monotonic()
        text, _ = process.communicate(timeout=TIME_LIMIT)
    assert time.monotonic() - asked < 30
    assert process.returncode == 1, text
    assert "Aborted by RELION's interface" in text
    assert [path.name for path in output.glob("RELION_JOB_EXIT_*")] == [ABORTED]
    assert not (output / "particles.star").exists()
    done = run([*launcher.command(3), *words, "--only_do_unfinished"], launcher.environment)
    assert done.returncode == 0, done.stdout
    summary = json.loads((output / "run_summary.json").read_text())
    assert 0 < summary["n_done_before"] < summary["n_kept"]
    assert [path.name for path in output.glob("RELION_JOB_*")] == [SUCCESS]
    (output / SUCCESS).unlink()
    assert_same_results(Path("PS/whole_long"), output)


def test_two_jobs_in_one_directory(
    finished_long: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second job is refused and told who holds the directory; the first one completes."""
    monkeypatch.chdir(finished_long)
    output = Path("PS/both")
    words = [*OPTIMISATION_SET, *LONG_BOX, "--o", f"{output}/"]
    with subprocess.Popen(
        [*launcher.command(2), *words],
        env=launcher.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for_images(output)
        second = run_serial(*words, "--only_do_unfinished")
        text, _ = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0, text
    assert second.returncode == 1
    assert "Another job is writing to this directory" in second.stdout
    assert platform.node() in second.stdout
    assert_same_results(Path("PS/whole_long"), output)
