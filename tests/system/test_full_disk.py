"""A disk that fills up: an error with that name, nothing half-written, and the run continues."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import pytest
from project_copy import ProjectCopy

from relion_pseudosubtomo.cli import main

WORDS = ["--p", "particles.star", "--t", "tomograms.star", "--b", "64", "--crop", "32", "--bin"]
WORDS += ["2", "--j", "2", "--o", "disk/out/"]


@pytest.fixture
def small_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_tests: None
) -> Iterator[Path]:
    """Mount a file system with room for half of the images at disk/ of a small project."""
    copy = ProjectCopy(tmp_path, "basic_3d")
    monkeypatch.chdir(copy.path)
    disk = copy.path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_an_error_and_the_run_continues(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused at first; with --ignore_disk_space it fails cleanly, and continues with more room."""
    assert main(WORDS) == 1
    assert "Disk space in disk/out/" in capsys.readouterr().err
    assert main([*WORDS, "--ignore_disk_space"]) == 1
    assert os.strerror(28) in capsys.readouterr().err  # no space left on device
    output = small_disk / "out"
    assert not (output / "particles.star").exists()
    for path in output.rglob("*.mrc"):
        assert mrcfile.validate(path)
    assert not list(output.rglob("*.tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert main([*WORDS, "--only_do_unfinished"]) == 0
    assert main([*WORDS[:-1], "plain/"]) == 0
    for path in Path("plain").rglob("*.mrc"):
        assert (output / path.relative_to("plain")).read_bytes() == path.read_bytes()


def test_a_disk_that_is_full_already(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told by the check of the disk space, or with the name of the file that has no room."""
    (small_disk / "full").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert main(WORDS) == 1
    assert "Disk space in disk/out/" in capsys.readouterr().err
    assert main([*WORDS, "--ignore_disk_space"]) == 1
    assert f"disk/out/.completed/job.json could not be written: {os.strerror(28)}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("room", ["12k", "16k", "20k", "24k", "28k"])
def test_a_full_disk_while_containers_are_begun(small_disk: Path, room: str) -> None:
    """Its reason is told, whichever of the library's writes fails; with more room it continues."""
    subprocess.run(["mount", "-o", f"remount,size={room}", small_disk], check=True)
    words = [*WORDS, "--hdf5", "--no_mrc", "--ignore_disk_space"]
    command = [sys.executable, "-P", "-m", "relion_pseudosubtomo", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert f"could not be written: {os.strerror(28)}" in done.stderr
    output = small_disk / "out"
    assert not list(output.rglob("*.tmp-*"))
    assert not list(output.rglob("*.h5"))
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert main([*words, "--only_do_unfinished"]) == 0
    assert main([*words[:-1], "--o", "plain/"]) == 0
    for path in Path("plain").rglob("*.h5"):
        assert (output / path.relative_to("plain")).read_bytes() == path.read_bytes()
