"""Tilt images that are read in full, or made smaller first: `--preload` and `--prebin`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project_copy import ProjectCopy
from test_run import (
    BOX_2D,
    INPUT,
    add_particles,
    change_frames,
    read_images,
    read_summary,
    run,
    start_in,
    written,
)

from relion_pseudosubtomo import loading
from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.parallel.runner import Control

BIN_4 = ["--b", "32", "--crop", "24", "--bin", "4"]
#: With so many particles in a tomogram prebinning pays for windows of 128 pixels.
MANY = 60
PATIENCE = 10
USED = "Prebinning by 2: 2 tomograms"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Return a copy of a plain case's input; start in it."""
    return start_in(tmp_path, "basic_2d", monkeypatch)


def relative_rms(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the root mean square difference in standard deviations of the expected images."""
    assert sorted(found) == sorted(expected)
    assert expected
    difference = np.concatenate([(found[name] - expected[name]).ravel() for name in expected])
    values = np.concatenate([image.ravel() for image in expected.values()])
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))) / values.std())


@pytest.mark.parametrize(
    "kind",
    [
        ["--stack2d"],
        ["--no_comb"],
        ["--stack2d", "--whiten", "--for", "cryodrgn"],
        ["--stack2d", "--no_circle_crop"],
    ],
)
def test_prebinned_images_hardly_differ(
    kind: list[str], project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Used where particles are many: close to the exact ones, the same for any threads."""
    add_particles(project, MANY)
    assert run(*BIN_4, *kind) == 0
    assert run(*BIN_4, *kind, "--prebin", output="prebinned/", threads=1) == 0
    assert USED in "".join(capsys.readouterr())
    assert run(*BIN_4, *kind, "--prebin", output="threads/", threads=2) == 0
    exact, prebinned = read_images(project.path / "out"), read_images(project.path / "prebinned")
    assert 0 < relative_rms(prebinned, exact) < 2e-4
    images = (".mrc", ".mrcs")
    assert written(Path("threads"), *images) == written(Path("prebinned"), *images)


def test_prebin_is_left_out_where_it_does_not_pay(
    project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few particles: exact, and said so."""
    assert run(*BIN_4) == 0
    assert run(*BIN_4, "--prebin", output="prebinned/") == 0
    assert "exact, as too few particles would gain: 2 tomograms" in "".join(capsys.readouterr())
    assert written(Path("prebinned"), ".mrc") == written(Path("out"), ".mrc")


@pytest.mark.parametrize(
    "words",
    [
        ["--b", "32", "--crop", "24", "--bin", "3"],
        ["--b", "34", "--crop", "24", "--bin", "4.5"],
        ["--b", "6", "--crop", "6", "--bin", "4"],
        [*BIN_4, "--circle_precrop"],
    ],
)
def test_prebin_is_left_out_where_it_cannot_be_exact(
    words: list[str], project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """No whole factor, too short a window, or a step on its pixels: exact, with a warning."""
    add_particles(project, MANY)
    assert run(*words) == 0
    assert run(*words, "--prebin", output="prebinned/") == 0
    assert "--prebin is not used" in "".join(capsys.readouterr())
    assert written(Path("prebinned"), ".mrc") == written(Path("out"), ".mrc")


def test_bad_pixels_keep_a_tomogram_exact(
    project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """A NaN would spread to windows that do not hold it."""
    add_particles(project, MANY)

    def spoil(name: str, image: np.ndarray) -> np.ndarray:
        if name.startswith("TS_01"):
            image[0, 0] = np.nan
        return image

    change_frames(project, spoil)
    assert run(*BIN_4) == 0
    assert run(*BIN_4, "--prebin", output="prebinned/") == 0
    said = "".join(capsys.readouterr())
    assert said.count("TS_01: pixels are NaN or infinite, so --prebin is not used for it") == 1
    exact, found = written(Path("out"), ".mrc"), written(Path("prebinned"), ".mrc")
    spoiled = [name for name in exact if "TS_01" in name]
    assert spoiled
    assert [found[name] for name in spoiled] == [exact[name] for name in spoiled]
    assert found != exact


@pytest.mark.parametrize(
    "case", ["basic_2d", "int16_stack", "float16_images_in_stack", "max_dose_min_frames"]
)
def test_preloaded_images_give_the_same_bytes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacks and single images, of any type, whitened too."""
    start_in(tmp_path, case, monkeypatch)
    for words in (BOX_2D, [*BOX_2D, "--whiten", "--max_dose", "60"]):
        assert run(*words, "--overwrite") == 0
        assert run(*words, "--overwrite", "--preload", output="preloaded/") == 0
        assert written(Path("preloaded"), ".mrcs") == written(Path("out"), ".mrcs")
        assert written(Path("out"), ".mrcs")


def test_preloaded_images_may_be_prebinned(project: ProjectCopy) -> None:
    """Both together give what prebinning gives."""
    add_particles(project, MANY)
    assert run(*BIN_4, "--prebin") == 0
    assert run(*BIN_4, "--prebin", "--preload", output="preloaded/") == 0
    assert written(Path("preloaded"), ".mrc") == written(Path("out"), ".mrc")


@pytest.mark.parametrize(
    ("words", "module", "name"),
    [
        (["--preload"], np, "fromfile"),
        (["--whiten"], loading, "noise_weight"),
        (["--prebin"], kernels, "bin_image"),
    ],
    ids=["preload", "whiten", "prebin"],
)
def test_a_stop_is_seen_between_two_images_that_are_read(
    words: list[str],
    module: Any,
    name: str,
    project: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of the tomogram is not waited for, nor that of the next one: status 75."""
    add_particles(project, MANY)
    is_stopped = threading.Event()
    read: list[bool] = []
    real, stop = getattr(module, name), Control.stop

    def note_stop(self: Control) -> None:
        stop(self)
        is_stopped.set()

    def read_image(*arguments: Any, **more: Any) -> Any:
        read.append(is_stopped.is_set())
        if len(read) >= 2:
            if not is_stopped.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
            assert is_stopped.wait(PATIENCE)
        return real(*arguments, **more)

    monkeypatch.setattr(Control, "stop", note_stop)
    monkeypatch.setattr(module, name, read_image)
    assert run(*BIN_4, *words) == 75
    assert not any(read), "an image was read after the stop"
    assert not written(Path("out"), ".mrc")
    monkeypatch.undo()
    monkeypatch.chdir(project.path)
    assert run(*BIN_4, *words, "--only_do_unfinished") == 0


def test_noise_is_the_same_for_any_threads(project: ProjectCopy) -> None:
    """Threads share the images whose noise is measured."""
    assert run(*BIN_4, "--whiten", threads=1) == 0
    assert run(*BIN_4, "--whiten", output="threads/", threads=3) == 0
    assert written(Path("threads"), ".mrc") == written(Path("out"), ".mrc")


@pytest.mark.parametrize(
    "words",
    [
        ["--b", "1024", "--bin", "2", "--crop", "48"],
        ["--b", "48", "--bin", "2", "--crop", "48", "--whiten"],
        ["--b", "128", "--bin", "1", "--hdf5", "--no_mrc", "--hdf5_compression", "1"],
    ],
)
def test_private_memory_stays_below_what_the_plan_says(
    words: list[str], project: ProjectCopy
) -> None:
    """In a process of its own, for larger boxes: the measured figure is below, and not far."""
    if "--hdf5" in words:  # as many particles as two threads have in hand
        add_particles(project, 3)
    command = [sys.executable, "-m", "relion_pseudosubtomo", *INPUT, "--o", "out/", "--j", "2"]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=60, check=True
    )
    (stated,) = re.findall(r"Private memory: about (\S+) GB", done.stdout)
    (measured,) = read_summary(Path("out"))["private_memory"].values()
    assert 0.5 * float(stated) < measured / 1e9 < float(stated)
