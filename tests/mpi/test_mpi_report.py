"""The report of a run on many ranks, and of a tomogram that several of them did."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from mpi_project import (
    OPTIMISATION_SET,
    Launcher,
    assert_same_results,
    rewrite_particles,
    run,
    run_serial,
)

from relion_pseudosubtomo.report.contents import read_contents

#: A large box, so that the parts of a split tomogram are worth it.
BOX = ["--b", "128", "--crop", "96", "--bin", "1"]
EXTRAS = ["--report", "--positions2d", "--j", "1"]


def test_report_and_positions_of_a_split_tomogram(workdir: Path, launcher: Launcher) -> None:
    """What the ranks collected is joined; positions are the same bytes as of one process."""
    rewrite_particles(
        workdir / "Picks/job007/particles.star",
        lambda columns: {k: v[columns["rlnTomoName"] == "TS_01"] for k, v in columns.items()},
    )
    words = [*OPTIMISATION_SET, *BOX, *EXTRAS, "--o"]
    assert run_serial(*words, "PS/whole/").returncode == 0
    done = run([*launcher.command(3), *words, "PS/split/"], launcher.environment)
    assert done.returncode == 0, done.stdout
    whole, split = read_contents("PS/whole", 30), read_contents("PS/split", 30)
    assert len({work["rank"] for work in split.tomograms[0].work}) > 1
    assert len(split.tomograms[0].pieces) > 1
    assert split.missing == whole.missing == []
    assert split.tomograms[0].tilts is not None
    sums = [
        np.sum([piece.picture_sum for piece in contents.tomograms[0].pieces], axis=0)
        for contents in (whole, split)
    ]
    np.testing.assert_allclose(sums[0], sums[1], rtol=0, atol=1e-4 * np.abs(sums[0]).max())
    for output in (Path("PS/whole"), Path("PS/split")):
        shutil.rmtree(output / ".report")
        (output / "report.html").unlink()
        assert list((output / "positions2d").iterdir())
    assert_same_results(Path("PS/whole"), Path("PS/split"))
