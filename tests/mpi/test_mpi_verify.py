"""What several ranks wrote passes `verify`."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi_project import BOX, OPTIMISATION_SET, Launcher, run, run_serial


@pytest.mark.parametrize("box", [BOX, [*BOX, "--stack2d"]])
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_results_of_ranks_are_verified(
    workdir: Path, launcher: Launcher, n_ranks: int, box: list[str]
) -> None:
    """Trajectories, several tomograms, split or not."""
    words = [*OPTIMISATION_SET, *box, "--o", "PS/job001/", "--j", "1"]
    done = run([*launcher.command(n_ranks), *words], launcher.environment)
    assert done.returncode == 0, done.stdout
    verified = run_serial("verify", "PS/job001", "--deep")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.endswith("0 errors, 0 warnings\n")
