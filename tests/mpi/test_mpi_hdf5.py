"""Containers of three ranks are those of one process, and unpack to the files of a direct run."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi_project import BOX, OPTIMISATION_SET, Launcher, assert_same_results, run, run_serial

from relion_pseudosubtomo.cli import main

PACKED = ["--hdf5", "--no_mrc"]
COMPRESSED = ["--hdf5_compression", "1"]


@pytest.mark.parametrize("kind", [[], ["--stack2d", "--float16"]])
@pytest.mark.parametrize("more", [[], COMPRESSED], ids=["plain", "compressed"])
def test_containers_of_three_ranks(
    workdir: Path, launcher: Launcher, kind: list[str], more: list[str]
) -> None:
    """Each written by one rank, the same to the byte; one rank's work is never split."""
    words = [*OPTIMISATION_SET, *BOX, *kind, "--j", "1", "--o"]
    assert run_serial(*words, "PS/direct").returncode == 0
    assert run_serial(*words, "PS/serial", *PACKED, *more).returncode == 0
    done = run([*launcher.command(3), *words, "PS/ranks", *PACKED, *more], launcher.environment)
    assert done.returncode == 0, done.stdout
    assert_same_results(Path("PS/serial"), Path("PS/ranks"))
    assert len(list(Path("PS/ranks").rglob("*.h5"))) == 6
    assert main(["unpack", "PS/ranks"]) == 0
    for path in Path("PS/direct").rglob("*.mrc*"):
        made = Path("PS/ranks", path.relative_to("PS/direct"))
        assert made.read_bytes() == path.read_bytes()
    direct = Path("PS/direct/particles.star").read_text()
    assert Path("PS/ranks/particles.star").read_text() == direct.replace("PS/direct", "PS/ranks")
