"""The benchmark's data, and a small run of it from start to end: results, not times."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from relion_pseudosubtomo.io.mrc import read_header, read_volume
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.preflight import read_and_check

SCRIPTS = Path(__file__).parent.parent / "scripts"
IMAGE_SIZE = (704, 640)
N_TILTS, THICKNESS = 9, 100
SMALL = ["--image_size", "704", "640", "--tilts", str(N_TILTS), "--thickness", str(THICKNESS)]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark's package with the modules that the tests use."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmarking.configurations
    import benchmarking.data
    import benchmarking.scaling

    return benchmarking


def run_script(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *words], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("image_type", "mode"), [("float32", 2), ("float16", 12)])
def test_images_are_distinct(parts: ModuleType, tmp_path: Path, image_type: str, mode: int) -> None:
    """A tilt series is one stack of its own images, of the type asked for."""
    project = parts.data.Project(
        tmp_path, parts.data.Size(IMAGE_SIZE, N_TILTS, THICKNESS), image_type
    )
    project.make_tomograms(2)
    stacks = sorted(project.directory.glob("TiltSeries/*.mrcs"))
    assert len(stacks) == 2
    for stack in stacks:
        header = read_header(str(stack))
        assert (header.nx, header.ny, header.nz, header.mode) == (*IMAGE_SIZE, N_TILTS, mode)
    images = np.concatenate([read_volume(str(stack))[:, :8, :8] for stack in stacks])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 2 * N_TILTS


@pytest.mark.parametrize("name", ["A", "D", "E", "F", "F all"])
def test_particles_are_as_said(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The program keeps all particles, in as many frames as the floor is told; 10% cross edges."""
    job = parts.configurations.CONFIGURATIONS[name]
    project = parts.data.Project(tmp_path, parts.data.Size(IMAGE_SIZE, N_TILTS, THICKNESS))
    tomograms = project.make_tomograms(2)
    picks = project.make_picks(job, 60, 2)
    assert picks.crossing >= 0.1
    monkeypatch.chdir(project.directory)
    options = JobOptions(
        output="out/",
        box=job.box,
        crop=job.crop,
        binning=job.binning,
        stack2d=job.stack2d,
        max_dose=-1.0 if job.max_dose is None else job.max_dose,
        particles=picks.path,
        tomograms=tomograms,
    )
    _, plan = read_and_check(options)
    n_visible = np.concatenate([task.visible.sum(axis=1) for task in plan.tasks])
    np.testing.assert_array_equal(n_visible, picks.n_visible)
    assert len(plan.dropped_rows) == 0


def test_few_particles_are_the_first_of_many(parts: ModuleType, tmp_path: Path) -> None:
    """Slopes need that; also where some particles are taken from the edges."""
    job = parts.configurations.CONFIGURATIONS["D"]
    project = parts.data.Project(tmp_path, parts.data.Size((3710, 3838), N_TILTS, 1600))
    few, many = project.make_picks(job, 40), project.make_picks(job, 400)
    np.testing.assert_array_equal(few.n_visible, many.n_visible[:40])
    assert many.crossing >= 0.1


def test_quick_run_writes_all_results(tmp_path: Path) -> None:
    """Markdown, JSON and plot of a small run, with the floor and another program."""
    results = tmp_path / "results"
    versus = f"{sys.executable} -c pass {{particles}} {{tomograms}} {{out}}"
    words = ["C", "B", "floor", "startup", "--quick", "--particles", "2", "4", *SMALL]
    words += ["--data", str(tmp_path / "data"), "--results", str(results), "--versus", versus]
    printed = run_script("benchmark.py", *words)
    text = (results / "benchmark.md").read_text()
    assert text in printed
    assert "| A: 192/96/4, 3D | 2 threads | " in text
    assert "| versus | the other program | 4 | " in text
    record = json.loads((results / "benchmark.json").read_text())
    ways = {(slope["section"], slope["way"]) for slope in record["slopes"]}
    assert {("B", "2 threads"), ("B", "floor, 1 thread"), ("B", "floor, 2 threads")} <= ways
    runs = {(run["section"], run["way"], run["particles"]): run for run in record["runs"]}
    written = runs["A", "2 threads, written", 4]
    assert written["bytes_written"] == 4 * (2 * 1024 + 4 * (96**3 + 2 * 96 * 96 * 49))
    assert runs["A", "2 threads", 4]["bytes_written"] == 0
    assert all(run["median"]["user"] > 0 for run in record["runs"])
    assert 0 < written["median"]["private"] < written["median"]["rss"]
    assert (results / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "data" / "out").iterdir())


def test_containers_are_compared(tmp_path: Path) -> None:
    """A small run of the section: processor time of writing, and particles read."""
    words = ["hdf5", "--quick", "--particles", "2", "4", *SMALL, "--data", str(tmp_path / "data")]
    printed = run_script("benchmark.py", *words, "--results", str(tmp_path / "results"))
    for text in (
        "| hdf5: CPU a particle of A to containers / to MRC files | at most 1.1 |",
        "| hdf5: 10 random particles warm, container / MRC files | at most 1 |",
        "| hdf5 | random particles, MRC files, warm | 10 |",
    ):
        assert text in printed
    assert "cold" not in printed
    assert not list((tmp_path / "data" / "out").iterdir())


def test_laps_of_all_particles(parts: ModuleType, tmp_path: Path) -> None:
    """Every particle is timed once, and the laps of a thread follow one another."""
    job = parts.configurations.CONFIGURATIONS["D"]
    project = parts.data.Project(tmp_path, parts.data.Size(IMAGE_SIZE, N_TILTS, THICKNESS))
    tomograms, picks = project.make_tomograms(2), project.make_picks(job, 8, 2)
    out = tmp_path / "out"
    out.mkdir()
    words = ["--p", picks.path, "--t", tomograms, *job.options(), "--j", "2", "--no_writing"]
    command = [sys.executable, str(SCRIPTS / "benchmarking" / "particle_clock.py"), *words]
    subprocess.run([*command, "--o", f"{out}/job/"], cwd=project.directory, check=True, timeout=240)
    (file,) = out.glob(parts.scaling.LAPS)
    laps = pd.DataFrame(np.load(file), columns=parts.scaling.COLUMNS)
    assert sorted(zip(laps.task, laps.particle, strict=True)) == [
        (task, particle) for task in range(2) for particle in range(8)
    ]
    for _, each in laps.groupby(["worker", "task"]):
        np.testing.assert_array_equal(each.wall_from[1:], each.wall_to[:-1])
        assert (each.wall_to > each.wall_from).all()
        assert (each.cpu_to > each.cpu_from).all()


def make_laps(
    columns: tuple[str, ...], worker: int, times: list[tuple[float, float]]
) -> pd.DataFrame:
    """Return laps of one thread that begin at 0; times are those of the clock, of the processor."""
    wall, cpu = np.cumsum([(0.0, 0.0), *times], axis=0).T
    n = len(times)
    columns_of = (np.full(n, worker), np.zeros(n), np.arange(n), wall[:-1], cpu[:-1], wall[1:])
    return pd.DataFrame(dict(zip(columns, (*columns_of, cpu[1:]), strict=True)))


def test_efficiency_of_known_times(parts: ModuleType) -> None:
    """The fastest run of each particle counts, and what the threads waited in all of them."""
    make = functools.partial(make_laps, parts.scaling.COLUMNS)
    alone = [make(1, [(1, 1), (1, 1), (2, 2)]), make(1, [(1, 1), (3, 3), (1, 1)])]
    together = [make(1, [(2, 2), (2.5, 2), (2.5, 2)]), make(1, [(2.5, 2), (1.25, 1), (1.25, 1)])]
    found = parts.scaling.Comparison(pd.concat(alone), pd.concat(together))
    assert found.n_particles == 3
    running = (10 / 12) / 1
    assert found.waiting == pytest.approx(1 - running)
    assert found.fastest == pytest.approx(running * 3 / 4)
    assert found.mean == pytest.approx(running * 4.5 / 5)


def test_efficiency_of_whole_runs(parts: ModuleType, tmp_path: Path) -> None:
    """By medians, and by means with their standard error."""
    settings = parts.session.Settings(None, (2, 4), 3, tmp_path, tmp_path)
    session, way = parts.session.Session(settings), parts.configurations.TWO_RANKS
    for name, n, walls in (
        (way.alone.name, 2, (1, 1, 1)),
        (way.alone.name, 4, (5, 5, 9)),
        (way.name, 2, (2, 2, 2)),
        (way.name, 4, (4, 6, 6)),
    ):
        runs = [parts.session.Usage(wall, wall) for wall in walls]
        session.runs[parts.session.Key("A", name, n)] = runs
    assert session.efficiency("A", way) == pytest.approx(2 / (2 * 2))
    mean, error = session.paired_efficiency("A", way)
    assert mean == pytest.approx(8 / (2 * 5))
    without = np.array([6 / (2 * 4), 6 / (2 * 3), 4 / (2 * 3)])
    assert error == pytest.approx(np.sqrt(2 / 3 * np.sum((without - without.mean()) ** 2)))
    assert session.paired_efficiency("B", way) is None


def test_interrupt_leaves_whole_repeats(parts: ModuleType, tmp_path: Path) -> None:
    """The medians are those of the repeats before it; one within the first ends it all."""
    settings = parts.session.Settings(None, (2, 4), 3, tmp_path, tmp_path)
    keys = [parts.session.Key("A", way) for way in ("one", "two")]
    for n_done, n_whole in ((5, 2), (3, 1), (1, 0)):
        session = parts.session.Session(settings)
        measure = Mock(side_effect=[*[parts.session.Usage(1.0, 1.0)] * n_done, KeyboardInterrupt])
        for key in keys:
            session.add(key, measure)
        if not n_whole:
            with pytest.raises(KeyboardInterrupt):
                session.run()
            continue
        session.run()
        assert [len(session.runs[key]) for key in keys] == [n_whole, n_whole]
        assert session.notes == [f"stopped after {n_whole} of 3 repeats"]
        assert session.settings.repeats == n_whole


def test_laps_while_all_work(parts: ModuleType) -> None:
    """Neither a first particle counts nor one for which another thread had none left."""
    make = functools.partial(make_laps, parts.scaling.COLUMNS)
    first, second = make(1, [(1, 1)] * 6), make(2, [(2, 2), (2, 2)])
    laps = pd.concat([first, second])
    kept = parts.scaling.while_all_work(laps, 2)[["worker", "particle"]]
    assert kept.to_numpy().tolist() == [[1, 1], [1, 2], [1, 3], [2, 1]]
    kept = parts.scaling.while_all_work(first, 1)
    assert kept.particle.tolist() == [1, 2, 3, 4, 5]


def test_unknown_section(tmp_path: Path) -> None:
    """A wrong name is told before anything is made."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "benchmark.py"), "X", "--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "found ['X']" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("job", "has_volume"), [("A", True), ("B", False)])
def test_profile_knows_every_stage(tmp_path: Path, job: str, has_volume: bool) -> None:
    """Each stage takes time, and no kernel or plan is without one."""
    printed = run_script(
        "profile_stages.py", job, "--particles", "2", "--data", str(tmp_path), *SMALL
    )
    rows = dict(line.split("|")[1:3] for line in printed.splitlines() if line.count("|") == 4)
    times = {name.strip(): text.strip() for name, text in rows.items()}
    assert not [name for name in times if name.startswith(("kernel ", "plan "))]
    stages = ["cut windows", "row transforms", "column transforms", "write"]
    if has_volume:
        stages += ["insertion", "3D c2r"]
    assert all(float(times[stage]) > 0 for stage in stages)
