"""Whole runs of the program on small copies of reference cases (spec 3, 4)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from oracle.read_case import read_case
from oracle.run_case import run_case
from project_copy import REFERENCE, ProjectCopy
from reference_comparison import read_star_text

from relion_pseudosubtomo import pipeline
from relion_pseudosubtomo import run as run_module
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.frame_loop import FrameLoop
from relion_pseudosubtomo.core.kernels import numpy_twin
from relion_pseudosubtomo.errors import InputError, OutputError
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.model import FrameImage
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.parallel import launch
from relion_pseudosubtomo.parallel.world import World
from relion_pseudosubtomo.plan import (
    DROP_REASONS,
    FAILED_TOMOGRAM,
    MANY_MISSING,
    NOT_COMMON,
    OUTSIDE,
    UNKNOWN_TOMOGRAM,
    Plan,
)
from relion_pseudosubtomo.preflight import JobInput, read_and_check

INPUT = ["--p", "particles.star", "--t", "tomograms.star"]
BOX_2D = ["--b", "64", "--crop", "32", "--bin", "2", "--stack2d"]
BOX_3D = ["--b", "32", "--crop", "24", "--bin", "2"]
FLOAT16_MAX = 65504
FILES_THAT_MERGE = {"particles.star", "optimisation_set.star", "dropped.star", "note.txt"}


TIME_LIMIT = 60

pytestmark = pytest.mark.timeout(TIME_LIMIT)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Return a copy of a plain case's input; start in it."""
    return start_in(tmp_path, "basic_2d", monkeypatch)


def start_in(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Copy a case's input, start in the copy, let the machine seem to have four cores."""
    project = ProjectCopy(folder, case)
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(launch, "usable_cores", lambda: {0, 1, 2, 3})
    return project


def run(*words: str, output: str = "out/", threads: int = 1) -> int:
    """Run the program in the current project; return its exit status."""
    return main([*INPUT, *words, "--o", output, "--j", str(threads)])


def written(folder: Path, *suffixes: str) -> dict[str, bytes]:
    """Return the content of all images and STAR files by path below a folder."""
    suffixes = suffixes or (".mrc", ".mrcs", ".star")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes
    }


def read_images(folder: Path) -> dict[str, np.ndarray]:
    """Return all images by path below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in (".mrc", ".mrcs")]
    return {path.relative_to(folder).as_posix(): mrcfile.read(path) for path in paths}


def read_particles(folder: Path) -> dict[str, list[str]]:
    """Return the particle table of particles.star."""
    table = read_star_text(folder / "particles.star")["particles"]
    return {label: list(table[label]) for label in table}


def read_summary(folder: Path) -> dict[str, Any]:
    """Return run_summary.json."""
    summary: dict[str, Any] = json.loads((folder / "run_summary.json").read_text())
    return summary


def add_particles(project: ProjectCopy, n: int) -> None:
    """Repeat each particle n times, some Angstrom further each time."""
    path = project.path / "particles.star"
    lines = path.read_text().splitlines()
    rows = [line for line in lines if line.startswith("TS_")]
    head = lines[: lines.index(rows[0])]
    for row in rows:
        name, *words = row.split("\t")
        for i in range(n):
            moved = [f"{float(word) + 2.3 * i:.6f}" for word in words[:3]]
            head.append("\t".join([name, *moved, *words[3:]]))
    path.write_text("\n".join(head) + "\n")


def change_frames(
    project: ProjectCopy, change: Callable[[str, np.ndarray], np.ndarray], folder: str = "plain"
) -> None:
    """Give the project tilt images of its own, changed by a function of name and image."""
    frames = project.path.parent / "frames"
    frames.unlink()
    (frames / folder).mkdir(parents=True)
    for path in (REFERENCE / "frames" / folder).iterdir():
        with mrcfile.open(path, permissive=True) as source:
            image, voxel = source.data.copy(), source.voxel_size.x
        with mrcfile.new(frames / folder / path.name) as target:
            target.set_data(change(path.stem, image))
            target.voxel_size = voxel


# Start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_the_program_starts_is_a_stop(
    number: signal.Signals, project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before MPI has started, or input is read: status 75, so that a job is queued again."""
    open_world = launch.open_world

    def open_late(environment: Mapping[str, str]) -> World:
        os.kill(os.getpid(), number)
        return open_world(environment)

    monkeypatch.setattr(launch, "open_world", open_late)
    assert run(*BOX_2D) == 75
    assert not FILES_THAT_MERGE & {path.name for path in (project.path / "out").iterdir()}
    monkeypatch.undo()
    monkeypatch.chdir(project.path)
    assert run(*BOX_2D, "--only_do_unfinished") == 0


# The same bytes


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("basic_2d", BOX_2D),
        ("cone", [*BOX_3D, "--cone_weight", "--ctf", "--multi", "--div", "--nrm"]),
        ("basic_3d", [*BOX_3D, "--float16"]),
        ("trajectories_2d_drop", [*BOX_2D, "--mot", "motion.star", "--min_frames", "6"]),
        ("real_subtomo", ["--b", "48", "--crop", "24", "--bin", "2", "--real_subtomo"]),
    ],
    ids=["2D", "3D with all volumes", "float16", "trajectories", "true subtomograms"],
)
def test_threads_change_no_byte(
    case: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, two and three threads, and one again: the same files with the same content."""
    project = start_in(tmp_path, case, monkeypatch)
    if case != "trajectories_2d_drop":
        add_particles(project, 3)
    results = []
    for threads in (1, 2, 3, 1):
        assert run(*words, threads=threads) == 0
        results.append(written(project.path / "out"))
        shutil.rmtree(project.path / "out")
    assert {"particles.star", "dropped.star", "optimisation_set.star"} <= set(results[0])
    assert len(results[0]) > 4
    for other in results[1:]:
        assert other == results[0]


def test_chunks_change_no_byte(project: ProjectCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completion records after every second particle instead of behind all."""
    from relion_pseudosubtomo import task_work

    add_particles(project, 3)
    assert run(*BOX_2D) == 0
    whole = written(project.path / "out")
    shutil.rmtree(project.path / "out")
    monkeypatch.setattr(task_work, "CHUNK_PER_THREAD", 2)
    assert run(*BOX_2D) == 0
    assert written(project.path / "out") == whole


def test_nothing_temporary_is_left(project: ProjectCopy) -> None:
    """No temporary name anywhere in the project, and the input as it was."""
    before = written(project.path)
    assert run(*BOX_2D, threads=2) == 0
    names = [path.name for path in project.path.rglob("*")]
    assert not [name for name in names if "tmp" in name]
    assert {k: v for k, v in written(project.path).items() if not k.startswith("out/")} == before


def test_star_files_come_after_the_images(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for optimisation_set.star finds particles.star, and every image it names."""
    order: list[str] = []
    replace = os.replace

    def note(source: Path, target: Path) -> None:
        replace(source, target)
        order.append(Path(target).name)

    monkeypatch.setattr(os, "replace", note)
    assert run(*BOX_2D, threads=2) == 0
    images = [i for i, name in enumerate(order) if name.endswith(".mrcs")]
    tables = [name for name in order[max(images) + 1 :] if name.endswith(".star")]
    assert len(images) == 4
    assert tables == ["dropped.star", "particles.star", "optimisation_set.star"]
    assert [name for name in order if name.endswith(".star")] == tables
    for name in read_particles(project.path / "out")["rlnImageName"]:
        assert (project.path / name).is_file()


def test_twins_give_the_same_images(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without compiled kernels: slower, with a warning, the same numbers to 1e-5."""
    words = [*BOX_3D, "--only_tomogram", "TS_01", "--cone_weight"]
    assert run(*words) == 0
    assert "compiled kernels are missing" not in capsys.readouterr().err
    monkeypatch.setattr(kernels, "IS_COMPILED", False)
    monkeypatch.setattr(kernels, "FrameRunner", None)
    for name in kernels.__all__:
        if callable(getattr(numpy_twin, name, None)):
            monkeypatch.setattr(kernels, name, getattr(numpy_twin, name))
    assert run(*words, output="twin/") == 0
    assert "compiled kernels are missing" in capsys.readouterr().err
    expected, found = read_images(project.path / "out"), read_images(project.path / "twin")
    assert sorted(found) == sorted(expected)
    assert expected
    for name, image in expected.items():
        np.testing.assert_allclose(found[name], image, rtol=0, atol=1e-5 * np.abs(image).max())


@pytest.mark.parametrize(("box", "binning"), [(50, 1.5), (50, 2.3), (34, 2.5)])
@pytest.mark.parametrize("stack2d", [True, False])
def test_odd_windows_agree_with_the_oracle(
    box: int, binning: float, stack2d: bool, project: ProjectCopy
) -> None:
    """75, 115 and 85 unbinned pixels: what RELION itself does not get right."""
    words = ["--b", str(box), "--crop", "30", "--bin", str(binning)]
    words += ["--stack2d"] if stack2d else []
    assert run(*words) == 0
    (project.path / "case.json").write_text(json.dumps({"options": words}))
    expected = run_case(read_case(project.path))
    found = read_images(project.path / "out")
    assert found
    for name, image in found.items():
        reference = expected[name]
        parts = 2 if name.endswith("_weights.mrc") else 1
        for a, b in zip(np.split(image, parts), np.split(reference, parts), strict=True):
            assert np.abs(a - b).max() < 3e-5 * b.std()


@pytest.mark.parametrize(
    ("box", "binning", "window"), [(50, 1.5, 75), (50, 2.3, 115), (36, 1.7, 61), (34, 2.5, 85)]
)
def test_odd_windows_are_mentioned(
    box: int,
    binning: float,
    window: int,
    project: ProjectCopy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line of the log says that RELION's images differ, also where b s is the odd number."""
    assert run("--b", str(box), "--bin", str(binning), "--crop", "24", "--dry_run") == 0
    output = capsys.readouterr()
    assert f"window of {window} unbinned pixels, an odd number" in output.out + output.err
    assert run("--b", "50", "--bin", "2", "--crop", "24", "--dry_run") == 0
    output = capsys.readouterr()
    assert "odd number" not in output.out + output.err


# Which particles


def test_every_particle_is_kept_or_dropped(
    project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """dropped.star has one row and one reason for each that particles.star lacks."""
    path = project.path / "particles.star"
    rows = path.read_text().rstrip().splitlines()
    far, unknown = rows[-1].split("\t"), rows[-1].split("\t")
    far[1], unknown[0] = "90000", "TS_99"
    path.write_text("\n".join([*rows, "\t".join(far), "\t".join(unknown)]) + "\n")
    assert run(*BOX_2D, "--min_frames", "7") == 0
    kept = read_particles(project.path / "out")["rlnTomoParticleName"]
    dropped = read_star_text(project.path / "out" / "dropped.star")["particles"]
    names, reasons = list(dropped["rlnTomoParticleName"]), list(dropped.iloc[:, -1])
    expected = ["TS_01/1", "TS_01/2", *(f"TS_03/{i}" for i in (1, 2, 3, 4)), "TS_99/1"]
    assert sorted(kept + names) == expected
    assert dict(zip(names, reasons, strict=True))["TS_03/4"] == OUTSIDE
    assert dict(zip(names, reasons, strict=True))["TS_99/1"] == UNKNOWN_TOMOGRAM
    assert set(reasons) <= set(DROP_REASONS)
    shown = capsys.readouterr().err
    for reason, n in Counter(reasons).items():
        assert f"Dropped {n}: {reason}" in shown
    assert read_summary(project.path / "out")["dropped"] == dict(Counter(reasons))


def test_many_warnings_of_a_kind_are_shortened(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten are shown, and how many more there are; `check` shows all."""

    def read(options: JobOptions) -> tuple[JobInput, Plan]:
        job, plan = read_and_check(options)
        for i in range(13):
            job.findings.warning("pixel-size", f"header of stack{i}")
        return job, plan

    monkeypatch.setattr(run_module, "read_and_check", read)
    assert run(*BOX_2D) == 0
    shown = capsys.readouterr().err
    assert shown.count("WARNING: [pixel-size] header of stack") == 10
    assert "WARNING: and 3 more of [pixel-size]\nWARNING: relion_pseudosubtomo check li" in shown


def test_nothing_left_to_extract(project: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that says so, and no file."""
    assert run(*BOX_2D, "--min_frames", "99") == 1
    assert "[nothing-left] no particle is left" in capsys.readouterr().err
    assert not (project.path / "out").exists()


def test_one_tomogram_alone(project: ProjectCopy) -> None:
    """--only_tomogram: its particles, the same bytes as in a whole run."""
    assert run(*BOX_2D) == 0
    whole = written(project.path / "out", ".mrcs")
    assert run(*BOX_2D, "--only_tomogram", "TS_03", output="one/") == 0
    one = written(project.path / "one", ".mrcs")
    assert one == {name: data for name, data in whole.items() if "TS_03" in name}
    assert set(read_particles(project.path / "one")["rlnTomoName"]) == {"TS_03"}


def test_bad_input_writes_nothing(project: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, the findings on standard error, no directory."""
    project.rename_label("tomograms.star", "rlnVoltage")
    assert run(*BOX_2D) == 1
    output = capsys.readouterr()
    assert "rlnVoltage" in output.err
    assert "rlnVoltage" not in output.out
    assert not (project.path / "out").exists()


# Failures


def fail_one_tomogram(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """Let the images of a tomogram fail to load, after the checks."""
    real = mrc.map_series

    def map_series(frames: tuple[FrameImage, ...]) -> list[Any]:
        if any(name in frame.path for frame in frames):
            raise error
        return real(frames)

    monkeypatch.setattr(mrc, "map_series", map_series)


@pytest.mark.parametrize(
    "error", [InputError("TS_01_003.mrc is truncated"), OSError("TS_01_003.mrc: stale file handle")]
)
def test_a_tomogram_fails_alone(
    error: Exception,
    project: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other's images are whole; no merged file that lacks particles; exit status 1."""
    assert run(*BOX_2D, output="good/") == 0
    good = written(project.path / "good", ".mrcs")
    capsys.readouterr()
    fail_one_tomogram(monkeypatch, "TS_01", error)
    assert run(*BOX_2D) == 1
    assert not FILES_THAT_MERGE & {path.name for path in (project.path / "out").iterdir()}
    found = written(project.path / "out", ".mrcs")
    assert found == {name: data for name, data in good.items() if "TS_03" in name}
    output = capsys.readouterr()
    assert "Tomogram TS_01 failed" in output.err
    assert str(error) in output.err
    assert "Traceback" not in output.err + output.out
    assert list(read_summary(project.path / "out")["failures"]) == ["TS_01"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "TS_01_003.mrc cannot be read"),
        (5000, "TS_01_003.mrc is truncated"),
        (b"no image " * 1000, "TS_01_003.mrc"),
        ((20, 24), "TS_01_003.mrc has changed since it was checked: expected images of"),
    ],
    ids=["removed", "truncated", "garbage", "smaller"],
)
def test_an_image_that_changes_after_the_checks(
    content: int | bytes | tuple[int, int] | None,
    message: str,
    project: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found when it is mapped: an error with its name, not a crash; the other tomogram is done."""
    change_frames(project, lambda name, image: image)
    victim = project.path.parent / "frames" / "plain" / "TS_01_003.mrc"
    whole, real = victim.read_bytes(), mrc.map_series

    def map_series(frames: tuple[FrameImage, ...]) -> list[Any]:
        if not any(victim.name in frame.path for frame in frames):
            return real(frames)  # the other tomogram, loaded meanwhile
        if content is None:
            victim.unlink(missing_ok=True)
        elif isinstance(content, tuple):
            mrcfile.write(victim, np.zeros(content, np.float32), overwrite=True)
        else:
            victim.write_bytes(whole[:content] if isinstance(content, int) else content)
        return real(frames)

    monkeypatch.setattr(mrc, "map_series", map_series)
    assert run(*BOX_2D) == 1
    shown = capsys.readouterr().err
    assert "Tomogram TS_01 failed" in shown
    assert message in shown
    assert not (project.path / "out" / "particles.star").exists()
    assert [name for name in written(project.path / "out", ".mrcs") if "TS_03" in name]


def test_failures_that_are_allowed(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--allow_failures merges the rest, says what is missing and lists it in dropped.star."""
    fail_one_tomogram(monkeypatch, "TS_01", InputError("unreadable"))
    assert run(*BOX_2D, "--allow_failures") == 0
    assert set(read_particles(project.path / "out")["rlnTomoName"]) == {"TS_03"}
    dropped = read_star_text(project.path / "out" / "dropped.star")["particles"]
    failed = dropped[dropped.iloc[:, -1] == FAILED_TOMOGRAM]
    assert list(failed["rlnTomoParticleName"]) == ["TS_01/1", "TS_01/2"]
    assert "without failed tomograms: TS_01" in capsys.readouterr().err


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_within_a_particle_does_not_spoil_the_next_one(
    threads: int, project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was inserted of it before the failure must not be found in another particle."""
    assert run(*BOX_3D, output="good/") == 0
    good = written(project.path / "good", ".mrc")
    real, calls = FrameLoop.run, []

    def run_loop(*arguments: Any) -> int:
        n_bad = real(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise OSError("a page of the image could not be read")
        return n_bad

    monkeypatch.setattr(FrameLoop, "run", run_loop)
    assert run(*BOX_3D, threads=threads) == 1
    (failed,) = read_summary(project.path / "out")["failures"]
    found = written(project.path / "out", ".mrc")
    assert {name for name in good if failed not in name} <= set(found)
    for name, data in found.items():
        assert data == good[name], name


def test_output_that_cannot_be_written(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk: an error with the file's name; no table, and no half file."""
    real = mrc.write_mrc

    def write_mrc(path: Path, *arguments: Any, **more: Any) -> tuple[int, int]:
        if "TS_03/2" in str(path):
            raise OutputError(f"{path} could not be written: No space left on device")
        return real(path, *arguments, **more)

    monkeypatch.setattr(mrc, "write_mrc", write_mrc)
    assert run(*BOX_2D) == 1
    shown = capsys.readouterr().err
    assert "TS_03/2_stack2d.mrcs could not be written: No space left on device" in shown
    files = {path.name for path in (project.path / "out").rglob("*")}
    assert not FILES_THAT_MERGE & files
    assert not [name for name in files if "tmp" in name]
    assert "TS_01" in files


# --no_writing, --sum, --dry_run


@pytest.mark.parametrize("box", [BOX_2D, BOX_3D], ids=["2D", "3D"])
def test_no_writing(box: list[str], project: ProjectCopy) -> None:
    """Everything is computed, no image and no STAR file written."""
    before = written(project.path)
    assert run(*box, "--no_writing") == 0
    assert written(project.path) == before
    assert read_summary(project.path / "out")["n_kept"] == 4


def test_no_writing_leaves_the_directory_free(project: ProjectCopy) -> None:
    """For the same again, and for the run itself, which is none that has to be continued."""
    assert run(*BOX_2D, "--no_writing") == 0
    assert run(*BOX_2D, "--no_writing") == 0
    assert run(*BOX_2D, "--no_writing", "--overwrite") == 0
    assert run(*BOX_2D) == 0
    assert read_summary(project.path / "out")["n_done_before"] == 0
    assert (project.path / "out/particles.star").exists()


def test_dry_run(project: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan on standard output, nothing on disk."""
    assert run(*BOX_2D, "--dry_run") == 0
    output = capsys.readouterr().out
    assert "TS_01: 2 kept, 0 dropped, " in output
    assert "nothing was written" in output
    assert not (project.path / "out").exists()


@pytest.mark.parametrize("no_writing", [True, False])
def test_sums(no_writing: bool, project: ProjectCopy) -> None:
    """The same for any number of threads to 1e-6; the sum of what the particles' files hold."""
    add_particles(project, 3)
    assert run(*BOX_3D, output="single/") == 0
    data = sum(
        image.astype(np.float64)
        for name, image in read_images(project.path / "single").items()
        if name.endswith("_data.mrc")
    )
    words = [*BOX_3D, "--sum", *(["--no_writing"] if no_writing else [])]
    results = []
    for threads in (1, 2, 3):
        assert run(*words, output=f"out{threads}/", threads=threads) == 0
        results.append(read_images(project.path / f"out{threads}"))
    names = {"sum_data.mrc", "sum_weight.mrc", "sum_div.mrc"}
    if no_writing:
        assert set(results[0]) == names
    for result in results:
        for name in names:
            reference = results[0][name]
            difference = np.abs(result[name] - reference).max()
            assert difference <= 1e-6 * np.abs(reference).max()
    np.testing.assert_allclose(
        results[0]["sum_data.mrc"], data, rtol=0, atol=1e-6 * np.abs(data).max()
    )


# Warnings about pixels and values


def test_float16_clips_and_counts(project: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """Values beyond +-65504 become +-65504, not infinite; the warning has their number."""
    change_frames(project, lambda name, image: (image * 4e5).astype(np.float32))
    assert run(*BOX_2D, output="full/") == 0
    full = read_images(project.path / "full")
    capsys.readouterr()
    assert run(*BOX_2D, "--float16") == 0
    expected = {
        tomogram: sum(
            int(np.count_nonzero(np.abs(image) > FLOAT16_MAX))
            for name, image in full.items()
            if tomogram in name
        )
        for tomogram in ("TS_01", "TS_03")
    }
    assert all(expected.values())
    shown = capsys.readouterr().err
    for tomogram, n in expected.items():
        assert f"{tomogram}: {n} values beyond float16's range were clipped" in shown
    assert read_summary(project.path / "out")["n_clipped"] == sum(expected.values())
    for name, image in read_images(project.path / "out").items():
        assert image.dtype == np.float16
        assert np.isfinite(image).all()
        clipped = np.abs(full[name]) > FLOAT16_MAX
        np.testing.assert_array_equal(np.abs(image[clipped]), np.float16(FLOAT16_MAX))


@pytest.mark.filterwarnings("ignore:Data array contains NaN values")
def test_bad_values_of_an_earlier_run_are_counted_too(
    project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that was queued again says at its end what a job in one go says, once."""

    def spoil(name: str, image: np.ndarray) -> np.ndarray:
        image = (image * 4e5).astype(np.float32)
        return np.full_like(image, np.nan) if name == "TS_03_002" else image

    def bad_values() -> tuple[Any, ...]:
        summary = read_summary(project.path / "out")
        shown = capsys.readouterr().err.splitlines()
        lines = [line for line in shown if "NaN or infinite" in line or "were clipped" in line]
        names = ("n_clipped", "n_not_finite", "clipped", "not_finite")
        return lines, *(summary[name] for name in names)

    change_frames(project, spoil)
    words = [*BOX_2D, "--float16"]
    assert run(*words) == 0
    whole = bad_values()
    assert all(whole)
    assert len(whole[0]) == 3
    assert run(*words, "--only_do_unfinished") == 0
    assert bad_values() == whole
    for path in (project.path / "out/Subtomograms/TS_01").iterdir():
        path.unlink()
    assert run(*words, "--only_do_unfinished") == 0
    assert read_summary(project.path / "out")["n_done_before"] > 0
    again = bad_values()
    assert (sorted(again[0]), *again[1:]) == (sorted(whole[0]), *whole[1:])


@pytest.mark.filterwarnings("ignore:Data array contains NaN values")
@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_that_are_not_finite_are_counted(
    threads: int, project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image of NaN: each pixel of each particle's window in it."""

    def spoil(name: str, image: np.ndarray) -> np.ndarray:
        return np.full_like(image, np.nan) if name == "TS_03_002" else image

    change_frames(project, spoil)
    assert run(*BOX_2D, threads=threads) == 0
    table = read_particles(project.path / "out")
    visible = [
        flags.strip("[]").split(",")[2] == "1"
        for name, flags in zip(table["rlnTomoName"], table["rlnTomoVisibleFrames"], strict=True)
        if name == "TS_03"
    ]
    n = sum(visible) * 128 * 128
    assert n > 0
    shown = capsys.readouterr().err
    assert f"TS_03: {n} pixels read were NaN or infinite" in shown
    assert "TS_01" not in shown
    assert read_summary(project.path / "out")["n_not_finite"] == n


# The log, note.txt, RELION's pipeline


def test_log(project: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages on standard output, warnings on standard error, neither on both."""
    assert run(*BOX_2D, "--min_frames", "7", threads=9) == 0
    output = capsys.readouterr()
    for part in ("TS_01", "particles in", "Wrote out/particles.star"):
        assert part in output.out
    assert "WARNING" not in output.out
    assert all(line.startswith("WARNING: ") for line in output.err.splitlines())
    assert "--j asks for 9 threads" in output.err
    assert "4 cores" in output.err


@pytest.mark.parametrize(
    ("level", "has_output", "has_warnings"), [("warning", False, True), ("error", False, False)]
)
def test_log_level(
    level: str,
    has_output: bool,
    has_warnings: bool,
    project: ProjectCopy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Less is shown; the result is the same."""
    assert run(*BOX_2D, "--log_level", level, threads=9) == 0
    output = capsys.readouterr()
    assert bool(output.out) == has_output
    assert bool(output.err) == has_warnings
    assert (project.path / "out" / "particles.star").exists()


def test_note(project: ProjectCopy) -> None:
    """The command line and the resolved options, outside RELION's pipeline."""
    assert run(*BOX_2D) == 0
    note = (project.path / "out" / "note.txt").read_text()
    assert note.splitlines()[0].startswith("relion_pseudosubtomo --p particles.star")
    assert "--stack2d" in note.splitlines()[0]
    assert "crop = 32" in note


def test_pipeline_of_relion(project: ProjectCopy) -> None:
    """--pipeline_control: the exit file; RELION's own note.txt and files stay as they are."""
    job = project.path / "out"
    job.mkdir()
    relion_files = {"note.txt": "RELION's note\n", "job.star": "data_job\n", "run.out": ""}
    for name, text in relion_files.items():
        (job / name).write_text(text)
    (job / pipeline.FAILURE).touch()
    assert run(*BOX_2D, "--pipeline_control", "out/") == 0
    assert (job / pipeline.SUCCESS).exists()
    assert not (job / pipeline.FAILURE).exists()
    assert (job / "particles.star").exists()
    for name, text in relion_files.items():
        assert (job / name).read_text() == text


def test_pipeline_without_a_note(project: ProjectCopy) -> None:
    """RELION writes its own: none is made."""
    assert run(*BOX_2D, "--pipeline_control", "out/") == 0
    assert not (project.path / "out" / "note.txt").exists()


def test_pipeline_of_a_failed_job(project: ProjectCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure file, no success file."""
    fail_one_tomogram(monkeypatch, "TS_01", InputError("unreadable"))
    assert run(*BOX_2D, "--pipeline_control", "out/") == 1
    assert (project.path / "out" / pipeline.FAILURE).exists()
    assert not (project.path / "out" / pipeline.SUCCESS).exists()


def test_abort_keeps_what_is_finished(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The abort file appears after some particles: exit status 1, no table, whole images only."""
    add_particles(project, 20)
    assert run(*BOX_2D, output="good/") == 0
    good = written(project.path / "good", ".mrcs")
    monkeypatch.setattr(pipeline, "LOOK_INTERVAL", 0.0)
    job, real = project.path / "out", mrc.write_mrc
    seen = threading.Event()
    abort_wanted = pipeline.PipelineControl.abort_wanted

    def note_abort(self: pipeline.PipelineControl) -> bool:
        is_wanted = abort_wanted(self)
        if is_wanted:
            seen.set()
        return is_wanted

    def write_mrc(path: Path, *arguments: Any, **more: Any) -> tuple[int, int]:
        result = real(path, *arguments, **more)
        written_paths.append(path)
        if len(written_paths) == 3:
            (job / pipeline.ABORT_NOW).touch()
            assert seen.wait(10)
        return result

    written_paths: list[Path] = []
    monkeypatch.setattr(pipeline.PipelineControl, "abort_wanted", note_abort)
    monkeypatch.setattr(mrc, "write_mrc", write_mrc)
    assert run(*BOX_2D, "--pipeline_control", "out/") == 1
    assert (job / pipeline.ABORTED).exists()
    assert not {pipeline.SUCCESS, pipeline.FAILURE} & {path.name for path in job.iterdir()}
    assert not (job / "particles.star").exists()
    found = written(job, ".mrcs")
    assert 3 <= len(found) < len(good)
    assert found == {name: good[name] for name in found}
    assert "Aborted by RELION's interface" in capsys.readouterr().err


# Duplicate names


def test_duplicates_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has files of its own, and a table says which name became which."""
    case = start_in(tmp_path, "rotated_trajectories", monkeypatch)
    box = ["--b", "40", "--crop", "20", "--bin", "2", "--stack2d"]
    for row in (1, 3):
        case.set_value("particles.star", "rlnTomoParticleName", row, "TS_01/1")
    case.set_value("particles.star", "rlnTomoParticleName", 4, "TS_01/1_2")
    assert run(*box) == 1
    assert run(*box, "--rename_duplicates") == 0
    found = read_particles(case.path / "out")
    names = ["TS_01/1", "TS_01/1_3", "TS_03/1", "TS_01/1_4", "TS_01/1_2"]
    assert found["rlnTomoParticleName"] == names
    assert found["rlnImageName"] == [f"out/Subtomograms/{name}_stack2d.mrcs" for name in names]
    assert all((case.path / name).exists() for name in found["rlnImageName"])
    table = read_star_text(case.path / "out" / "renamed_particles.star")["particles"]
    assert list(table["rlnTomoParticleName"]) == ["TS_01/1_3", "TS_01/1_4"]
    assert list(table["rlnPseudoSubtomoFormerParticleName"]) == ["TS_01/1"] * 2
    assert list(table["rlnTomoName"]) == ["TS_01", "TS_03"]
    # nothing to rename: no table, also none of the earlier run
    for row, name in enumerate(["a/1", "a/2", "a/3", "a/4", "a/5"]):
        case.set_value("particles.star", "rlnTomoParticleName", row, name)
    assert run(*box, "--rename_duplicates", "--overwrite") == 0
    assert not (case.path / "out" / "renamed_particles.star").exists()


# Trajectories by order


def test_trajectories_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They fit the order of the input; the output is in that of tomograms, and gets names."""
    case = start_in(tmp_path, "rotated_trajectories", monkeypatch)
    box = ["--b", "40", "--crop", "20", "--bin", "2", "--mot", "motion.star"]
    order = ["TS_03/1", "TS_03/3", "TS_01/1", "TS_03/2", "TS_01/2"]  # of the tables
    text = Path("particles.star").read_text()
    rows = {line.split()[-1]: line for line in text.splitlines() if line.startswith("TS_")}
    head = text[: text.index("TS_")]
    Path("particles.star").write_text(head + "\n".join(rows[name] for name in order) + "\n")
    assert run(*box, output="named/") == 0
    assert not Path("named/motion.star").exists()
    for i, name in enumerate(order):
        case.replace("motion.star", f"data_{name}\n", f"data_{i}\n")
    assert run(*box, output="old/") == 0
    assert written(Path("old"), ".mrc") == written(Path("named"), ".mrc")
    names = read_particles(Path("old"))["rlnTomoParticleName"]
    assert names != order
    tables, given = read_star_text(Path("old/motion.star")), read_star_text(Path("motion.star"))
    assert list(tables) == ["general", *names]
    for i, name in enumerate(order):
        assert tables[name].to_numpy().tolist() == given[str(i)].to_numpy().tolist()
    assert "old/motion.star" in Path("old/optimisation_set.star").read_text()


def test_trajectories_of_more_particles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that read them want those of the particles, no more."""
    start_in(tmp_path, "rotated_trajectories", monkeypatch)
    box = ["--b", "40", "--crop", "20", "--bin", "2", "--mot", "motion.star"]
    assert run(*box, "--only_tomogram", "TS_03") == 0
    tables, given = read_star_text(Path("out/motion.star")), read_star_text(Path("motion.star"))
    names = ["TS_03/1", "TS_03/2", "TS_03/3"]
    assert list(tables) == ["general", *names]
    assert list(tables["general"].to_numpy().ravel()) == ["3"]
    for name in names:
        assert tables[name].to_numpy().tolist() == given[name].to_numpy().tolist()
    assert "out/motion.star" in Path("out/optimisation_set.star").read_text()


# Common tilts


def visible_frames(folder: Path) -> dict[str, np.ndarray]:
    """Return the flags of rlnTomoVisibleFrames by image name, without the folder."""
    table = read_particles(folder)
    return {
        name.partition("/")[2]: np.array(json.loads(flags), dtype=bool)
        for name, flags in zip(table["rlnImageName"], table["rlnTomoVisibleFrames"], strict=True)
    }


def test_common_tilts_are_written_alone(
    project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly the frames of lowest dose, the same pixels, of the particles that all show."""
    n = 3
    assert run(*BOX_2D, output="all/") == 0
    assert run(*BOX_2D, "--common_tilts", str(n)) == 0
    flags_of_all, flags = visible_frames(Path("all")), visible_frames(Path("out"))
    kept = set()
    for name, visible in flags_of_all.items():
        series = read_star_text(Path(f"tilt_series/{name.split('/')[1]}.star"))
        dose = next(iter(series.values()))["rlnMicrographPreExposure"].astype(float)
        common = np.zeros(len(visible), dtype=bool)
        common[np.argsort(dose.to_numpy(), kind="stable")[:n]] = True
        if visible[common].all():
            kept.add(name)
            assert flags[name].tolist() == common.tolist()
            images = mrcfile.read(Path("all", name))[common[visible]]
            np.testing.assert_array_equal(mrcfile.read(Path("out", name)), images)
    assert kept == set(flags)
    lost = len(flags_of_all) - len(kept)
    assert lost
    assert read_summary(Path("out"))["dropped"][NOT_COMMON] == lost
    assert f"Dropped {lost}: {NOT_COMMON}" in capsys.readouterr().out
    assert main(["verify", "out/", "--deep"]) == 0


def test_particles_missing_in_many_frames_are_left_out(project: ProjectCopy) -> None:
    """As many as `--max_missing` may be; the others are dropped with that reason."""
    assert run(*BOX_2D, output="all/") == 0
    missing = {name: int((~flags).sum()) for name, flags in visible_frames(Path("all")).items()}
    most = max(missing.values()) - 1
    assert 0 <= most < max(missing.values())
    assert run(*BOX_2D, "--max_missing", str(most)) == 0
    assert set(visible_frames(Path("out"))) == {k for k, v in missing.items() if v <= most}
    dropped = read_summary(Path("out"))["dropped"]
    assert dropped[MANY_MISSING] == sum(v > most for v in missing.values())
    assert main(["verify", "out/"]) == 0


@pytest.mark.parametrize("command", [[], ["check"]])
def test_names_that_the_locale_has_no_letters_for(project: ProjectCopy, command: list[str]) -> None:
    """One line says which, and what to set; with that the names are good."""
    letter = "\N{LATIN SMALL LETTER E WITH ACUTE}"
    for file in ("particles.star", "tomograms.star"):
        project.replace(file, "TS_01", f"TS_{letter}1")
    Path("tilt_series/TS_01.star").rename(
        "tilt_series/TS_\N{LATIN SMALL LETTER E WITH ACUTE}1.star"
    )
    words = [*command, *INPUT, *BOX_2D, "--o", "out/", "--dry_run"]
    ascii_only = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for environment, status in ((ascii_only, 1), ({**ascii_only, "PYTHONUTF8": "1"}, 0)):
        done = subprocess.run(
            [sys.executable, "-m", "relion_pseudosubtomo", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert ("'TS_\\xe91' cannot be the name of a file" in done.stderr) == (status == 1)
        assert "Traceback" not in done.stderr
    assert not Path("out").exists()


def test_bad_pixels_do_not_spoil_what_is_added_up(
    project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images with NaN are left out of the average, their particles out of the sum."""

    def spoil(name: str, image: np.ndarray) -> np.ndarray:
        if name == "TS_01_003":
            image[:] = np.nan
        return image

    change_frames(project, spoil)
    assert run(*BOX_3D, "--sum", "--average") == 0
    assert "TS_01: " in (shown := capsys.readouterr().err)
    assert "--average leaves out images with such pixels" in shown
    for name in ("average.mrc", "sum_data.mrc", "sum_weight.mrc"):
        values = mrcfile.read(Path("out", name))
        assert np.isfinite(values).all()
        assert np.ptp(values) > 0
    assert run(*BOX_3D, "--sum", "--only_tomogram", "TS_03", output="alone/") == 0
    np.testing.assert_array_equal(
        mrcfile.read("alone/sum_data.mrc"), mrcfile.read("out/sum_data.mrc")
    )


def test_sums_of_tomograms_that_add_nothing(
    project: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """All particles of a tomogram have bad pixels: the sum is that of the others; or zeros."""

    def spoil(name: str, image: np.ndarray) -> np.ndarray:
        if name.startswith("TS_01"):
            image[:] = np.nan
        return image

    assert run(*BOX_3D, "--sum", "--only_tomogram", "TS_03", output="alone/") == 0
    change_frames(project, spoil)
    assert run(*BOX_3D, "--sum") == 0
    for name in ("sum_data.mrc", "sum_weight.mrc", "sum_div.mrc"):
        np.testing.assert_array_equal(
            mrcfile.read(Path("alone", name)), mrcfile.read(Path("out", name))
        )
    assert "sum_*.mrc hold zeros" not in capsys.readouterr().err
    words = ["--sum", "--average", "--only_tomogram", "TS_01"]
    assert run(*BOX_3D, *words, output="none/") == 0
    assert "sum_*.mrc hold zeros" in capsys.readouterr().err
    for name in ("sum_data.mrc", "sum_weight.mrc", "sum_div.mrc", "average.mrc"):
        assert not mrcfile.read(Path("none", name)).any()
